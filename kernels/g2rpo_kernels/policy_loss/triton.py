"""`policy_loss` on Triton: one program per row, from logits to loss, metrics and d logits in one launch.

A program sweeps its row for the statistics, evaluates the edge's loss with c = dL/dlogp and e = dL/dH, and
sweeps again (from the cache, as far as it holds) to write d logits. Token ratios only: others tie rows
together, see `triton_loss.py`; and surrogates with a device function only.

Dimension key: T trained edges, V vocabulary, R rollouts, K reward channels.
"""

# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from g2rpo_kernels.group_advantage.triton_groups import advantage
from g2rpo_kernels.logprob.triton_launch import check_logits, on_device, scaling, tile_for
from g2rpo_kernels.logprob.triton_rows import both, finish_row, row_sums, target_logit, write_dlogits
from g2rpo_kernels.packing import packing
from g2rpo_kernels.policy_loss.records import OBJECTIVE, Edges, Objective
from g2rpo_kernels.policy_loss.surrogates import surrogate_of
from g2rpo_kernels.policy_loss.triton_objective import STAT_ROWS, edge_loss
from g2rpo_kernels.policy_loss.triton_surrogates import at_least, at_most


@triton.jit
def policy_kernel(
    logits_ptr,
    out_ptr,
    target_ptr,
    bias_ptr,
    loss_ptr,
    logp_ptr,
    entropy_ptr,
    c_ptr,
    e_ptr,
    lse_ptr,
    stats_ptr,
    a_pos_ptr,
    a_neg_ptr,
    weight_ptr,
    old_ptr,
    ref_ptr,
    rollout_ptr,
    reward_ptr,
    channel_weight_ptr,
    group_ptr,
    row_ptr,
    num_t,
    num_v,
    num_r,
    num_k,
    stride_t,
    stride_v,
    out_stride_t,
    out_stride_v,
    reward_stride_r,
    reward_stride_k,
    scale: tl.float64,
    inv_softcap: tl.float64,
    inv_temperature: tl.float64,
    eps: tl.float64,
    s0: tl.float64,
    s1: tl.float64,
    s2: tl.float64,
    s3: tl.float64,
    kl_coef: tl.float64,
    entropy_coef: tl.float64,
    importance_cap: tl.float64,
    importance_low: tl.float64,
    SOFTCAP: tl.constexpr,
    SCALE: tl.constexpr,
    SURROGATE: tl.constexpr,
    KL: tl.constexpr,
    PENALTY: tl.constexpr,
    KL_TIMES_RATIO: tl.constexpr,
    ENTROPY: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    weight = tl.load(weight_ptr + t).to(tl.float64)
    if reward_ptr is None:
        a_pos = tl.load(a_pos_ptr + t).to(tl.float64)
        a_neg = tl.load(a_neg_ptr + t).to(tl.float64)
    else:
        own = advantage(
            reward_ptr, channel_weight_ptr, group_ptr, tl.load(row_ptr + t), num_r, num_k,
            reward_stride_r, reward_stride_k, eps, SCALE, BLOCK_R,
        )  # fmt: skip
        a_pos, a_neg = weight * at_least(own, 0.0), weight * at_most(own, 0.0)
    logits_row_ptr = logits_ptr + t * stride_t
    target = tl.load(target_ptr + t).to(tl.int32)
    scale, _ = both(scale)
    inv_softcap, inv_softcap_f32 = both(inv_softcap)
    target_z, target_slope = target_logit(
        logits_row_ptr, bias_ptr, target, stride_v, scale, inv_softcap, SOFTCAP
    )
    m, rest, moment = row_sums(
        logits_row_ptr,
        bias_ptr,
        target,
        num_v,
        stride_v,
        scale,
        inv_softcap_f32,
        SOFTCAP,
        BLOCK_V,
        STAGES,
    )
    logp, entropy, lse = finish_row(m, rest, moment, target_z, scale)
    loss, c, e = edge_loss(
        logp, entropy, a_pos, a_neg, weight, t, num_t, stats_ptr, old_ptr, ref_ptr, rollout_ptr,
        s0, s1, s2, s3, kl_coef, entropy_coef, importance_cap, importance_low,
        SURROGATE, KL, PENALTY, KL_TIMES_RATIO, IMPORTANCE,
    )  # fmt: skip
    tl.store(loss_ptr + t, loss.to(tl.float32))
    tl.store(logp_ptr + t, logp.to(tl.float32))
    tl.store(entropy_ptr + t, entropy.to(tl.float32))
    tl.store(c_ptr + t, c.to(tl.float32))
    tl.store(e_ptr + t, e.to(tl.float32))
    tl.store(lse_ptr + t, lse)
    if out_ptr is not None:
        write_dlogits(
            logits_row_ptr, out_ptr + t * out_stride_t, bias_ptr, target, target_slope,
            logp, lse, entropy,
            c, e, tl.zeros((), tl.float64), num_v, stride_v, out_stride_v,
            scale, inv_softcap_f32, inv_temperature, SOFTCAP, ENTROPY, BLOCK_V, STAGES,
        )  # fmt: skip


BLOCK_R = 128
"""Rollouts per block of a sweep over the rewards."""


class PolicyRows(NamedTuple):
    """Per-edge results, float32, [T] each."""

    loss_T: Tensor
    logp_T: Tensor
    entropy_T: Tensor
    c_T: Tensor
    """d loss / d logp."""
    e_T: Tensor
    """d loss / d entropy."""


class RowInputs(NamedTuple):
    """What a launch reads beside the logits. Either a_pos and a_neg, or rewards with their four."""

    target_T: Tensor
    bias_V: Tensor | None
    a_pos_T: Tensor | None
    a_neg_T: Tensor | None
    weight_T: Tensor
    old_logp_T: Tensor | None
    ref_logp_T: Tensor | None
    rollout_logp_T: Tensor | None
    reward_RK: Tensor | None = None
    channel_weight_K: Tensor | None = None
    group_R: Tensor | None = None
    row_T: Tensor | None = None

    @classmethod
    def of(cls, target_T: Tensor, bias_V: Tensor | None, edges: Edges) -> RowInputs:
        return cls(target_T, bias_V, *edges[:6])

    def on(self, device: torch.device) -> RowInputs:
        """All there, vectors contiguous."""

        def moved(value: Any) -> Any:
            return value if value is None or value.dim() == 2 else value.to(device).contiguous()

        return RowInputs(*map(moved, self))


class RowCall(NamedTuple):
    """All of a launch but the logits and where their gradient goes."""

    inputs: RowInputs
    objective: Objective
    temperature: float
    softcap: float | None
    eps: float = 1.0
    scale: str = "none"
    """As `eps`, of rewards."""


CALL = packing(RowCall, inputs=packing(RowInputs), objective=OBJECTIVE)

Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _empty_rows(logits_TV: Tensor) -> Rows:
    """loss, logp, entropy, c, e, lse, stats_KT."""
    num_rows = logits_TV.shape[0]
    a, b, c, d, e = (logits_TV.new_empty(num_rows, dtype=torch.float32) for _ in range(5))
    lse_T = logits_TV.new_empty(num_rows, dtype=torch.float64)
    return a, b, c, d, e, lse_T, logits_TV.new_empty((len(STAT_ROWS), num_rows), dtype=torch.float32)


def objective_settings(o: Objective) -> dict[str, Any]:
    """A kernel's numbers of an objective, and what it is specialised on."""
    surrogate = surrogate_of(o.surrogate)
    scalars = surrogate.scalars()
    assert scalars is not None
    assert len(scalars) <= 4
    return {
        **{f"s{i}": scalars[i] if i < len(scalars) else 0.0 for i in range(4)},
        "kl_coef": o.kl_coef,
        "entropy_coef": o.entropy_coef,
        "importance_cap": o.importance_cap or 0.0,
        "importance_low": o.importance_low,
        "SURROGATE": surrogate.name,
        "KL": o.kl,
        "PENALTY": o.kl_coef != 0,
        "KL_TIMES_RATIO": o.kl_times_ratio,
        "ENTROPY": o.entropy_coef != 0,
        "IMPORTANCE": "none" if not o.importance_cap else "mask" if o.importance_mask else "truncate",
    }


def _settings(call: RowCall) -> dict[str, Any]:
    rewards = {"eps": call.eps, "SCALE": call.scale, "BLOCK_R": BLOCK_R}
    return objective_settings(call.objective) | rewards


def _launch(logits_TV: Tensor, out_TV: Tensor | None, call: RowCall) -> Rows:
    inputs = call.inputs
    rows = _empty_rows(logits_TV)
    if not len(logits_TV):
        return rows
    reward_RK = inputs.reward_RK
    with on_device(logits_TV):
        policy_kernel[(len(logits_TV),)](
            logits_TV,
            out_TV,
            inputs.target_T,
            inputs.bias_V,
            *rows,
            *inputs[2:],
            num_t=len(logits_TV),
            num_v=logits_TV.shape[1],
            num_r=0 if reward_RK is None else reward_RK.shape[0],
            num_k=0 if reward_RK is None else reward_RK.shape[1],
            stride_t=logits_TV.stride(0),
            stride_v=logits_TV.stride(1),
            out_stride_t=0 if out_TV is None else out_TV.stride(0),
            out_stride_v=0 if out_TV is None else out_TV.stride(1),
            reward_stride_r=0 if reward_RK is None else reward_RK.stride(0),
            reward_stride_k=0 if reward_RK is None else reward_RK.stride(1),
            inv_temperature=1 / call.temperature,
            **_settings(call),
            **scaling(call.temperature, call.softcap),
            **tile_for(logits_TV).options,
        )
    return rows


_RETURNED = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
rows_op = torch.library.custom_op(
    "g2rpo::policy_rows",
    lambda logits_TV, *packed: _launch(logits_TV, None, CALL.unpack(*packed)),
    mutates_args=(),
    schema=f"(Tensor logits_TV, {CALL}) -> {_RETURNED}",
)
rows_out_op = torch.library.custom_op(
    "g2rpo::policy_rows_out",
    lambda logits_TV, out_TV, *packed: _launch(logits_TV, out_TV, CALL.unpack(*packed)),
    mutates_args=("out_TV",),
    schema=f"(Tensor logits_TV, Tensor(a!) out_TV, {CALL}) -> {_RETURNED}",
)
rows_op.register_fake(lambda logits_TV, *_: _empty_rows(logits_TV))
rows_out_op.register_fake(lambda logits_TV, *_: _empty_rows(logits_TV))


def policy_rows(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    *,
    temperature: float,
    softcap: float | None,
    bias_V: Tensor | None = None,
    out: Tensor | None,
) -> PolicyRows:
    """Loss, log-probability, entropy and coefficients of each edge, and d loss / d logits to `out`.

    One launch; token ratios only; no autograd.

    Args:
        logits_TV: [T, V] float32, bfloat16 or float16, any strides.
        target_T: [T] int64 or int32 in [0, V).
        edges, objective, temperature, softcap: as in `policy_loss`.
        bias_V: [V] floating, added to the logits first.
        out: [T, V], any strides, float32, bfloat16 or float16: d loss / d raw logits; may be the logits.
            None = not wanted: the logits are read once.
    """
    check_logits(logits_TV)
    if objective.ratio != "token":
        raise ValueError(f"objective.ratio: wanted 'token', got {objective.ratio!r}")
    if not objective.one_launch:
        raise ValueError(
            f"objective.surrogate: wanted one with a device function, got {objective.surrogate!r}"
        )
    inputs = RowInputs.of(target_T, bias_V, edges).on(logits_TV.device)
    with torch.no_grad():
        rows = called(logits_TV, out, RowCall(inputs, objective, temperature, softcap))
    return PolicyRows(*rows[:5])


def called(logits_TV: Tensor, out_TV: Tensor | None, call: RowCall) -> Rows:
    """One launch: loss, logp, entropy, c, e, lse, stats_KT. d logits to `out_TV`, unless that is None.

    An operator where a graph is traced. Else the launch itself: the host takes longer to go through an
    operator of so many arguments than a GPU takes for a part of a chunk.
    """
    if not torch.compiler.is_compiling():
        rows = _launch(logits_TV, out_TV, call)
        if out_TV is not None:
            increment_version(out_TV)
        return rows
    arguments = CALL.pack(call)
    return rows_op(logits_TV, *arguments) if out_TV is None else rows_out_op(logits_TV, out_TV, *arguments)
