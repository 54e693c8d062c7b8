"""GRPO losses on padded batches, from logits or from log-probabilities that are already there.

Dimension key: B sequences, L positions of each, V vocabulary, K reward channels, T = B L positions.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_floating, check_tensors, shows_nan
from g2rpo_kernels.group_advantage import Scale, check_finite_rewards, group_advantage
from g2rpo_kernels.logprob import logprob
from g2rpo_kernels.logprob.checks import Impl, check_index
from g2rpo_kernels.padded.batch import NumItems, checked_batch
from g2rpo_kernels.padded.options import GRPOOptions
from g2rpo_kernels.padded.problem import Problem, problem_loss, problem_of
from g2rpo_kernels.policy_loss import policy_loss
from g2rpo_kernels.policy_loss.records import PolicyLoss

DEFAULTS = GRPOOptions()


class PaddedLoss(NamedTuple):
    """Loss (differentiable, 0-dim) and what was seen on the way, detached."""

    loss: Tensor
    logp_BL: Tensor
    """Of all positions, counted or not."""
    entropy_BL: Tensor
    stats: dict[str, tuple[Tensor, Tensor]]
    """name -> (sum, count), as of `policy_loss`: add over micro-batches and ranks, divide once."""


def grpo_loss(
    logits: Tensor,
    completion_ids: Tensor,
    mask: Tensor,
    *,
    advantages: Tensor | None = None,
    rewards: Tensor | None = None,
    group_size: int | None = None,
    scale_rewards: Scale = "group",
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    num_items_in_batch: NumItems = None,
    options: GRPOOptions = DEFAULTS,
    temperature: float = 1.0,
    softcap: float | None = None,
    overwrite_logits: bool = False,
    impl: Impl | None = None,
) -> PaddedLoss:
    """TRL's GRPO loss of a padded batch, for each of its loss types.

    Args:
        logits: [B, L, V] floating, row t predicting `completion_ids[:, t]`; the only differentiable argument.
            Leading dimensions that do not flatten into a view are copied.
        completion_ids: [B, L] int64 or int32; in [0, V) where counted.
        mask: [B, L]; nonzero = counted. What stands elsewhere, NaN included, has no influence (though a row
            of NaN logits may have a gradient of NaN), but for vespo's importance ratios and with
            options.luspo_over_padding.
        advantages: [B], or [B, L] for one per token, floating; or instead of them
        rewards: [B] or [B, K] floating, of which `group_advantage` makes them (channels summed), in
            consecutive groups of
        group_size: sequences; B is a multiple of it.
        scale_rewards: as `group_advantage`'s `scale`.
        old_logp: [B, L] under the policy before this batch's first step; None = on-policy, ratio 1.
        ref_logp: [B, L] under the reference policy; wanted if and only if options.beta is not 0.
        importance_ratio: [B], [B, 1] or [B, L], >= 0: multiplies the surrogate, not KL and entropy (engine
            mismatch; or a mask of the policy term). vespo takes it into its sequence's ratio: the product
            over all L positions, as TRL and Liger-Kernel do, so it has to be 1 where the mask is 0 (as TRL's
            is; NaN there counts as 1); one per sequence counts once.
        num_items_in_batch: counted tokens of all micro-batches and ranks, which dapo, cispo and vespo divide
            by; above 0 if any are; None = those of this batch on all ranks.
        options: which loss (see `GRPOOptions`).
        temperature, softcap, impl: as in `policy_loss`.
        overwrite_logits: as in `policy_loss`; not where KL and an entropy bonus are both on.

    Returns:
        `PaddedLoss(loss, logp_BL, entropy_BL, stats)`.

    Raises:
        ValueError, naming the argument: shapes, dtypes or devices that do not fit, a DTensor, a tensor on
            `meta`; not exactly one of advantages and rewards; B not a multiple of group_size; ref_logp
            missing; as `policy_loss`. On the CPU, outside `torch.compile`, also values at counted positions:
            advantages, rewards, old and reference log-probabilities that are not finite, importance ratios
            below 0 or not finite, num_items_in_batch of 0 or less, tokens outside the vocabulary. Elsewhere,
            where asking would wait for the device, such a value makes the loss NaN (a token is reported by
            indexing). A number, as opposed to a tensor, is always checked. Logits of NaN are a loss of NaN.
    """
    check_tensors({"logits": logits, "completion_ids": completion_ids, "mask": mask})
    check_floating({"logits": logits})
    if completion_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"completion_ids: wanted int64 or int32, got {completion_ids.dtype}")
    if logits.dim() != 3 or completion_ids.shape != logits.shape[:2] or mask.shape != logits.shape[:2]:
        raise ValueError(
            "logits, completion_ids, mask: wanted [B, L, V], [B, L] and [B, L],"
            f" got {list(logits.shape)}, {list(completion_ids.shape)} and {list(mask.shape)}"
        )
    problem = _problem(
        mask,
        _advantages(advantages, rewards, group_size, scale_rewards, mask),
        old_logp,
        ref_logp,
        importance_ratio,
        num_items_in_batch,
        options,
    )
    logits_TV = logits.reshape(-1, logits.shape[-1])
    target_T = torch.where(problem.counted_T, completion_ids.reshape(-1), 0)
    check_index("completion_ids", target_T, logits.shape[-1])
    scaling = {"temperature": temperature, "softcap": softcap, "impl": impl}
    if problem.entropy_weight_T is None:
        edges, objective = problem.edges, problem.objective
        out = policy_loss(logits_TV, target_T, edges, objective, overwrite_logits=overwrite_logits, **scaling)
    else:
        logp_T, entropy_T, _ = logprob(logits_TV, target_T, **scaling)
        out = problem_loss(logp_T, entropy_T, problem)
    return _padded(out, mask)


def grpo_loss_of_logps(
    logps: Tensor,
    mask: Tensor,
    *,
    advantages: Tensor,
    entropies: Tensor | None = None,
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    num_items_in_batch: NumItems = None,
    options: GRPOOptions = DEFAULTS,
) -> PaddedLoss:
    """`grpo_loss` for trainers that hand over log-probabilities, as plain PyTorch on [B, L] tensors.

    Args:
        logps: [B, L] floating log-probabilities of the completions; differentiable.
        entropies: [B, L], differentiable; wanted with options.entropy_coef, else metrics only (None = 0).
        The others: as in `grpo_loss`.

    Raises:
        ValueError: as `grpo_loss`; entropies missing. `logps` of NaN are a loss of NaN.
    """
    given = {"logps": logps, "entropies": entropies}
    check_tensors({"mask": mask, **given})
    check_floating(given)
    for name, value in given.items():
        if value is not None and value.shape != mask.shape:
            raise ValueError(f"{name}: wanted {list(mask.shape)}, as mask is, got {list(value.shape)}")
    if options.entropy_coef and entropies is None:
        raise ValueError(f"entropies: wanted with entropy_coef={options.entropy_coef}, got None")
    problem = _problem(mask, advantages, old_logp, ref_logp, importance_ratio, num_items_in_batch, options)
    entropy_BL = torch.zeros_like(logps) if entropies is None else entropies
    return _padded(problem_loss(logps.reshape(-1), entropy_BL.reshape(-1), problem), mask)


def _problem(
    mask: Tensor,
    advantages: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    importance_ratio: Tensor | None,
    num_items: NumItems,
    options: GRPOOptions,
) -> Problem:
    """On all B L positions: the logits are there, and picking rows of them would copy them."""
    if (ref_logp is None) != (options.beta == 0):
        got = "None" if ref_logp is None else "a tensor"
        raise ValueError(f"ref_logp: wanted if and only if beta is not 0, got {got} with beta={options.beta}")
    batch = checked_batch(mask, advantages, old_logp, ref_logp, importance_ratio, num_items)
    return problem_of(batch, options)


def _advantages(
    advantages: Tensor | None, rewards: Tensor | None, group_size: int | None, scale: Scale, mask: Tensor
) -> Tensor:
    if (advantages is None) == (rewards is None):
        raise ValueError("advantages, rewards: wanted one of them, got both or none")
    if advantages is not None:
        return advantages
    assert rewards is not None
    check_tensors({"mask": mask, "rewards": rewards})
    check_floating({"rewards": rewards})
    if rewards.dim() not in (1, 2) or len(rewards) != len(mask):
        raise ValueError(f"rewards: wanted [{len(mask)}] or [{len(mask)}, K], got {list(rewards.shape)}")
    if scale not in get_args(Scale):
        raise ValueError(f"scale_rewards: wanted one of {get_args(Scale)}, got {scale!r}")
    if group_size is None or group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"group_size: wanted a divisor of {len(rewards)} sequences, got {group_size}")
    group_B = torch.arange(len(rewards), device=rewards.device) // group_size
    reward_BK = rewards[:, None] if rewards.dim() == 1 else rewards
    if shows_nan(reward_BK):
        check_finite_rewards("rewards", reward_BK)
    return group_advantage(reward_BK, group_B, scale=scale)


def _padded(out: PolicyLoss, mask: Tensor) -> PaddedLoss:
    return PaddedLoss(out.loss, out.logp_T.view(mask.shape), out.entropy_T.view(mask.shape), out.stats)
