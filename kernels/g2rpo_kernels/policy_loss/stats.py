"""Metrics of a policy loss, as (sum, count) pairs: added over micro-batches and ranks, divided once.

Averages are over the surrogate's entries with a coefficient: edges, or (edge, member) pairs for sequence
ratios.

Dimension key: T trained edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.policy_loss.kl import KLS
from g2rpo_kernels.policy_loss.objective import Terms, active_edges, bounded_importance, log_importance
from g2rpo_kernels.policy_loss.records import Edges, Objective
from g2rpo_kernels.policy_loss.surrogates import Values, ratio_of

Stats = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def policy_stats(
    logp_T: Tensor,
    entropy_T: Tensor,
    terms: Terms,
    values: Values,
    edges: Edges,
    objective: Objective,
) -> Stats:
    """See `policy_loss` for the names. Tensors are 0-dim, in the dtype of `logp_T`."""
    active_T = active_edges(edges)
    stats = {"entropy": _mean(entropy_T, active_T), "logp": _mean(logp_T, active_T)}
    stats |= _ratio_stats(terms, values)
    if edges.ref_logp_T is not None:
        stats["kl"] = _mean(KLS[objective.kl](logp_T - edges.ref_logp_T), active_T)
    if edges.rollout_logp_T is not None:
        stats |= _importance_stats(logp_T, edges, objective)
    return stats


def _ratio_stats(terms: Terms, values: Values) -> Stats:
    used = (terms.a_pos != 0) | (terms.a_neg != 0)
    stats = {
        "ratio": _mean(ratio_of(terms.log_ratio), used),
        "approx_kl": _mean(KLS["k3"](-terms.log_ratio), used),
    }
    if values.clipped_plus is not None and values.clipped_minus is not None:
        clipped = ((terms.a_pos != 0) & values.clipped_plus) | ((terms.a_neg != 0) & values.clipped_minus)
        stats["clipped"] = _mean(clipped.to(terms.logp.dtype), used)
    return stats


def _importance_stats(logp_T: Tensor, edges: Edges, objective: Objective) -> Stats:
    assert edges.rollout_logp_T is not None
    sampled_T = active_edges(edges) & ~edges.rollout_logp_T.isnan()
    raw_T = log_importance(logp_T, edges).exp()
    stats = {"importance_raw": _mean(raw_T, sampled_T)}
    if objective.importance_cap is not None:
        used_T, outside_T = bounded_importance(raw_T, objective)
        stats["importance"] = _mean(used_T, sampled_T)
        stats["importance_outside"] = _mean(outside_T.to(raw_T.dtype), sampled_T)
    return stats


def _mean(value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(mask, value, 0.0).sum(), mask.sum().to(value.dtype)
