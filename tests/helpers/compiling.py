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
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
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

    @property
    def loads_in_flight(self) -> list[int]:
        """For each wait on asynchronous copies: how many groups of them stay under way behind it."""
        return [int(count, 0) for count in re.findall(r"cp\.async\.wait_group\s+(0x[0-9a-f]+|\d+)", self.ptx)]

    def serialised(self, chip: str) -> list[str]:
        """The assembler's warnings that Hopper's products wait for each other (C7510 to C7515)."""
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
            ptx.write(self.ptx)
            ptx.flush()
            assembler = get_ptxas(int(chip.removeprefix("sm_"))).path  # of two, the one that reads this PTX
            command = [assembler, f"--gpu-name={chip}a", ptx.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return re.findall(r".*\bC751[0-5]\b.*", done.stderr)


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
        command = [TOOLS / "cuobjdump", "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(compiled.asm["ptx"], int(found[1]), int(found[2]), compiled.metadata.shared)
