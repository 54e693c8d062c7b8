"""Row kernels compiled offline for each chip of the static table: no spills, tiles in flight."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from g2rpo_kernels.group_advantage import triton as groups
from g2rpo_kernels.linear_logprob import triton_exponentials as exponentials
from g2rpo_kernels.logprob import triton as rows
from g2rpo_kernels.logprob import triton_tiles
from g2rpo_kernels.logprob.triton_launch import TILES
from g2rpo_kernels.policy_loss import triton as policy
from g2rpo_kernels.policy_loss import triton_loss
from g2rpo_kernels.policy_loss import triton_tiles as exponential_rows

from compiling import STACK_BYTES, Compiled, compile_for

CHIPS = {8: "sm_80", 9: "sm_90", 10: "sm_100"}
FLOATS = {
    "scale", "inv_softcap", "inv_temperature", "eps", "s0", "s1", "s2", "s3",
    "kl_coef", "entropy_coef", "importance_cap", "importance_low",
}  # fmt: skip
INDICES = {"target_ptr", "group_ptr", "row_ptr", "member_ptr"}
STAGES_IN_FLIGHT = 3
ALIGNED = {"num_v", "stride_t", "out_stride_t"}


def compiled(chip: str, kernel: Any, logits: str, fixed: dict[str, Any], **options: Any) -> Compiled:
    """`kernel` for logits of a type; `fixed` are its compile-time arguments, None and 1 among them."""
    types = {}
    for name in kernel.arg_names:
        if name in fixed:
            continue
        if name in ("logits_ptr", "out_ptr", "values_ptr"):
            types[name] = f"*{logits}"
        elif name.endswith("_ptr"):
            types[name] = "*i64" if name in INDICES else "*fp64" if name == "lse_ptr" else "*fp32"
        else:
            types[name] = "fp64" if name in FLOATS else "i32"
    aligned = {name for name, kind in types.items() if kind.startswith("*") or name in ALIGNED}
    return compile_for(chip, kernel, types, fixed, aligned, **options)


@pytest.mark.parametrize("major", CHIPS)
@pytest.mark.parametrize("logits", ["bf16", "fp32"])
def test_row_kernels_never_spill(major: int, logits: str) -> None:
    tile = TILES[major, {"bf16": 2, "fp32": 4}[logits]]
    options = dict(tile.options)
    sizes = {name: options.pop(name) for name in ("BLOCK_V", "STAGES")} | {"stride_v": 1}
    plain = {"SOFTCAP": False, "bias_ptr": None} | sizes
    capped = {"SOFTCAP": True} | sizes
    numbers = {"third_ptr": None, "fourth_ptr": None}
    beside = {"out_stride_v": 1}
    objective = {
        "SCALE": "none", "SURROGATE": "clip", "KL": "k3", "PENALTY": True, "ENTROPY": True,
        "KL_TIMES_RATIO": True, "IMPORTANCE": "mask", "BLOCK_R": policy.BLOCK_R,
    }  # fmt: skip
    given = dict.fromkeys(("reward_ptr", "channel_weight_ptr", "group_ptr", "row_ptr"))
    from_rewards = {"a_pos_ptr": None, "a_neg_ptr": None, "SCALE": "batch"}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (rows.stats_kernel, plain | numbers),
        (rows.stats_kernel, capped | {"lse_ptr": None}),
        (rows.gradient_kernel, plain | beside | {"e_ptr": None, "g_ptr": None}),
        (rows.gradient_kernel, capped | beside),
        (policy.policy_kernel, plain | beside | objective | given),
        (policy.policy_kernel, capped | beside | objective | from_rewards | {"IMPORTANCE": "truncate"}),
    ]
    for kernel, fixed in cases:
        out = compiled(CHIPS[major], kernel, logits, fixed, **options)
        assert out.stack <= STACK_BYTES, (kernel.fn.__name__, fixed, out.registers)
        assert 16 < out.registers <= 128, (kernel.fn.__name__, out.registers)  # two programs fit at least
        assert "cp.async" in out.ptx, kernel.fn.__name__


@pytest.mark.parametrize("chip", CHIPS.values())
def test_small_kernels_never_spill(chip: str) -> None:
    tile = TILES[9, 2]
    rewards = {"BLOCK_R": groups.BLOCK_R, "stride_k": 1}
    cases: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (triton_loss.scale_kernel, {"stride_v": 1}, tile.options),
        (groups.advantage_kernel, rewards | {"SCALE": "batch"}, groups.OPTIONS),
        (groups.standardised_sum_kernel, rewards, groups.OPTIONS),
        (groups.whole_batch_kernel, {"BLOCK_R": groups.BLOCK_R}, groups.OPTIONS),
        (groups.edge_kernel, {"BLOCK_T": groups.BLOCK_T}, groups.OPTIONS),
    ]
    for kernel, fixed, given in cases:
        options = dict(given)
        sizes = {name: options.pop(name) for name in ("BLOCK_V", "STAGES") if name in options}
        assert compiled(chip, kernel, "bf16", fixed | sizes, **options).stack <= STACK_BYTES, (
            kernel.fn.__name__
        )


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_exponentials_compile_for_hopper_without_spills(half: str) -> None:
    """Three tiles of both operands under way, the products of an iteration not one after the other."""
    sizes = exponentials.OPTIONS | {"PROGRAMS": 132}
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    blocks = {
        "x_desc": (sizes["BLOCK_M"], sizes["BLOCK_K"]),
        "head_desc": (sizes["BLOCK_N"], sizes["BLOCK_K"]),
        "out_desc": (sizes["BLOCK_M"], sizes["BLOCK_N"]),
    }
    types = {name: f"tensordesc<{half}[{rows},{columns}]>" for name, (rows, columns) in blocks.items()}
    for name in ("target_ptr", "max_ptr", "rest_ptr", "moment_ptr"):
        types[name] = "*i64" if name in INDICES else "*fp32"
    types |= dict.fromkeys(("num_c", "num_v", "width"), "i32") | {"scale_2": "fp32"}
    aligned = {name for name in types if name.endswith("_ptr")} | {"num_v", "width"}
    out = compile_for("sm_90", exponentials.exponential_kernel, types, sizes, aligned, **options)
    assert out.stack == 0, out.registers
    assert "wgmma.mma_async" in out.ptx
    assert out.serialised("sm_90") == []
    tiles = options["num_stages"] * sizes["BLOCK_K"] * (sizes["BLOCK_M"] + sizes["BLOCK_N"]) * 2
    assert tiles <= out.shared <= 227 << 10


def test_rows_of_exponentials_never_spill() -> None:
    kernel = exponential_rows.tile_policy_kernel
    options = triton_tiles.numbers_constants(594) | triton_tiles.row_constants()
    sizes = {name: options.pop(name) for name in ("BLOCK_N", "TILE_V", "GROUP", "STAGES")}
    for penalties in (False, True):
        fixed = sizes | {
            "SURROGATE": "clip", "KL": "k3", "PENALTY": penalties, "ENTROPY": penalties,
            "KL_TIMES_RATIO": penalties, "IMPORTANCE": "mask" if penalties else "none",
        }  # fmt: skip
        types = {}
        for name in (name for name in kernel.arg_names if name not in fixed):
            if name.endswith("_ptr"):
                types[name] = {"exp_ptr": "*bf16", "target_ptr": "*i64"}.get(name, "*fp32")
            else:
                types[name] = "fp64" if name in FLOATS else "i32"
        aligned = {name for name in types if name.endswith("_ptr")} | {"num_v", "stride_c"}
        out = compile_for("sm_90", kernel, types, fixed, aligned, **options)
        assert out.stack <= STACK_BYTES, out.registers
        assert out.registers <= 64, out.registers  # four programs a processor
        assert max(out.loads_in_flight) >= STAGES_IN_FLIGHT


def test_every_surrogate_and_estimator_compiles() -> None:
    options = dict(TILES[9, 4].options)
    fixed = {name: options.pop(name) for name in ("BLOCK_V", "STAGES")} | {
        "stride_v": 1, "out_stride_v": 1, "SOFTCAP": False, "bias_ptr": None, "SCALE": "none",
        "PENALTY": True, "KL_TIMES_RATIO": False, "ENTROPY": False, "IMPORTANCE": "none",
        "BLOCK_R": policy.BLOCK_R, "rollout_ptr": None, "old_ptr": None,
    }  # fmt: skip
    fixed |= dict.fromkeys(("reward_ptr", "channel_weight_ptr", "group_ptr", "row_ptr"))
    for surrogate, kl in (("clip", "k1"), ("cispo", "k2"), ("sapo", "k3"), ("reinforce", "k3")):
        pieces = {"SURROGATE": surrogate, "KL": kl}
        assert compiled("sm_90", policy.policy_kernel, "fp32", fixed | pieces, **options).stack <= STACK_BYTES
