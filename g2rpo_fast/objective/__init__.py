"""The objective stage: rows to weights, rows and trees to the kernels' edges, terms of the loss."""

from g2rpo_fast.objective.config import ObjectiveConfig
from g2rpo_fast.objective.kernel import fused_objective
from g2rpo_fast.objective.terms import TERMS
from g2rpo_fast.objective.weights import token_weights

__all__ = [
    "TERMS",
    "ObjectiveConfig",
    "fused_objective",
    "token_weights",
]
