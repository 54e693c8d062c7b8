"""The compiled loops over rows use vectors on every instruction set that they have a copy for.

Read in the machine code: a loop that falls back to one number at a time is right and four times as slow, and
no other test would notice.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter

import g2rpo_kernels._cpu
import pytest

import g2rpo_fast._C

LOOPS = {
    g2rpo_fast._C.__file__: (
        "norm_forward_rows",
        "norm_backward_rows",
        "swiglu_forward_range",
        "swiglu_backward_range",
        "own_attention_range",
    ),
    g2rpo_kernels._cpu.__file__: ("sum_rows", "differentiate_rows"),
}
"""Functions by the library that they are in."""
EXPONENTIAL = 7
"""Products of a polynomial for e^x, of the shortest kind."""
NORM = 3
"""Of a row, in a norm."""
pytestmark = [
    pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump here"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64 only"),
]


def vector_products(library: str) -> dict[str, Counter[str]]:
    """For each function with copies: by copy, its products of whole vectors."""
    shown = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Counter[str]] = {}
    for head, body in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)+)", shown, re.MULTILINE):
        names = re.search(r"::(\w+)\(.*\[clone \.((?!resolver|cold|constprop)\w+)\]$", head)
        if names:
            function, copy = names.groups()
            products = re.findall(r"\sv?(?:mul|fn?m(?:add|sub)\d+)ps\s", body)
            found.setdefault(function, Counter())[copy] += len(products)
    return found


@pytest.mark.parametrize("library", LOOPS, ids=lambda path: path.rpartition("/")[2].partition(".")[0])
def test_loops_use_vectors_in_every_copy(library: str) -> None:
    found = vector_products(library)
    if not found:
        pytest.skip("built by a compiler that makes no copies")
    for function in LOOPS[library]:
        wanted = NORM if "norm" in function else EXPONENTIAL
        assert len(found[function]) == 3, found[function]
        assert min(found[function].values()) >= wanted, (function, found[function])
