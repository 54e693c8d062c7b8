"""The linear policy loss in one pass over row chunks: three products each, gradients ready after forward.

Per chunk: logits, row statistics, c = dL/dlogp and e = dL/dH by autograd of the objective on the chunk's
vectors, d logits over the logits, d hidden and d head. The logits are never stored and never recomputed,
because the coefficient of an edge depends on that edge's log-probability only.

Sequence ratios tie the edges of a row together. Chunks then hold whole rows (whole trees, where rows share
edges), so that all a coefficient needs is there before d logits. Rows that do not fit a chunk take a first
pass over their logits, a fourth product, unless the tied part is known beforehand.

Dimension key: S positions, D width, V vocabulary, T trained edges, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.attach import hand_over_op
from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, chunked_stats, even_chunks
from g2rpo_kernels.linear_logprob.linear import Linear, gradients_of, needed, tensors_of
from g2rpo_kernels.linear_policy_loss.arguments import PROBLEM, Problem
from g2rpo_kernels.linear_policy_loss.bins import row_cuts, whole_row_runs
from g2rpo_kernels.linear_policy_loss.coefficients import (
    known_beforehand,
    own_coefficients,
    penalty_coefficients,
    tied_coefficient,
)
from g2rpo_kernels.logprob.rows import RowGradients, RowStats
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of


def gradients_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    """logp [T], entropy [T], and the loss's gradients of (hidden, head, bias), empty where not needed."""
    problem = PROBLEM.unpack(*arguments)
    given = problem.linear
    if not any(problem.needs):
        stats = chunked_stats(given, problem.chunk_bytes)
        return stats.logp_C, stats.entropy_C, *tensors_of((None, None, None), given.hidden_SD)
    work = _Pass(problem)
    (work.token_ratios if problem.objective.ratio == "token" else work.sequence_ratios)()
    gradients = tensors_of(work.sums.finish(given), given.hidden_SD)
    return work.stats.logp_C, work.stats.entropy_C, *gradients


gradients_op = torch.library.custom_op(
    "g2rpo::linear_policy_gradients_cpu",
    gradients_cpu,
    mutates_args=(),
    schema=f"({PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@gradients_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    given, _, _, _, needs = PROBLEM.unpack(*arguments)
    logp_T, entropy_T = (given.hidden_SD.new_empty(given.num_rows, dtype=given.dtype) for _ in range(2))
    return logp_T, entropy_T, *given.like(needs)


def linear_policy_loss_cpu(
    linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None
) -> PolicyLoss:
    """As the reference; never more than `chunk_bytes` of logits. Once differentiable, backward once."""
    edges = edges.cast(linear.dtype, linear.hidden_SD.device)
    tensors = (linear.hidden_SD, linear.head_VD, linear.bias_V)
    needs = needed(tensors)
    with torch.no_grad():
        problem = Problem(linear, edges, objective, chunk_bytes, needs)
        logp_T, entropy_T, *found = gradients_op(*PROBLEM.pack(problem))
        out = loss_of(logp_T, entropy_T, edges, objective)
    if not any(needs):
        return out
    return out._replace(loss=hand_over_op(out.loss, *tensors, *gradients_of(found, needs)))


class _Pass:
    """One pass over a problem: its buffer, and the statistics and gradients that it fills."""

    def __init__(self, problem: Problem) -> None:
        given, self.edges, self.objective, chunk_bytes, needs = problem
        keep_exp = given.softcap is None and not self.objective.entropy_coef
        self.linear = given.rounded(given.dtype)
        self.buffer = ChunkBuffer(self.linear, chunk_bytes, keep_exp)
        self.sums = GradientSums(self.linear, *needs)
        self.stats = RowStats(*(torch.zeros(given.num_rows, dtype=given.dtype) for _ in range(4)))

    def token_ratios(self) -> None:
        """Fills `stats`, and with gradients `sums`."""
        for chunk in self.buffer.chunks:
            x_CD, z_CV, row = self.buffer.forward(chunk, self.stats)
            given = own_coefficients(row.logp_C, row.entropy_C, self.edges.rows(chunk), self.objective)
            self.sums.add(self.buffer, chunk, x_CD, z_CV, row, RowGradients(*given))

    def sequence_ratios(self) -> None:
        """As `token_ratios`, for objectives that tie the edges of a row together."""
        known = known_beforehand(self.edges, self.objective)
        cuts = (self.linear.num_rows,) if known else (self.edges.row_cuts or row_cuts(self.edges))
        for run in whole_row_runs(cuts, self.buffer.most_rows):
            chunks = even_chunks(run, self.buffer.most_rows)
            if len(chunks) > 1 and not known:
                for chunk in chunks:
                    self.buffer.forward(chunk, self.stats)
            tied_T = None
            for chunk in chunks:
                x_CD, z_CV, row = self.buffer.forward(chunk, self.stats)
                if tied_T is None:
                    tied_T = tied_coefficient(self.stats.logp_C, self.edges, self.objective)
                given = penalty_coefficients(
                    row.logp_C, row.entropy_C, self.edges.rows(chunk), self.objective, tied_T[chunk]
                )
                self.sums.add(self.buffer, chunk, x_CD, z_CV, row, RowGradients(*given))
