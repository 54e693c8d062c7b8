"""Offline compilation of Triton kernels: registers and stack bytes without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
STACK_BYTES = 0 if triton.__version__.startswith("3.7.") else 32
"""Stack that a kernel may use where its table promises none. The promise is Triton 3.7's, whose assembler the
tables were chosen with; the most that others were seen to use is 32 (3.6) and 24 bytes (3.8, 3.9)."""


@dataclass(frozen=True)
class Compiled:
    ptx: str
    registers: int
    stack: int
    shared: int
    """Bytes of shared memory."""


def compile_for(
    chip: str,
    kernel: Any,
    types: dict[str, str],
    constexprs: dict[str, Any],
    aligned: set[str],
    **options: Any,
) -> Compiled:
    """`kernel` with arguments of `types` and `constexprs`; those in `aligned` divisible by 16."""
    names = kernel.arg_names
    assert set(names) == set(types) | set(constexprs), set(names) ^ (set(types) | set(constexprs))
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constexprs,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(compiled.asm["ptx"], int(found[1]), int(found[2]), compiled.metadata.shared)
