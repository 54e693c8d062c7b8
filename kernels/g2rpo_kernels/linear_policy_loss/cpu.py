"""The linear policy loss in one pass over row chunks: three products each, gradients ready after forward.

Per chunk: logits, row statistics, c = dL/dlogp and e = dL/dH by autograd of the objective on the chunk's
vectors, d logits over the logits, d hidden and d head. The logits are never stored and never recomputed,
because the coefficient of an edge depends on that edge's log-probability only.

Sequence ratios tie the edges of a row together through the surrogate. Its coefficient is then taken for all
edges beforehand: without a recomputation where it does not depend on the log-probabilities (on-policy, s =
1, and no importance weights; or `reinforce`), else after a first pass over the logits (four products).

Dimension key: S positions, D width, V vocabulary, T trained edges, C rows of a chunk.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, Linear, chunked_stats
from g2rpo_kernels.logprob.rows import RowGradients, RowStats, empty_stats
from g2rpo_kernels.policy_loss.objective import evaluate_surrogate, penalty_loss, surrogate_loss
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of
from g2rpo_kernels.policy_loss.stats import Stats


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
    linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int
) -> PolicyLoss:
    """As the reference; never more than `chunk_bytes` of logits. Once differentiable, backward once."""
    edges = edges.cast(linear.dtype, linear.hidden_SD.device)
    tensors = (linear.hidden_SD, linear.head_VD, linear.bias_V)
    needs = [torch.is_grad_enabled() and value is not None and value.requires_grad for value in tensors]
    with torch.no_grad():
        if not any(needs):
            stats = chunked_stats(linear, chunk_bytes)
            return loss_of(stats.logp_C, stats.entropy_C, edges, objective)
        tied_T = _tied_coefficient(linear, edges, objective, chunk_bytes)
        out, gradients = _one_pass(linear, edges, objective, tied_T, chunk_bytes, needs)
    return out._replace(loss=_Handed.apply(*tensors, out.loss, gradients))


def _one_pass(
    given: Linear,
    edges: Edges,
    objective: Objective,
    tied_T: Tensor | None,
    chunk_bytes: int,
    needs: list[bool],
) -> tuple[PolicyLoss, list[Tensor | None]]:
    """The loss, detached, and the gradients of (hidden, head, bias) that are needed."""
    linear = given.accumulating()
    stats = empty_stats(linear.num_rows, linear.dtype)
    keep_exp = linear.softcap is None and not objective.entropy_coef
    buffer, sums = ChunkBuffer(linear, chunk_bytes, keep_exp), GradientSums(linear, *needs)
    parts: list[PolicyLoss] = []
    for chunk in buffer.chunks:
        x_CD, row = linear.rows(chunk), stats.rows(chunk)
        z_CV = buffer.logits(chunk, x_CD)
        buffer.write_stats(z_CV, chunk, row)
        if tied_T is None:
            part, upstream = _own_coefficients(row, edges.rows(chunk), objective)
            parts.append(part)
        else:
            upstream = _penalty_coefficients(row, edges.rows(chunk), objective, tied_T[chunk])
        sums.add(buffer, chunk, x_CD, z_CV, row, upstream)
    gradients = list(sums.cast(given))
    if tied_T is not None or not parts:
        return loss_of(stats.logp_C, stats.entropy_C, edges, objective), gradients
    loss = torch.stack([part.loss for part in parts]).sum()
    metrics = reduce(_add_stats, (part.stats for part in parts))
    return PolicyLoss(loss, stats.logp_C, stats.entropy_C, metrics), gradients


def _own_coefficients(row: RowStats, edges: Edges, objective: Objective) -> tuple[PolicyLoss, RowGradients]:
    """A chunk's part of the loss, and c and e, where each edge's loss is its own."""
    with torch.enable_grad():
        logp_C, entropy_C = row.logp_C.detach().requires_grad_(), row.entropy_C.detach().requires_grad_()
        part = loss_of(logp_C, entropy_C, edges, objective)
    c_C, e_C = torch.autograd.grad(part.loss, (logp_C, entropy_C), allow_unused=True)
    return part._replace(loss=part.loss.detach()), RowGradients(c_C, e_C)


def _penalty_coefficients(row: RowStats, edges: Edges, objective: Objective, tied_C: Tensor) -> RowGradients:
    """c and e where `tied_C`, the surrogate's part of c, is known."""
    with torch.enable_grad():
        logp_C, entropy_C = row.logp_C.detach().requires_grad_(), row.entropy_C.detach().requires_grad_()
        # The first term only connects the graph where there is no penalty.
        loss = (logp_C * 0).sum() + penalty_loss(logp_C, entropy_C, edges, objective)
    c_C, e_C = torch.autograd.grad(loss, (logp_C, entropy_C), allow_unused=True)
    return RowGradients(c_C + tied_C, e_C)


def _add_stats(one: Stats, other: Stats) -> Stats:
    return {name: (one[name][0] + other[name][0], one[name][1] + other[name][1]) for name in one}


def _tied_coefficient(given: Linear, edges: Edges, objective: Objective, chunk_bytes: int) -> Tensor | None:
    """[T] d surrogate / d logp where a row's edges share their ratio, else None."""
    if objective.ratio == "token":
        return None
    on_policy = edges.old_logp_T is None and objective.importance_cap is None
    if on_policy or (objective.surrogate == "reinforce" and objective.importance_cap is None):
        logp_T = torch.zeros_like(edges.weight_T)
    else:
        logp_T = chunked_stats(given, chunk_bytes).logp_C
    with torch.enable_grad():
        logp_T = logp_T.detach().requires_grad_()
        loss = surrogate_loss(*evaluate_surrogate(logp_T, edges, objective))
    return torch.autograd.grad(loss, logp_T)[0]
