"""The engine's log-probabilities against the trainer's: importance weights of sequences, and the mismatch.

For a token that the engine sampled, log w = old_logp - rollout_logp; others have no say.

    token       w_t                       a kernel's part of the loss: nothing to do here
    sequence    exp(sum_t log w_t)        TRL's and verl's; its spread grows with the root of the length
    geometric   exp(mean_t log w_t)       GSPO's ratio (arXiv 2507.18071), at home in a narrow band around 1

Truncated (https://fengyao.notion.site/off-policy-rl) or masked (https://richardli.xyz/rl-collapse). A row's
weight multiplies the advantage of each of its members, so of shared edges only its own share.

Dimension key: T trained edges, M (edge, member) pairs, B rows of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from g2rpo_kernels import Edges, edge_coefficients
from g2rpo_kernels.policy_loss.objective import sums_by_row
from torch import Tensor

from g2rpo_fast.objective.config import ObjectiveConfig
from g2rpo_fast.types import Floats, TreePlan

_MAX_LOG_WEIGHT = 20.0
"""Log-weights are clamped to +-20 before exp, as in the kernels."""


@dataclass(frozen=True)
class EngineTokens:
    """What the engine reported for the members of a micro-batch's edges, float64 on the edges' device."""

    rollout_logp_M: Tensor
    sampled_M: Tensor
    """bool: sampled, and with a part in the loss."""
    edge_M: Tensor
    row_M: Tensor
    num_rows: int


def engine_tokens(plan: TreePlan, edges: Edges, rollout_logp_N: Floats) -> EngineTokens:
    """`rollout_logp_N` runs along the tokens of the batch that `plan` indexes; NaN = not sampled."""
    assert edges.member_ptr_T1 is not None
    assert edges.member_row_M is not None
    assert edges.member_weight_M is not None
    rollout_logp_M = torch.tensor(rollout_logp_N[plan.member_M], dtype=torch.float64).to(
        edges.weight_T.device
    )
    return EngineTokens(
        rollout_logp_M=rollout_logp_M,
        sampled_M=~rollout_logp_M.isnan() & (edges.member_weight_M != 0),
        # The size is given: finding it out would stall the device.
        edge_M=torch.repeat_interleave(edges.member_ptr_T1.diff(), output_size=len(rollout_logp_M)),
        row_M=edges.member_row_M,
        num_rows=edges.num_rows,
    )


class Comparison(NamedTuple):
    """Sums of a micro-batch, on its device; `mismatch_metrics` takes them all to the host at once."""

    sums_Q: Tensor
    """float64: sampled tokens, |log w|, k3; then of the raw weights their number, sum and sum of squares; of
    the weights as used sum, sum of squares, and how many were out of bounds."""
    max_abs: Tensor
    weight_M: Tensor
    """Of each member, or of its row, as used; 1 without importance weights."""


def compare(old_logp_T: Tensor, tokens: EngineTokens, config: ObjectiveConfig) -> Comparison:
    """`old_logp_T` are the trainer's, under the weights that the update starts from."""
    sampled = tokens.sampled_M
    log_weight_M = old_logp_T.double()[tokens.edge_M] - tokens.rollout_logp_M
    log_weight_M = log_weight_M.masked_fill(~sampled, 0.0)
    k3_M = torch.expm1(log_weight_M.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)) - log_weight_M
    num_B = log_weight_M.new_zeros(tokens.num_rows).index_add(0, tokens.row_M, sampled.double())
    raw, counted = log_weight_M, sampled
    by_row = config.importance_level in ("sequence", "geometric")
    if by_row:
        raw, counted = sums_by_row(torch.zeros_like(num_B), tokens.row_M, log_weight_M), num_B > 0
        if config.importance_level == "geometric":
            raw = raw / num_B.clamp(min=1)
    raw = raw.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT).exp()
    used, outside = _bounded(raw, config)
    sums = (sampled, log_weight_M.abs(), k3_M, counted, raw * counted, raw.square() * counted)
    sums += (used * counted, used.square() * counted, outside & counted)
    return Comparison(
        sums_Q=torch.stack([value.double().sum() for value in sums]),
        max_abs=torch.cat([log_weight_M.abs(), log_weight_M.new_zeros(1)]).amax(),
        weight_M=used[tokens.row_M] if by_row else used,
    )


def _bounded(raw: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """(weights as they are used, which raw ones lie outside the bounds)."""
    low, cap = config.importance_bounds
    outside = (raw < low) | (raw > cap)
    if config.importance_level == "none":
        return torch.ones_like(raw), torch.zeros_like(outside)
    return raw.masked_fill(outside, 0.0) if config.importance_masks else raw.clamp(low, cap), outside


def weighted(edges: Edges, weight_M: Tensor) -> Edges:
    """Each member's advantage times its weight: in the surrogate, not in KL and entropy."""
    assert edges.member_ptr_T1 is not None
    assert edges.member_advantage_M is not None
    assert edges.member_weight_M is not None
    advantage_M = edges.member_advantage_M * weight_M
    a_pos_T, a_neg_T, _ = edge_coefficients(advantage_M, edges.member_weight_M, edges.member_ptr_T1)
    return edges._replace(a_pos_T=a_pos_T, a_neg_T=a_neg_T, member_advantage_M=advantage_M)


def mismatch_metrics(parts: Sequence[Comparison], config: ObjectiveConfig) -> dict[str, float]:
    """Engine against trainer over the sampled tokens of a step that carry loss; NaN where there are none,
    or where it sampled under top-p or top-k: its log-probabilities are then of another distribution.

    mean_abs, max_abs: |log w| in nats. k3: estimate of KL(engine || trainer) in nats. ess_raw, ess: effective
    sample size (sum w)^2 / (n sum w^2) of the weights at their level (of tokens without importance weights),
    before and after the bounds; outside: share of weights out of them.
    """
    names = ["mean_abs", "max_abs", "k3", "ess_raw"] + ["ess", "outside"] * (config.importance != "none")
    values = dict.fromkeys(names, math.nan)
    if parts:
        sums_Q = torch.stack([part.sums_Q for part in parts]).sum(0)
        max_abs = torch.stack([part.max_abs for part in parts]).amax()
        num, total_abs, total_k3, *weights, largest = torch.cat([sums_Q, max_abs[None]]).tolist()
        if num:
            count, raw, raw_squares, used, used_squares, outside = weights
            values |= {"mean_abs": total_abs / num, "max_abs": largest, "k3": total_k3 / num}
            values |= {"ess_raw": raw**2 / (count * raw_squares), "outside": outside / count}
            values |= {"ess": used**2 / (count * used_squares) if used_squares else 0.0}
    return {f"mismatch/{name}": values[name] for name in names}
