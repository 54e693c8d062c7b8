"""Which objectives the fused kernels have: their surrogates are twins of those in `surrogates.py`.

The others are plain PyTorch on the log-probabilities of `logprob` and `linear_logprob`, on any device.
"""

from __future__ import annotations

from g2rpo_kernels.policy_loss.records import Objective

FUSED_SURROGATES = ("clip", "cispo", "sapo", "reinforce")
FUSED_RATIOS = ("token", "sequence")


def is_fused(objective: Objective) -> bool:
    """Whether the Triton implementations have every piece of `objective`."""
    corrected_kl = bool(objective.kl_coef) and objective.kl_times_ratio
    pieces = objective.surrogate in FUSED_SURROGATES and objective.ratio in FUSED_RATIOS
    return pieces and not corrected_kl


def check_fused(objective: Objective) -> None:
    """Raise ValueError naming what the Triton implementations do not have."""
    if not is_fused(objective):
        raise ValueError(
            f"impl='triton': wanted a surrogate of {FUSED_SURROGATES} with a ratio of {FUSED_RATIOS} and no"
            f" kl_times_ratio, got {objective.surrogate!r}, {objective.ratio!r},"
            f" kl_times_ratio={objective.kl_times_ratio}; impl='reference' has all"
        )
