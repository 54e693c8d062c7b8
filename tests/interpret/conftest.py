"""Tests that run kernels in Triton's interpreter, which a process chooses when it imports Triton.

They are collected only with TRITON_INTERPRET=1, and `tests/test_interpreter.py` runs them so.
"""

import os
import sys
from pathlib import Path

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]

if INTERPRETING:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers of the other tests
