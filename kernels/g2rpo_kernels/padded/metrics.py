"""The metrics that Liger-Kernel's fused GRPO returns, and the entropy: means over the counted positions.

Dimension key: T kept positions, M entries of the ratio (counted positions).
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2rpo_kernels.padded.options import SURROGATE, GRPOOptions
from g2rpo_kernels.padded.problem import Problem
from g2rpo_kernels.policy_loss.objective import surrogate_terms
from g2rpo_kernels.policy_loss.records import Objective, PolicyLoss
from g2rpo_kernels.policy_loss.surrogates import KLS, ratio_of


@torch.no_grad()
def liger_metrics(out: PolicyLoss, problem: Problem, options: GRPOOptions) -> tuple[Tensor, Tensor, Tensor]:
    """(KL, entropy, clipped fraction), 0-dim. The KL is times the ratio where the loss has it so."""
    counted_T, dtype = problem.counted_T, out.logp_T.dtype
    edges = problem.edges.cast(dtype, out.logp_T.device)
    count = counted_T.sum().clamp(min=1)
    ratio_M = ratio_of(surrogate_terms(out.logp_T, edges, _level(options)).log_ratio)
    if not options.by_sequence:
        ratio_M = ratio_M[counted_T]
    advantage_M = problem.advantage_T[counted_T]
    low, high = _bounds(options)
    clipped_M = ((ratio_M < low) & (advantage_M < 0)) | ((ratio_M > high) & (advantage_M > 0))
    kl = out.logp_T.new_zeros(())
    if edges.ref_logp_T is not None:
        kl_M = KLS["k3"](out.logp_T - edges.ref_logp_T)[counted_T]
        kl = (kl_M * ratio_M if options.use_bias_correction_kl else kl_M).sum() / count
    return kl, out.entropy_T[counted_T].sum() / count, clipped_M.sum().to(dtype) / count


def _level(options: GRPOOptions) -> Objective:
    """Any objective whose ratios are those of `importance_sampling_level` (vespo's own have no metric)."""
    return Objective(ratio=options.importance_sampling_level)


def _bounds(options: GRPOOptions) -> tuple[float, float]:
    """Ratios outside are clipped, whatever `delta` does on the other side."""
    bounds = {
        "clip": (1 - options.epsilon_low, 1 + options.epsilon_high),
        "cispo": (-torch.inf, options.epsilon_high),
    }
    return bounds.get(SURROGATE[options.loss_type], (-torch.inf, torch.inf))
