"""Row statistics as partial sums, which shards of a vocabulary combine.

    m = max z,   rest = sum_{v != target} exp(z_v - m),   moment = sum_{v != target} (z_v - m) exp(z_v - m)

Shards: M = max over shards of m; rest and moment relative to M (`rebased`) add; the target's logit is the
maximum over shards (-inf where it is not). `finished` makes logp, entropy and lse of them.

Dimension key: T rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

FLOOR = -1e4
"""exp(FLOOR) is 0 in float32 and float64, and 0 * FLOOR is 0 where 0 * -inf is NaN."""


class RowPartials(NamedTuple):
    """float64, [T] each."""

    max_T: Tensor
    """Largest effective logit, the target's included."""
    sumexp_T: Tensor
    """sum of exp(z - max) over all columns but the target's (all where the target is -1)."""
    sum_z_exp_T: Tensor
    """sum of (z - max) exp(z - max) over the same."""
    target_logit_T: Tensor
    """Effective logit of the target; -inf where it is -1."""

    def rebased(self, max_T: Tensor) -> RowPartials:
        """The same sums relative to another maximum, not below this one."""
        shift_T = (self.max_T - max_T).clamp(min=FLOOR)
        carry_T = shift_T.exp()
        moment_T = (self.sum_z_exp_T + shift_T * self.sumexp_T) * carry_T
        return RowPartials(max_T, self.sumexp_T * carry_T, moment_T, self.target_logit_T)


class RowNumbers(NamedTuple):
    """What a row is, [T] each."""

    logp_T: Tensor
    """float32."""
    entropy_T: Tensor
    """float32."""
    lse_T: Tensor
    """float64: as one float32 it would lose a shift of the logits."""

    def rows(self, rows: slice) -> RowNumbers:
        return RowNumbers(*(value_T[rows] for value_T in self))


def finished(partials: RowPartials) -> RowNumbers:
    """logp, entropy, lse; in float64 inside, so that confident rows keep their digits."""
    max_T, rest_T, moment_T, target_T = (value_T.double() for value_T in partials)
    below_T = target_T - max_T
    bounded_T = below_T.clamp(min=FLOOR)
    at_target_T = bounded_T.exp()
    total_T = rest_T + at_target_T
    log_total_T = total_T.log()
    entropy_T = log_total_T - (moment_T + bounded_T * at_target_T) / total_T
    return RowNumbers((below_T - log_total_T).float(), entropy_T.float(), max_T + log_total_T)
