"""The linear policy loss in one pass over row chunks: three products per chunk, gradients ready after
forward.

Per chunk: logits, row statistics, c = dL/dlogp and e = dL/dH by autograd of the objective on the chunk's
vectors, d logits over the logits, d hidden and d head. The logits are never stored and never recomputed,
because the coefficient of an edge depends on that edge's log-probability only.

Sequence ratios tie the edges of a row together through the surrogate. Its coefficient is then taken for all
edges beforehand: without a recomputation where it does not depend on the log-probabilities (on-policy, s =
1, and no importance weights; or `reinforce`), else after a first pass over the logits (four products).

Dimension key: S positions, D width, V vocabulary, T trained edges, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, Linear, chunked_stats
from g2rpo_kernels.logprob.rows import RowGradients, empty_stats
from g2rpo_kernels.policy_loss.objective import (
    evaluate_surrogate,
    objective_loss,
    penalty_loss,
    surrogate_loss,
)
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
    linear: Linear, edges: Edges, objective: Objective, chunk_bytes: int
) -> PolicyLoss:
    """As the reference; never more than `chunk_bytes` of logits. Once differentiable, backward once."""
    edges = edges.cast(linear.dtype, linear.hidden_SD.device)
    tensors = (linear.hidden_SD, linear.head_VD, linear.bias_V)
    needs = [torch.is_grad_enabled() and value is not None and value.requires_grad for value in tensors]
    with torch.no_grad():
        if any(needs):
            logp_T, entropy_T, gradients = _one_pass(linear, edges, objective, chunk_bytes, needs)
        else:
            stats = chunked_stats(linear, chunk_bytes)
            logp_T, entropy_T, gradients = stats.logp_C, stats.entropy_C, [None] * 3
        out = loss_of(logp_T, entropy_T, edges, objective)
    return out._replace(loss=_Handed.apply(*tensors, out.loss, gradients)) if any(needs) else out


def _one_pass(
    given: Linear, edges: Edges, objective: Objective, chunk_bytes: int, needs: list[bool]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Log-probabilities, entropies and the gradients of (hidden, head, bias) that are needed."""
    linear = given.accumulating()
    tied_T = _tied_coefficient(given, edges, objective, chunk_bytes)
    stats = empty_stats(linear.num_rows, linear.dtype)
    buffer, sums = ChunkBuffer(linear, chunk_bytes), GradientSums(linear, *needs)
    for chunk in buffer.chunks:
        x_CD, row = linear.rows(chunk), stats.rows(chunk)
        z_CV = buffer.logits(chunk, x_CD)
        buffer.write_stats(z_CV, chunk, row)
        tied_C = None if tied_T is None else tied_T[chunk]
        upstream = _coefficients(row.logp_C, row.entropy_C, edges.rows(chunk), objective, tied_C)
        sums.add(buffer, chunk, x_CD, z_CV, row, upstream)
    return stats.logp_C, stats.entropy_C, list(sums.cast(given))


def _coefficients(
    logp_C: Tensor, entropy_C: Tensor, edges: Edges, objective: Objective, tied_C: Tensor | None
) -> RowGradients:
    """c and e of a chunk; `tied_C` is the surrogate's part of c where that is known already."""
    with torch.enable_grad():
        logp_C, entropy_C = logp_C.detach().requires_grad_(), entropy_C.detach().requires_grad_()
        if tied_C is None:
            loss = objective_loss(logp_C, entropy_C, edges, objective)
        else:
            loss = penalty_loss(logp_C, entropy_C, edges, objective) + (logp_C * 0).sum()
    c_C, e_C = torch.autograd.grad(loss, (logp_C, entropy_C), allow_unused=True)
    return RowGradients(c_C if tied_C is None else c_C + tied_C, e_C)


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
