"""Updates of tiny models of any type, in float64, against each row by itself in transformers; SGD steps.

SGD with rate 1 and no clipping turns weights into gradients: what the update moved is what is compared. Many
models compute norms and states in float32 whatever their dtype: rounding of these is what is allowed.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from causal_types import tiny_model
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.load import checkpoint_layers, select_attention
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.tree import TreeConfig
from updates import COMPUTE, PLAIN, TEMPERATURE, advantages, batches, rollouts, textbook_loss


def model_of(family: str, **extra: Any) -> Any:
    model = tiny_model(family, **extra).double()
    model.set_experts_implementation("eager")  # the others have no float64
    return model


def sgd_learner(model: Any, budget: int, compute: ModelConfig = COMPUTE, *, shares: bool) -> Learner:
    """On trees or, where these do not fit the model, on unshared rows."""
    assert (select_attention(model) is None) == shares
    if compute.gradient_checkpointing:
        checkpoint_layers(model)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        reference=None,
        objective=PLAIN.config,
        optim=OptimConfig(max_grad_norm=1e9),
        tree=TreeConfig(token_budget=budget).settled(follows_trees=follows_trees(model)),
        compute=compute,
        temperature=TEMPERATURE,
        terms=PLAIN.terms,
    )


def textbook_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of the mean over rows, a forward and a backward pass for each."""
    made = rollouts()
    for rollout, advantage in zip(made, advantages(), strict=True):
        (textbook_loss(model, [rollout], [np.float32(advantage)], None, None, PLAIN) / len(made)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def moved(model: Any, start: Any) -> dict[str, torch.Tensor]:
    return {
        name: (s - p).detach()
        for (name, p), s in zip(model.named_parameters(), start.parameters(), strict=True)
    }


def check_update(
    start: Any, *budgets: int, shares: bool, compute: ModelConfig = COMPUTE, bound: float = 1e-6
) -> None:
    wanted = textbook_gradients(copy.deepcopy(start))
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert largest > 1e-3
    for budget in budgets:
        ours = sgd_learner(copy.deepcopy(start), budget, compute, shares=shares)
        assert ours.fused is not None
        stats = ours.update(batches(rollouts(), advantages(), PLAIN), lr=1.0)
        ratio = stats["update/token_ratio"]
        assert ratio > 1.2 if shares else ratio < 1.06  # a row is the beginning of another
        assert (stats["update/micro_batches"] > 1) == (budget < 100)
        got = moved(ours.model, start)
        for name, grad in wanted.items():
            assert float((got[name] - grad).abs().max()) < bound * largest, (name, budget)
