"""Every entry of the tree attention's tile tables compiles for its chip: registers, stack, tensor cores.

`pytest -s` prints what was measured.
"""

import re
from typing import Any

import pytest
import torch
from g2rpo_kernels.tree_attention.tiles import HALF, SINGLE, Tile, Tiles, tiles_for

triton = pytest.importorskip("triton")

from g2rpo_kernels.tree_attention.triton import backward, forward, kv_grad  # noqa: E402

from compiling import STACK_BYTES, Compiled, compile_for  # noqa: E402

TENSOR_CORES = {"sm_80": "mma.sync", "sm_86": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
SHARED_BYTES = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}
SERIALISED_BY_SOFTCAP = {(64, "forward")}
"""(head width, launch): tanh between the products; models with a softcap have wider heads."""
FLOAT32 = {"lse_ptr", "delta_ptr", "dk_slot_ptr", "dv_slot_ptr"}
INT32 = {"end_ptr", "position_ptr", "work_ptr", "key_ptr", "query_ptr", "slot_ptr"}


def type_of(name: str, dtype: str) -> str:
    if name in FLOAT32:
        return "*fp32"
    if name in INT32:
        return "*i32"
    if name.endswith("_ptr"):
        return f"*{dtype}"
    return "fp32" if name in {"scale", "softcap"} else "i32"


def built(chip: str, kernel: Any, dtype: str, constexprs: dict[str, Any], tile: Tile | None) -> Compiled:
    if not constexprs.get("WINDOWED", True):
        constexprs = constexprs | {"position_ptr": None}
    constexprs = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    types = {name: type_of(name, dtype) for name in kernel.arg_names if name not in constexprs}
    aligned = {name for name in types if name.endswith("_ptr") or re.match("stride_|width", name)}
    options = {} if tile is None else {"num_warps": tile.warps, "num_stages": tile.stages}
    return compile_for(chip, kernel, types, constexprs, aligned, **options)


def launches(tiles: Tiles) -> dict[str, tuple[Any, Tile, dict[str, Any]]]:
    """Name -> (kernel, tile, flags)."""
    found = {
        "forward": (forward.forward_kernel, tiles.forward, {}),
        "dq": (backward.query_kernel, tiles.query_grad, {}),
    }
    for want in ("dv", "dk") if tiles.split_kv_grad else ("dk dv",):
        flags = {"WANT_DK": "dk" in want, "WANT_DV": "dv" in want}
        found[want] = (kv_grad.kv_kernel, tiles.kv_grad, flags)
    return found


def check(chip: str, width: int, tiles: Tiles, dtype: str, *, windowed: bool, capped: bool) -> None:
    flags = {"WINDOWED": windowed, "CAPPED": capped, "PADDED": False, "UPCAST": False, "BLOCK_E": width}
    wrong = []
    for name, (kernel, tile, extra) in launches(tiles).items():
        blocks = {"BLOCK_M": tile.block_q, "BLOCK_N": tile.block_kv}
        compiled = built(chip, kernel, dtype, flags | blocks | extra, tile)
        label = f"{chip} {dtype} E={width} {name} {tile.block_q}x{tile.block_kv} w{tile.warps} s{tile.stages}"
        label += " window" * windowed + " softcap" * capped
        print(f"{label}: {compiled.registers} registers, stack {compiled.stack}, shared {compiled.shared}")
        if compiled.shared > SHARED_BYTES[chip]:
            wrong.append(f"{label}: {compiled.shared} bytes of shared memory")
        if compiled.stack > tile.stack_bytes + STACK_BYTES:
            wrong.append(f"{label}: {compiled.stack} bytes of stack")
        if dtype != "fp32":
            faults = tensor_core_faults(chip, width, name, tile, compiled, capped=capped)
            wrong += [f"{label}: {fault}" for fault in faults]
    assert not wrong


def tensor_core_faults(
    chip: str, width: int, name: str, tile: Tile, compiled: Compiled, *, capped: bool
) -> list[str]:
    """What keeps the tensor cores waiting."""
    faults = []
    if TENSOR_CORES[chip] not in compiled.ptx:
        faults.append(f"no {TENSOR_CORES[chip]}")
    rows = tile.block_kv if name in ("forward", "dq") else tile.block_q
    buffers = 2 * tile.stages - (chip != "sm_90")  # elsewhere one of them is read to its end sooner
    if tile.stages > 1 and compiled.shared < buffers * rows * width * 2:
        faults.append(f"{compiled.shared} bytes of shared memory: fewer than {buffers} tiles")
    if tile.stages > 2:
        # Two loops, over full tiles and over masked ones. Behind each wait: what the next iteration loads.
        waiting = [count for count in compiled.loads_in_flight if count >= 2]
        if len(waiting) < 2:
            faults.append(f"loads under way behind each wait: {compiled.loads_in_flight}")
    if chip == "sm_90" and not (capped and (width, name) in SERIALISED_BY_SOFTCAP):
        faults += compiled.serialised(chip)
    return faults


PLAIN, BOTH = (64, 256), (128,)
"""Head widths whose tiles are always compiled without window and softcap, and with both; others: deep."""


def of_widths(always: tuple[int, ...]) -> list[Any]:
    """(chip, width) of every entry of the table, `deep` but for these widths."""
    return [pytest.param(*key, marks=() if key[1] in always else pytest.mark.deep) for key in HALF]


@pytest.mark.parametrize(("chip", "width"), of_widths(PLAIN))
def test_half_precision_tiles_compile_without_spills(chip: str, width: int) -> None:
    check(chip, width, HALF[chip, width], "bf16", windowed=False, capped=False)


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "width"), of_widths(BOTH))
def test_half_precision_tiles_compile_with_window_and_softcap(chip: str, width: int) -> None:
    check(chip, width, HALF[chip, width], "bf16", windowed=True, capped=True)


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize(("windowed", "capped"), [(True, False), (False, True)])
@pytest.mark.parametrize(("chip", "width"), HALF)
def test_half_precision_tiles_compile_with_window_or_softcap(
    chip: str, width: int, windowed: bool, capped: bool
) -> None:
    check(chip, width, HALF[chip, width], "bf16", windowed=windowed, capped=capped)


@pytest.mark.parametrize(
    ("chip", "width"),
    [
        pytest.param(chip, width, marks=() if (chip, width) == ("sm_120", 256) else pytest.mark.deep)
        for chip in ("sm_86", "sm_120")
        for width in (64, 128, 256)
    ],
)
def test_small_chips_have_the_shared_memory(chip: str, width: int) -> None:
    """Capabilities 8.6, 8.9 and 12.0 use the tiles of "sm_86"."""
    flags = {"WINDOWED": True, "CAPPED": True, "PADDED": False, "UPCAST": False, "BLOCK_E": width}
    for kernel, tile, extra in launches(tiles_for("sm_86", torch.bfloat16, width)).values():
        blocks = {"BLOCK_M": tile.block_q, "BLOCK_N": tile.block_kv}
        compiled = built(chip, kernel, "bf16", flags | blocks | extra, tile)
        assert compiled.stack <= STACK_BYTES
        assert compiled.shared <= SHARED_BYTES["sm_86"]
        assert "mma.sync" in compiled.ptx


@pytest.mark.slow
@pytest.mark.parametrize(
    "width", [pytest.param(width, marks=() if width == 256 else pytest.mark.deep) for width in SINGLE]
)
def test_float32_tiles_compile(width: int) -> None:
    check("sm_90", width, SINGLE[width], "fp32", windowed=False, capped=False)


@pytest.mark.parametrize("chip", TENSOR_CORES)
def test_side_kernels_compile_without_spills(chip: str) -> None:
    shape = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_E": 256, "BLOCK_X": 1024}
    for kernel in (backward.delta_kernel, kv_grad.slots_kernel):
        assert built(chip, kernel, "bf16", shape, None).stack <= STACK_BYTES
