"""The extension built from csrc/."""

from typing import TypedDict

from g2rpo_fast.types import Bools, Floats, Ints, Longs

class PlanFields(TypedDict):
    token_S: Ints
    position_S: Ints
    end_S: Ints
    source_T: Ints
    target_T: Ints
    member_ptr_T1: Longs
    member_M: Longs
    row_B: Ints
    last_B: Ints
    unshared_tokens: int

def plan_trees(
    ids_N: Ints,
    ptr_R1: Longs,
    trained_N: Bools,
    group_R: Ints,
    token_budget: int | None,
    min_saved: int,
    whole: bool,
) -> list[PlanFields]: ...
def rms_norm_forward(x: Floats, w: Floats, eps: float, y: Floats, scale: Floats, threads: int) -> None: ...
def rms_norm_backward(
    x: Floats, w: Floats, scale: Floats, dy: Floats, dx: Floats, dw: Floats, threads: int
) -> None: ...
def swiglu_forward(gate: Floats, up: Floats, out: Floats, threads: int) -> None: ...
def swiglu_backward(
    gate: Floats, up: Floats, dout: Floats, dgate: Floats, dup: Floats, threads: int
) -> None: ...
