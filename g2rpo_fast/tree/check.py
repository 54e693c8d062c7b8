"""What a `Sequences` record must satisfy before it is planned.

Dimension key: R rows, N tokens of all rows end to end.
"""

from __future__ import annotations

import numpy as np

from g2rpo_fast.types import Bools, Ints, Longs, Sequences

_DTYPES = {"ids_N": np.int32, "ptr_R1": np.int64, "trained_N": np.bool_, "group_R": np.int32}


def check_sequences(sequences: Sequences) -> None:
    """Raises ValueError naming the field or row, what was wanted and what came."""
    for name, dtype in _DTYPES.items():
        array = getattr(sequences, name)
        if array.ndim != 1 or array.dtype != dtype:
            wanted = f"a one-dimensional {np.dtype(dtype).name} array"
            raise ValueError(f"{name}: wanted {wanted}, got {array.dtype} of shape {array.shape}")
    _check_ptr(sequences.ptr_R1, len(sequences.ids_N))
    for name, wanted in (("trained_N", len(sequences.ids_N)), ("group_R", sequences.num_rows)):
        if len(getattr(sequences, name)) != wanted:
            raise ValueError(f"{name}: wanted {wanted} entries, got {len(getattr(sequences, name))}")
    _check_tokens(sequences.ids_N, sequences.ptr_R1, sequences.trained_N)


def _check_ptr(ptr_R1: Longs, num_tokens: int) -> None:
    if num_tokens >= 2**31:
        raise ValueError(f"ids_N: wanted fewer than 2**31 tokens, got {num_tokens}")
    if len(ptr_R1) == 0:
        raise ValueError("ptr_R1: wanted one entry more than there are rows, got none")
    if ptr_R1[0] != 0:
        raise ValueError(f"ptr_R1: wanted row 0 to begin at 0, got {ptr_R1[0]}")
    falling = np.flatnonzero(ptr_R1[1:] < ptr_R1[:-1])
    if len(falling):
        row = falling[0]
        raise ValueError(f"ptr_R1: wanted row {row} to end at {ptr_R1[row]} or later, got {ptr_R1[row + 1]}")
    if ptr_R1[-1] != num_tokens:
        raise ValueError(f"ptr_R1: wanted the last row to end at {num_tokens} (tokens), got {ptr_R1[-1]}")


def _check_tokens(ids_N: Ints, ptr_R1: Longs, trained_N: Bools) -> None:
    if len(ids_N) and ids_N.min() < 0:
        index = int(np.argmax(ids_N < 0))
        row = int(np.searchsorted(ptr_R1, index, side="right")) - 1
        raise ValueError(f"row {row}, token {index - ptr_R1[row]}: wanted an id >= 0, got {ids_N[index]}")
    rows = np.flatnonzero(ptr_R1[1:] > ptr_R1[:-1])
    wrong = rows[trained_N[ptr_R1[rows]]]
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: wanted an untrained first token (it has no context), got trained")
