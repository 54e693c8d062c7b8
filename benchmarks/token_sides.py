"""Sides of the token-loss comparison: a loss by `token_loss`, on materialised logits, by its name.

    python benchmarks/token_sides.py fused_row '{"rows": 512, "width": 128, "vocabulary": 151936, "steps": 3}'

prints what `linear_sides.py` prints. Per kind of tie the same loss is computed by all sides:

    token   the mean clipped surrogate                       named: Objective()
    row     sequence ratios (GSPO), clipped alike            named: Objective(ratio="sequence")
    batch   the clipped surrogate of tokens, weighted by a softmax of the log-ratios over the batch

Eager gives what the op gives: loss, gradients, log-probabilities and entropies.

Dimension key: T rows of the problem (one edge each), V vocabulary, B sequences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from g2rpo_kernels import Edges, Objective, linear_logprob, linear_policy_loss, token_loss
from torch import Tensor

from linear_problem import SEQUENCE, Loss, Problem, clipped_loss
from linear_sides import measure, ours

TIES = ("token", "row", "batch")
LossFn = Callable[[Tensor, Tensor], Tensor]


def loss_of(problem: Problem, ties: str) -> LossFn:
    """The loss as a function of log-probabilities and entropies."""
    old_T, advantage_T = problem.old_logp_T, problem.advantage_T

    def of_tokens(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        return clipped_loss(logp_T, old_T, advantage_T)

    def of_rows(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        mean_B = (logp_T - old_T).unflatten(0, (-1, SEQUENCE)).mean(1)
        return clipped_loss(mean_B, torch.zeros_like(mean_B), advantage_T[::SEQUENCE])

    def of_batch(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        log_ratio_T = logp_T - old_T
        value_T = torch.minimum(log_ratio_T.exp(), log_ratio_T.exp().clamp(0.8, 1.2)) * advantage_T
        return -(torch.softmax(log_ratio_T, 0) * value_T).sum()

    return {"token": of_tokens, "row": of_rows, "batch": of_batch}[ties]


def fused(problem: Problem, ties: str, look: tuple[Tensor, Tensor] | None = None) -> Tensor:
    rows = {"row_cuts": range(SEQUENCE, len(problem.target_T) + 1, SEQUENCE)} if ties == "row" else {}
    given: Any = (problem.hidden_TD, problem.head_VD, problem.target_T)
    return token_loss(*given, loss_of(problem, ties), ties=ties, look=look, **rows).loss


def fused_after_look() -> Loss:
    """The batch's loss where the log-probabilities are known beforehand; that look is not counted."""
    known: list[tuple[Tensor, Tensor]] = []

    def loss(problem: Problem) -> Tensor:
        if not known:
            with torch.no_grad():
                found = linear_logprob(problem.hidden_TD, problem.head_VD, problem.target_T)
            known.append((found.logp_T, found.entropy_T))
        return fused(problem, "batch", known[0])

    return loss


def eager(problem: Problem, ties: str) -> Tensor:
    every_TV = (problem.hidden_TD @ problem.head_VD.T).float().log_softmax(-1)
    with torch.no_grad():
        entropy_T = -(every_TV.exp() * every_TV).sum(-1)
    return loss_of(problem, ties)(every_TV.gather(1, problem.target_T[:, None])[:, 0], entropy_T)


def named_row(problem: Problem) -> Tensor:
    """Sequences of equal length: a mean over them is one over tokens."""
    num_edges = len(problem.target_T)
    weight_T = torch.full_like(problem.advantage_T, 1 / num_edges)
    scaled_T = weight_T * problem.advantage_T
    edges = Edges(
        scaled_T.clamp(min=0), scaled_T.clamp(max=0), weight_T, problem.old_logp_T,
        member_ptr_T1=torch.arange(num_edges + 1), member_row_M=torch.arange(num_edges) // SEQUENCE,
        member_advantage_M=problem.advantage_T, member_weight_M=weight_T, num_rows=num_edges // SEQUENCE,
    )  # fmt: skip
    given = (problem.hidden_TD, problem.head_VD, problem.target_T)
    return linear_policy_loss(*given, edges, Objective(ratio="sequence")).loss


SIDES: dict[str, Callable[[], Loss]] = {
    **{f"fused_{ties}": lambda ties=ties: partial(fused, ties=ties) for ties in TIES},
    **{f"eager_{ties}": lambda ties=ties: partial(eager, ties=ties) for ties in TIES},
    "named_token": lambda: ours,
    "named_row": lambda: named_row,
    "look_batch": fused_after_look,
}
"""What computes it, then the kind of tie."""

if __name__ == "__main__":
    print(json.dumps(measure(SIDES[sys.argv[1]], **json.loads(sys.argv[2]))))
