"""The metrics that Liger-Kernel's fused GRPO returns, and the entropy: means over the counted positions.

Dimension key: T kept positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.padded.options import GRPOOptions
from g2rpo_kernels.padded.problem import Problem
from g2rpo_kernels.policy_loss.kl import KLS
from g2rpo_kernels.policy_loss.objective import surrogate_terms
from g2rpo_kernels.policy_loss.records import Objective, PolicyLoss
from g2rpo_kernels.policy_loss.surrogates import ratio_of


@torch.no_grad()
def liger_metrics(out: PolicyLoss, problem: Problem, options: GRPOOptions) -> tuple[Tensor, Tensor, Tensor]:
    """(KL, entropy, clipped fraction), 0-dim. The KL is times the ratio where the loss has it so."""
    counted_T, dtype = problem.counted_T, out.logp_T.dtype
    edges = problem.edges.cast(dtype, out.logp_T.device)
    count = counted_T.sum().clamp(min=1)

    def mean(value_T: Tensor) -> Tensor:
        return torch.where(counted_T, value_T, 0.0).sum() / count

    ratio_T = ratio_of(surrogate_terms(out.logp_T, edges, _level(options)).log_ratio)
    low, high = _bounds(options)
    advantage_T = problem.advantage_T
    clipped_T = ((ratio_T < low) & (advantage_T < 0)) | ((ratio_T > high) & (advantage_T > 0))
    kl = out.logp_T.new_zeros(())
    if edges.ref_logp_T is not None:
        kl_T = KLS["k3"](out.logp_T - edges.ref_logp_T)
        kl = mean(kl_T * ratio_T if options.use_bias_correction_kl else kl_T)
    return kl, mean(out.entropy_T), mean(clipped_T.to(dtype))


def _level(options: GRPOOptions) -> Objective:
    """Any objective whose ratios are those of `importance_sampling_level` (vespo's own have no metric)."""
    return Objective(ratio=options.importance_sampling_level)


def _bounds(options: GRPOOptions) -> tuple[float, float]:
    """Ratios outside are clipped, whatever `delta` does on the other side."""
    if options.loss_type in ("sapo", "vespo"):
        return -torch.inf, torch.inf
    if options.loss_type == "cispo":
        return -torch.inf, options.epsilon_high
    return 1 - options.epsilon_low, 1 + options.epsilon_high
