"""The objective stage: rows to weights, rows and trees to the kernels' edges."""

from g2rpo_fast.objective.config import ObjectiveConfig, kernel_objective
from g2rpo_fast.objective.edges import edges_of
from g2rpo_fast.objective.weights import token_weights

__all__ = ["ObjectiveConfig", "edges_of", "kernel_objective", "token_weights"]
