"""Tree attention by block-sparse Triton kernels: launches, registration with torch, autograd.

The operators `g2rpo_kernels::tree_attention` and `::tree_attention_backward` are opaque to torch.compile.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width; M, N, L, P, I as in
`tile_lists.records`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.tree_attention.choice import Query, unsupported_triton
from g2rpo_kernels.tree_attention.tile_lists import TilePlan
from g2rpo_kernels.tree_attention.tiles import CHIPS, Tile, Tiles, tiles_for
from g2rpo_kernels.tree_attention.triton.backward import delta_kernel, query_kernel
from g2rpo_kernels.tree_attention.triton.forward import forward_kernel
from g2rpo_kernels.tree_attention.triton.kv_grad import kv_kernel, slots_kernel

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Was TRITON_INTERPRET set when Triton was imported? Then the kernels run on CPU tensors."""

DELTA_ROWS = 16
SLOT_PIECE = 1024


def tree_attention_triton(
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    plan: TilePlan,
    tiles: Tiles | None = None,
) -> Tensor:
    """out [S, H, E] in q's dtype. `tiles`: other tile shapes than the table's, for tests and tuning.

    Raises ValueError for what is `unsupported_triton`, for CPU tensors outside the interpreter, and for a
    window where the plan has no positions.
    """
    lack = unsupported_triton(Query.of(q_SHE))
    if lack is None and not q_SHE.is_cuda and not (INTERPRETED and q_SHE.device.type == "cpu"):
        lack = f"wanted CUDA tensors, or CPU tensors under TRITON_INTERPRET=1, got {q_SHE.device}"
    if lack is None and window is not None and plan.position_S is None:
        lack = "wanted a tile plan with positions because window is given, got one without"
    if lack is not None:
        raise ValueError(f"impl='triton': {lack}")
    if len(q_SHE) == 0:
        return q_SHE.clone()
    if tiles is None:
        chip = CHIPS[torch.cuda.get_device_capability(q_SHE.device)] if q_SHE.is_cuda else "sm_90"
        tiles = tiles_for(chip, q_SHE.dtype, q_SHE.shape[2])
    lists = plan.lists(tiles, heads=q_SHE.shape[1], kv_heads=k_SKE.shape[1], window=window)
    attend: Any = _forward_op if torch.compiler.is_compiling() else _Launched.apply
    out_SHE, _ = attend(
        *(_rows(x) for x in (q_SHE, k_SKE, v_SKE)),
        plan.end_S,
        None if window is None else plan.position_S,
        lists.forward.work_P4,
        lists.forward.key_L,
        lists.query_grad.work_P4,
        lists.query_grad.key_L,
        lists.kv_grad.work_I5,
        lists.kv_grad.query_L,
        lists.kv_grad.slot_N2,
        scale,
        window,
        softcap,
        _Launches(
            tiles.forward, tiles.query_grad, tiles.kv_grad, tiles.split_kv_grad, lists.kv_grad.num_slots
        ).flat(),
    )
    return out_SHE


def _rows(x: Tensor) -> Tensor:
    """The kernels want each row's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


@dataclass(frozen=True)
class _Launches:
    """The static part of the launches; an operator takes it as a list of integers."""

    forward: Tile
    query_grad: Tile
    kv_grad: Tile
    split_kv_grad: bool
    num_slots: int

    def flat(self) -> list[int]:
        tiles = (self.forward, self.query_grad, self.kv_grad)
        numbers = [n for t in tiles for n in (t.block_q, t.block_kv, t.warps, t.stages)]
        return [*numbers, int(self.split_kv_grad), self.num_slots]

    @staticmethod
    def of(flat: list[int]) -> _Launches:
        tiles = [
            Tile(block_q=flat[i], block_kv=flat[i + 1], warps=flat[i + 2], stages=flat[i + 3])
            for i in (0, 4, 8)
        ]
        return _Launches(*tiles, split_kv_grad=bool(flat[12]), num_slots=flat[13])


def _shared(
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    end_S: Tensor,
    position_S: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> dict[str, Any]:
    """The arguments that every launch over score tiles takes."""
    width = q_SHE.shape[2]
    padded = max(16, triton.next_power_of_2(width))
    strides = {f"stride_{name}{dim}": x.stride(i) for name, x in (("q", q_SHE), ("k", k_SKE), ("v", v_SKE))
               for i, dim in enumerate("sh")}  # fmt: skip
    return strides | {
        "q_ptr": q_SHE,
        "k_ptr": k_SKE,
        "v_ptr": v_SKE,
        "end_ptr": end_S,
        "position_ptr": position_S,
        "num_rows": q_SHE.shape[0],
        "group": q_SHE.shape[1] // k_SKE.shape[1],
        "width": width,
        "scale": scale,
        "window": 0 if window is None else window,
        "softcap": 1.0 if softcap is None else softcap,
        "BLOCK_E": padded,
        "WINDOWED": window is not None,
        "CAPPED": softcap is not None,
        "PADDED": padded != width,
        "UPCAST": INTERPRETED,
    }


def _constants(**constants: int) -> dict[str, Any]:
    """Compile-time arguments. Fusing a * b + c is pinned: Triton's default differs between releases (on to
    3.9, off from 3.10)."""
    return {**constants, "enable_fp_fusion": True}


def _options(tile: Tile) -> dict[str, Any]:
    options = _constants(BLOCK_M=tile.block_q, BLOCK_N=tile.block_kv)
    return options | {"num_warps": tile.warps, "num_stages": tile.stages}


_LISTS = "Tensor work_P4, Tensor key_L, Tensor dq_work_P4, Tensor dq_key_L"
_KV_LISTS = "Tensor work_I5, Tensor query_L, Tensor slot_N2"
_SCALARS = "float scale, int? window, float? softcap, int[] launches"


def _forward(
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    end_S: Tensor,
    position_S: Tensor | None,
    work_P4: Tensor,
    key_L: Tensor,
    dq_work_P4: Tensor,
    dq_key_L: Tensor,
    work_I5: Tensor,
    query_L: Tensor,
    slot_N2: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    launches: list[int],
) -> tuple[Tensor, Tensor]:
    """out [S, H, E] in q's dtype, and its log-sum-exp [H, S], float32, in units of log 2."""
    size, heads, width = q_SHE.shape
    out_SHE = q_SHE.new_empty(size, heads, width)
    lse_HS = q_SHE.new_empty(heads, size, dtype=torch.float32)
    with torch.cuda.device_of(q_SHE):
        forward_kernel[len(work_P4) * heads,](
            **_shared(q_SHE, k_SKE, v_SKE, end_S, position_S, scale, window, softcap),
            **_options(_Launches.of(launches).forward),
            out_ptr=out_SHE,
            lse_ptr=lse_HS,
            work_ptr=work_P4,
            key_ptr=key_L,
            num_heads=heads,
        )
    return out_SHE, lse_HS


_forward_op = torch.library.custom_op(
    "g2rpo_kernels::tree_attention",
    _forward,
    mutates_args=(),
    schema="(Tensor q_SHE, Tensor k_SKE, Tensor v_SKE, Tensor end_S, Tensor? position_S, "
    f"{_LISTS}, {_KV_LISTS}, {_SCALARS}) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_fake(q_SHE: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    size, heads, width = q_SHE.shape
    return q_SHE.new_empty(size, heads, width), q_SHE.new_empty(heads, size, dtype=torch.float32)


def _backward(
    grad_SHE: Tensor,
    q_SHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    out_SHE: Tensor,
    lse_HS: Tensor,
    end_S: Tensor,
    position_S: Tensor | None,
    dq_work_P4: Tensor,
    dq_key_L: Tensor,
    work_I5: Tensor,
    query_L: Tensor,
    slot_N2: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    launches: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their dtype."""
    static = _Launches.of(launches)
    shared = _shared(q_SHE, k_SKE, v_SKE, end_S, position_S, scale, window, softcap)
    with torch.cuda.device_of(q_SHE):
        shared |= {
            "grad_ptr": grad_SHE,
            "stride_gs": grad_SHE.stride(0),
            "stride_gh": grad_SHE.stride(1),
            "lse_ptr": lse_HS,
            "delta_ptr": _delta(out_SHE, grad_SHE, shared["BLOCK_E"]),
        }
        dq_SHE = torch.empty_like(q_SHE, memory_format=torch.contiguous_format)
        query_kernel[len(dq_work_P4) * q_SHE.shape[1],](
            **shared,
            **_options(static.query_grad),
            dq_ptr=dq_SHE,
            work_ptr=dq_work_P4,
            key_ptr=dq_key_L,
            num_heads=q_SHE.shape[1],
        )
        dk_SKE, dv_SKE = _kv_grads(shared, static, work_I5, query_L, slot_N2)
    return dq_SHE, dk_SKE, dv_SKE


def _delta(out_SHE: Tensor, grad_SHE: Tensor, padded: int) -> Tensor:
    size, heads, width = out_SHE.shape
    delta_HS = out_SHE.new_empty(heads, size, dtype=torch.float32)
    delta_kernel[-(-size // DELTA_ROWS) * heads,](
        out_ptr=out_SHE,
        grad_ptr=grad_SHE,
        delta_ptr=delta_HS,
        num_rows=size,
        num_heads=heads,
        width=width,
        stride_os=out_SHE.stride(0),
        stride_oh=out_SHE.stride(1),
        stride_gs=grad_SHE.stride(0),
        stride_gh=grad_SHE.stride(1),
        **_constants(BLOCK_M=DELTA_ROWS, BLOCK_E=padded),
    )
    return delta_HS


def _kv_grads(
    shared: dict[str, Any], static: _Launches, work_I5: Tensor, query_L: Tensor, slot_N2: Tensor
) -> tuple[Tensor, Tensor]:
    k_SKE, block = shared["k_ptr"], static.kv_grad.block_kv
    kv_heads, width = k_SKE.shape[1:]
    dk_SKE, dv_SKE = (torch.empty_like(k_SKE, memory_format=torch.contiguous_format) for _ in range(2))
    shape = static.num_slots, kv_heads, block, width
    dk_slot, dv_slot = (k_SKE.new_empty(shape, dtype=torch.float32) for _ in range(2))
    results = {"dk_ptr": dk_SKE, "dv_ptr": dv_SKE, "dk_slot_ptr": dk_slot, "dv_slot_ptr": dv_slot}
    for want in ("dv", "dk") if static.split_kv_grad else ("dv dk",):
        kv_kernel[len(work_I5) * kv_heads,](
            **shared,
            **results,
            **(_options(static.kv_grad) | _constants(WANT_DK="dk" in want, WANT_DV="dv" in want)),
            work_ptr=work_I5,
            query_ptr=query_L,
            num_kv_heads=kv_heads,
        )
    slots_kernel[-(-block * width // SLOT_PIECE) * len(slot_N2) * kv_heads,](
        **results,
        slot_ptr=slot_N2,
        num_rows=len(k_SKE),
        num_kv_heads=kv_heads,
        width=width,
        **_constants(BLOCK_N=block, BLOCK_X=SLOT_PIECE),
    )
    return dk_SKE, dv_SKE


_backward_op = torch.library.custom_op(
    "g2rpo_kernels::tree_attention_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor grad_SHE, Tensor q_SHE, Tensor k_SKE, Tensor v_SKE, Tensor out_SHE, Tensor lse_HS, "
    f"Tensor end_S, Tensor? position_S, Tensor dq_work_P4, Tensor dq_key_L, {_KV_LISTS}, {_SCALARS}) "
    "-> (Tensor, Tensor, Tensor)",
)


@_backward_op.register_fake
def _backward_fake(
    grad_SHE: Tensor, q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq_SHE, dk_SKE, dv_SKE = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_SHE, k_SKE, v_SKE)
    )
    return dq_SHE, dk_SKE, dv_SKE


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_SHE, k_SKE, v_SKE, end_S, position_S, _, _, *lists, scale, window, softcap, launches = inputs
    out_SHE, lse_HS = output
    ctx.mark_non_differentiable(lse_HS)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q_SHE, k_SKE, v_SKE, out_SHE, lse_HS, end_S, position_S, *lists)
    ctx.scalars = scale, window, softcap, launches


def _differentiate(ctx: Any, grad_SHE: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _backward_op(_rows(grad_SHE), *ctx.saved_tensors, *ctx.scalars)
    return *grads, *[None] * 13


_forward_op.register_autograd(_differentiate, setup_context=_save)


class _Launched(torch.autograd.Function):
    """The launches without the operators, which cost the host more than these where no graph is traced."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads = _backward(_rows(grad_outputs[0]), *ctx.saved_tensors, *ctx.scalars)
        return *grads, *[None] * 13
