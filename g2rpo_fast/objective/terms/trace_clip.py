"""A clipped ratio of the discounted history of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Gt, Le
from g2rpo_fast.objective.terms.clip import Clip
from g2rpo_fast.objective.terms.rows import bounded, log_ratio, padded_rows
from g2rpo_fast.pieces import Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TraceClip(Clip):
    """As `clip`, of r_t = exp(sum over j <= t of tr(t, j) l_j), l_j the log-ratio of the row's token j.

    recent: tr(t, j) = decay^(t - j); both: the larger of decay^(t - j) and decay^j. Trained tokens count from
    0. On the first pass, on-policy, the gradient is that of the advantage A sum over t >= j of tr(t, j): so
    early tokens weigh most.
    GRPO-lambda (arXiv 2510.00194), decay = gamma lambda. Evidence: notes.
    """

    use = "trace_clip"
    ratio: Literal["token"] = "token"
    """No other: the trace is one of its own."""
    decay: Annotated[float, Gt(0), Le(1)] = 0.99
    """gamma lambda; 1 = all of the history counts in full."""
    trace: Literal["recent", "both"] = "both"
    """Which earlier tokens count most."""

    @property
    def ties(self) -> Ties:
        return "row"

    def log_ratio(self, logp_N: Tensor, tokens: Tokens) -> Tensor:
        log_ratio_N = bounded(log_ratio(logp_N, tokens.old_logp_N, tokens))
        rows = padded_rows(log_ratio_N, tokens)
        history_RL = discounted(rows.value_RL, self.decay)
        if self.trace == "both":
            history_RL = history_RL + _beginning(rows.value_RL, history_RL, self.decay)
        return rows.flat(history_RL)

    def kernel(self) -> None:
        return None


def discounted(value_RL: Tensor, decay: float) -> Tensor:
    """[R, L] sum over j <= t of decay^(t - j) value_j, by doubling: log2 L additions of whole rows."""
    from torch.nn.functional import pad

    step, length = 1, value_RL.shape[1]
    while step < length:
        before_RL = pad(value_RL[:, :-step], (step, 0))
        value_RL = value_RL + decay**step * before_RL
        step *= 2
    return value_RL


def _beginning(value_RL: Tensor, history_RL: Tensor, decay: float) -> Tensor:
    """What `both` adds to `recent`: of j <= t / 2, decay^j in place of decay^(t - j)."""
    import torch

    place_L = torch.arange(value_RL.shape[1], device=value_RL.device)
    half_L = place_L // 2
    factor_L = decay ** place_L.to(value_RL)
    first_RL = (factor_L * value_RL).cumsum(1)[:, half_L]
    return first_RL - factor_L[place_L - half_L] * history_RL[:, half_L]
