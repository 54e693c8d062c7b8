"""The loss as a function of per-edge log-probabilities and entropies.

    loss = sum_T [ -(a_pos plus(r) + a_neg minus(r)) importance + kl_coef w kl - entropy_coef w H ]

Token ratios: r_t = exp(logp_t - old_logp_t). Sequence ratios: the surrogate is summed over (edge, member)
pairs, with the member row's s = exp(mean over the row's weighted tokens of logp - old_logp) in place of r;
`product` ratios have the sum of the clamped log-ratios in place of the mean, times the importance. Else the
importance weight, truncated or masked, multiplies the surrogate only; KL and entropy stand outside it (TRL's
order).
With `kl_times_ratio` kl is multiplied by r, or by s per pair of `sequence` ratios.

Edges are neutralised before any exp: where all coefficients are zero, log-probabilities are replaced by 0.

Dimension key: T trained edges, M (edge, member) pairs, B rows (sequences).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.kl import KLS
from g2rpo_kernels.policy_loss.records import Edges, Objective
from g2rpo_kernels.policy_loss.surrogates import (
    MAX_LOG_RATIO,
    MIN_VESPO_RATIO,
    Values,
    ratio_of,
    surrogate_of,
)


class Terms(NamedTuple):
    """The surrogate's arguments, per edge (token ratios) or per (edge, member) pair (sequence ratios)."""

    log_ratio: Tensor
    logp: Tensor
    a_pos: Tensor
    a_neg: Tensor
    importance: Tensor | None


def active_edges(edges: Edges) -> Tensor:
    """[T] bool: edges that can contribute."""
    return (edges.a_pos_T != 0) | (edges.a_neg_T != 0) | (edges.weight_T != 0)


def log_importance(logp_T: Tensor, edges: Edges) -> Tensor:
    """[T] log(old policy / engine), detached and clamped; 0 where the engine sampled nothing."""
    assert edges.rollout_logp_T is not None
    old_logp_T = _old_logp(logp_T, edges)
    log_weight_T = (old_logp_T - edges.rollout_logp_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_weight_T.masked_fill(edges.rollout_logp_T.isnan() | ~active_edges(edges), 0.0)


def bounded_importance(raw: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """(weights as they are used, bool: which of the raw ones lie outside the bounds)."""
    assert objective.importance_cap is not None
    outside = (raw < objective.importance_low) | (raw > objective.importance_cap)
    if objective.importance_mask:
        return raw.masked_fill(outside, 0.0), outside
    return raw.clamp(objective.importance_low, objective.importance_cap), outside


def _old_logp(logp_T: Tensor, edges: Edges) -> Tensor:
    """[T] log-probabilities that ratios are taken to; this policy's own, detached, where none is given."""
    if edges.old_logp_T is None:
        return logp_T.detach()
    return torch.where(edges.old_logp_T.isnan(), logp_T.detach(), edges.old_logp_T)


def surrogate_terms(logp_T: Tensor, edges: Edges, objective: Objective) -> Terms:
    """Arguments of the surrogate at `logp_T`; differentiable."""
    safe_T, log_ratio_T = _token_log_ratio(logp_T, edges)
    importance_T = None
    if objective.importance_cap is not None:
        importance_T, _ = bounded_importance(log_importance(logp_T, edges).exp(), objective)
    if objective.ratio == "token":
        return Terms(log_ratio_T, safe_T, edges.a_pos_T, edges.a_neg_T, importance_T)
    return _sequence_terms(safe_T, log_ratio_T, importance_T, edges, objective.ratio == "product")


def _token_log_ratio(logp_T: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """(logp, logp - old_logp), both 0 where nothing contributes."""
    active_T = active_edges(edges)
    safe_T = torch.where(active_T, logp_T, 0.0)
    return safe_T, safe_T - torch.where(active_T, _old_logp(logp_T, edges), 0.0)


def _sequence_terms(
    logp_T: Tensor, log_ratio_T: Tensor, importance_T: Tensor | None, edges: Edges, product: bool
) -> Terms:
    ptr_T1, row_M = edges.member_ptr_T1, edges.member_row_M
    advantage_M, weight_M = edges.member_advantage_M, edges.member_weight_M
    assert ptr_T1 is not None
    assert row_M is not None
    assert advantage_M is not None
    assert weight_M is not None
    # The size is given: finding it out would stall the device.
    edge_M = torch.repeat_interleave(ptr_T1.diff(), output_size=len(row_M))
    counted_M = weight_M != 0
    if product:
        log_ratio_T = log_ratio_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        if importance_T is not None:
            # A weight of 0 counts as the smallest ratio.
            log_ratio_T, importance_T = log_ratio_T + importance_T.clamp(min=MIN_VESPO_RATIO).log(), None
    zeros_B = logp_T.new_zeros(edges.num_rows)
    log_ratio_B = sums_by_row(zeros_B, row_M, torch.where(counted_M, log_ratio_T[edge_M], 0.0))
    if not product:
        log_ratio_B = log_ratio_B / zeros_B.index_add(0, row_M, counted_M.to(zeros_B)).clamp(min=1)
    return Terms(
        log_ratio_B[row_M],
        logp_T[edge_M],
        weight_M * advantage_M.clamp(min=0),
        weight_M * advantage_M.clamp(max=0),
        None if importance_T is None else importance_T[edge_M],
    )


def sums_by_row(zeros_B: Tensor, row_M: Tensor, value_M: Tensor) -> Tensor:
    """Sums of the values of each row, in a fixed order; differentiable."""
    if value_M.device.type == "cuda":  # sorts, where `index_add` would add in any order
        return zeros_B.index_put((row_M,), value_M, accumulate=True)
    return zeros_B.index_add(0, row_M, value_M)


def evaluate_surrogate(logp_T: Tensor, edges: Edges, objective: Objective) -> tuple[Terms, Values]:
    """The surrogate's arguments and its values at `logp_T`; differentiable."""
    terms = surrogate_terms(logp_T, edges, objective)
    return terms, surrogate_of(objective.surrogate)(ratio_of(terms.log_ratio), terms.logp)


def surrogate_loss(terms: Terms, values: Values) -> Tensor:
    """0-dim: minus the advantage-weighted surrogate."""
    value = terms.a_pos * values.plus + terms.a_neg * values.minus
    return -(value if terms.importance is None else value * terms.importance).sum()


def _kl(logp_T: Tensor, edges: Edges, objective: Objective) -> Tensor:
    """[T] KL estimates; 0 where nothing contributes."""
    assert edges.ref_logp_T is not None
    active_T = active_edges(edges)
    log_ratio_T = torch.where(active_T, logp_T, 0.0) - torch.where(active_T, edges.ref_logp_T, 0.0)
    return KLS[objective.kl](log_ratio_T)


def ties_kl(objective: Objective) -> bool:
    """Whether the KL penalty ties the edges of a row together: multiplied by a sequence's ratio."""
    return bool(objective.kl_coef) and objective.kl_times_ratio and objective.ratio == "sequence"


def tied_kl_loss(terms: Terms, logp_T: Tensor, edges: Edges, objective: Objective) -> Tensor:
    """0-dim: the KL penalty where it multiplies the ratios of `terms`, per (edge, member) pair."""
    assert edges.member_ptr_T1 is not None
    assert edges.member_weight_M is not None
    edge_M = torch.repeat_interleave(edges.member_ptr_T1.diff(), output_size=len(edges.member_weight_M))
    kl_M = _kl(logp_T, edges, objective)[edge_M]
    return objective.kl_coef * (edges.member_weight_M * kl_M * ratio_of(terms.log_ratio)).sum()


def penalty_loss(logp_T: Tensor, entropy_T: Tensor, edges: Edges, objective: Objective) -> Tensor:
    """0-dim: KL penalty (unless `ties_kl`) minus entropy bonus; each edge on its own."""
    loss = logp_T.new_zeros(())
    if objective.kl_coef and not ties_kl(objective):
        kl_T = _kl(logp_T, edges, objective)
        if objective.kl_times_ratio:
            kl_T = kl_T * ratio_of(_token_log_ratio(logp_T, edges)[1])
        loss = loss + objective.kl_coef * (edges.weight_T * kl_T).sum()
    if objective.entropy_coef:
        safe_T = torch.where(active_edges(edges), entropy_T, 0.0)
        loss = loss - objective.entropy_coef * (edges.weight_T * safe_T).sum()
    return loss


def tied_loss(logp_T: Tensor, edges: Edges, objective: Objective) -> Tensor:
    """0-dim: what ties the edges of a row together under sequence ratios; the rest is `penalty_loss`."""
    terms, values = evaluate_surrogate(logp_T, edges, objective)
    loss = surrogate_loss(terms, values)
    return loss + tied_kl_loss(terms, logp_T, edges, objective) if ties_kl(objective) else loss
