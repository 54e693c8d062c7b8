"""Row arithmetic of the CPU paths: statistics of a block of logits, and d loss / d logits over it, in place.

Blocks are a few rows, about 1 MiB, so every pass after the first stays in the cache. With z centred on its
row maximum, every term of s = sum exp(z) and of H = log s - sum(exp(z) z) / s has one sign: nothing cancels.
For upstream gradients c = dL/dlogp, e = dL/dH and g = dL/dlse,

    dL/dz_v = c (1[v = target] - p_v) - e p_v (log p_v + H) + g p_v

and the target's own column is computed apart, through expm1(logp): 1 - p would cancel for confident rows.

Dimension key: C rows of a block, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from g2rpo_kernels.logprob.partials import FLOOR, RowPartials

TILE_BYTES = 1 << 20


class RowStats(NamedTuple):
    """lse = max + log_sum; apart, they lose nothing to a shift of the logits."""

    logp_C: Tensor
    entropy_C: Tensor
    max_C: Tensor
    log_sum_C: Tensor

    def rows(self, rows: slice | Tensor) -> RowStats:
        return RowStats(*(value_C[rows] for value_C in self))


class RowGradients(NamedTuple):
    """What arrives from above for each row; None = zero for all."""

    c_C: Tensor
    e_C: Tensor | None = None
    g_C: Tensor | None = None

    def rows(self, rows: slice | Tensor) -> RowGradients:
        e_C, g_C = (None if value_C is None else value_C[rows] for value_C in self[1:])
        return RowGradients(self.c_C[rows], e_C, g_C)


def empty_stats(num_rows: int, dtype: torch.dtype) -> RowStats:
    """Four tensors: results of an operator may not share memory."""
    return RowStats(*(torch.empty(num_rows, dtype=dtype) for _ in range(4)))


def tiles(num_rows: int, row_bytes: int) -> list[slice]:
    """Consecutive blocks of rows that fit the cache."""
    step = max(1, TILE_BYTES // row_bytes)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def squash_(z_CV: Tensor, softcap: float | None) -> Tensor:
    """Raw logits to "held" logits, in place: with a softcap tanh(z / softcap), whose slope is exact."""
    return z_CV if softcap is None else z_CV.div_(softcap).tanh_()


def _effective_(z_CV: Tensor, temperature: float, softcap: float | None) -> Tensor:
    """Held logits to effective logits, in place."""
    divisor = row_divisor(temperature, softcap)
    return z_CV if divisor == 1.0 else z_CV.div_(divisor)


def row_divisor(temperature: float, softcap: float | None) -> float:
    return temperature if softcap is None else temperature / softcap


def row_partials(
    held_CV: Tensor,
    target_C: Tensor,
    temperature: float,
    softcap: float | None,
    *,
    keep_exp: bool = False,
    some_elsewhere: bool = False,
    scratch_CV: Tensor | None = None,
) -> RowPartials:
    """Sums of a block of held logits; leaves them as they are, or with `keep_exp` as `sweeps` says.

    With `some_elsewhere` a target of -1 is no column of this block. A `scratch_CV` kept from block to block
    spares the heap the holes that temporaries of this size leave between smaller tensors.
    """
    divisor = row_divisor(temperature, softcap)
    if keep_exp:
        z_CV = _effective_(held_CV, temperature, softcap)
    else:
        z_CV = held_CV if divisor == 1.0 else held_CV / divisor
    max_C = z_CV.amax(-1)
    target_C1 = target_C[:, None].clamp(min=0) if some_elsewhere else target_C[:, None]
    target_logit_C1 = z_CV.gather(1, target_C1)
    below_CV = torch.sub(z_CV, max_C[:, None], out=scratch_CV).clamp_(min=FLOOR)
    exp_CV = torch.exp(below_CV, out=held_CV) if keep_exp else below_CV.exp()
    if some_elsewhere:
        elsewhere_C1 = target_C[:, None] < 0
        kept_C1 = torch.where(elsewhere_C1, exp_CV.gather(1, target_C1), 0.0)
        target_logit_C1 = target_logit_C1.masked_fill(elsewhere_C1, -torch.inf)
        exp_CV.scatter_(1, target_C1, kept_C1)
    else:
        exp_CV.scatter_(1, target_C1, 0.0)
    rest_C = exp_CV.sum(-1)
    moment_C = below_CV.mul_(exp_CV).sum(-1)
    if keep_exp:
        exp_CV.scatter_(1, target_C1, -rest_C[:, None])
    return RowPartials(max_C, rest_C, moment_C, target_logit_C1.squeeze(1))


def finish_stats(partials: RowPartials) -> RowStats:
    """The target is added last: where it is the maximum, its term 1, log1p keeps the digits of the rest."""
    below_C = partials.target_logit_T - partials.max_T
    bounded_C = below_C.clamp(min=FLOOR)
    at_target_C = bounded_C.exp()
    log_sum_C = torch.log1p(partials.sumexp_T + (at_target_C - 1))
    moment_C = partials.sum_z_exp_T + at_target_C * bounded_C
    entropy_C = log_sum_C - moment_C * torch.exp(-log_sum_C)
    return RowStats(below_C - log_sum_C, entropy_C, partials.max_T, log_sum_C)


def dlogits_(
    z_CV: Tensor,
    target_C: Tensor,
    stats: RowStats,
    upstream: RowGradients,
    temperature: float,
    softcap: float | None,
    some_elsewhere: bool = False,
) -> Tensor:
    """Held logits to d loss / d raw logits, in place. With `some_elsewhere` a target of -1 is no column."""
    slope_CV = None if softcap is None else 1 - z_CV.square()
    scale_C, at_target_C, e_C = row_factors(stats, upstream, temperature)
    _effective_(z_CV, temperature, softcap)
    z_CV.sub_(stats.max_C[:, None]).clamp_(min=FLOOR).sub_(stats.log_sum_C[:, None])
    if e_C is None:
        z_CV.exp_().mul_(scale_C[:, None])
    else:
        p_CV = z_CV.exp()
        z_CV.mul_(-e_C[:, None]).add_(scale_C[:, None]).mul_(p_CV)
    column_C1, value_C1 = target_C[:, None], at_target_C[:, None]
    if some_elsewhere:
        column_C1 = column_C1.clamp(min=0)
        value_C1 = torch.where(target_C[:, None] < 0, z_CV.gather(1, column_C1), value_C1)
    z_CV.scatter_(1, column_C1, value_C1)
    return z_CV if slope_CV is None else z_CV.mul_(slope_CV)


def exp_factors(stats: RowStats, upstream: RowGradients, temperature: float) -> Tensor:
    """[C] what turns rows left by `keep_exp` into d loss / d logits: -c / s; the gradient is of logp alone.

    With s = rest + exp(z_target - max), dL/dz_v = c (1[v = target] - p_v) is -c / s times exp(z_v - max), and
    times -rest at the target: nothing cancels.
    """
    assert upstream.e_C is None
    assert upstream.g_C is None
    return upstream.c_C * torch.exp(-stats.log_sum_C) / -temperature


def row_factors(
    stats: RowStats, upstream: RowGradients, temperature: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """k, the target's column and e of dz_v = p_v (k - e log p_v), all divided by the temperature."""
    logp_C = stats.logp_C.clamp(min=FLOOR)
    c_C = upstream.c_C / temperature
    scale_C, at_target_C = -c_C, -c_C * torch.expm1(logp_C)
    if upstream.g_C is not None:
        g_C = upstream.g_C / temperature
        scale_C, at_target_C = scale_C + g_C, at_target_C + g_C * logp_C.exp()
    if upstream.e_C is None:
        return scale_C, at_target_C, None
    e_C = upstream.e_C / temperature
    at_target_C = at_target_C - e_C * logp_C.exp() * (logp_C + stats.entropy_C)
    return scale_C - e_C * stats.entropy_C, at_target_C, e_C
