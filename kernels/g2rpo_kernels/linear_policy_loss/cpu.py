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
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, chunked_stats, even_chunks
from g2rpo_kernels.linear_logprob.linear import Linear
from g2rpo_kernels.linear_policy_loss.bins import row_cuts, whole_row_runs
from g2rpo_kernels.linear_policy_loss.coefficients import (
    known_beforehand,
    own_coefficients,
    penalty_coefficients,
    summed,
    tied_coefficient,
)
from g2rpo_kernels.logprob.rows import RowGradients, RowStats
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of


class _Handed(Function):
    """Attaches gradients computed in forward to the loss. Backward hands them over, so it runs once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        loss: Tensor,
        gradients: list[Tensor | None],
    ) -> Tensor:
        ctx.gradients = gradients
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradients is None:
            raise RuntimeError("linear_policy_loss: backward ran already; its gradients were handed over")
        gradients, ctx.gradients = ctx.gradients, None
        if float(grad_loss) != 1.0:  # Multiplying by exactly 1 would only cost a pass over d head.
            for value in gradients:
                if value is not None:
                    value.mul_(grad_loss)
        return *gradients, None, None


def linear_policy_loss_cpu(
    linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None
) -> PolicyLoss:
    """As the reference; never more than `chunk_bytes` of logits. Once differentiable, backward once."""
    edges = edges.cast(linear.dtype, linear.hidden_SD.device)
    tensors = (linear.hidden_SD, linear.head_VD, linear.bias_V)
    needs = [torch.is_grad_enabled() and value is not None and value.requires_grad for value in tensors]
    with torch.no_grad():
        if not any(needs):
            stats = chunked_stats(linear, chunk_bytes)
            return loss_of(stats.logp_C, stats.entropy_C, edges, objective)
        work = _Pass(linear, edges, objective, chunk_bytes, needs)
        out = work.token_ratios() if objective.ratio == "token" else work.sequence_ratios()
        gradients = list(work.sums.finish(linear))
    return out._replace(loss=_Handed.apply(*tensors, out.loss, gradients))


class _Pass:
    """One pass over a problem: its buffer, and the statistics and gradients that it fills."""

    def __init__(
        self, given: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None, needs: list[bool]
    ) -> None:
        keep_exp = given.softcap is None and not objective.entropy_coef
        self.linear = given.cast(given.dtype, given.dtype)
        self.edges, self.objective = edges, objective
        self.buffer = ChunkBuffer(self.linear, chunk_bytes, keep_exp)
        self.sums = GradientSums(self.linear, *needs)
        self.stats = RowStats(*torch.zeros((4, given.num_rows), dtype=given.dtype).unbind(0))

    def token_ratios(self) -> PolicyLoss:
        """The loss, detached; gradients are in `sums`."""
        parts: list[PolicyLoss] = []
        for chunk in self.buffer.chunks:
            x_CD, z_CV, row = self._forward(chunk)
            part, given = own_coefficients(row.logp_C, row.entropy_C, self.edges.rows(chunk), self.objective)
            self.sums.add(self.buffer, chunk, x_CD, z_CV, row, RowGradients(*given))
            parts.append(part)
        return summed(parts, self.stats.logp_C, self.stats.entropy_C) if parts else self._loss()

    def sequence_ratios(self) -> PolicyLoss:
        """As `token_ratios`, for objectives that tie the edges of a row together."""
        known = known_beforehand(self.edges, self.objective)
        cuts = (self.linear.num_rows,) if known else (self.edges.row_cuts or row_cuts(self.edges))
        for run in whole_row_runs(cuts, self.buffer.most_rows):
            chunks = even_chunks(run, self.buffer.most_rows)
            if len(chunks) > 1 and not known:
                for chunk in chunks:
                    self._forward(chunk)
            tied_T = None
            for chunk in chunks:
                x_CD, z_CV, row = self._forward(chunk)
                if tied_T is None:
                    tied_T = tied_coefficient(self.stats.logp_C, self.edges, self.objective)
                given = penalty_coefficients(
                    row.logp_C, row.entropy_C, self.edges.rows(chunk), self.objective, tied_T[chunk]
                )
                self.sums.add(self.buffer, chunk, x_CD, z_CV, row, RowGradients(*given))
        return self._loss()

    def _forward(self, chunk: slice) -> tuple[Tensor, Tensor, RowStats]:
        """(hidden states, logits, statistics) of a chunk."""
        x_CD, row = self.linear.rows(chunk), self.stats.rows(chunk)
        z_CV = self.buffer.logits(chunk, x_CD)
        self.buffer.write_stats(z_CV, chunk, row)
        return x_CD, z_CV, row

    def _loss(self) -> PolicyLoss:
        return loss_of(self.stats.logp_C, self.stats.entropy_C, self.edges, self.objective)
