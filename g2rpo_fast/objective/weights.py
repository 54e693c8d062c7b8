"""Normalisation as data: one weight per token, computed once over the whole batch.

    sequence_mean  1 / (R n_r)   the mean over sequences of each one's mean        GRPO
    token_mean     1 / sum n     the mean over all trained tokens                  DAPO
    sequence_sum   1 / R         the mean over sequences of each one's sum         LUSPO (arXiv 2602.05261)
    constant       1 / (R L)     the same over a constant length                   Dr. GRPO

n_r = trained tokens of row r, R = rollouts of the batch, also those without a trained token or left out of
the update. Micro-batches add; nothing is divided again. Dimension key: R rollouts, N tokens of all
sequences.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from g2rpo_fast.types import Bools, Doubles, Longs


def _sequence_mean(count_R: Longs, num_rollouts: int, constant_length: int) -> Doubles:
    return 1.0 / (num_rollouts * np.maximum(count_R, 1))


def _token_mean(count_R: Longs, num_rollouts: int, constant_length: int) -> Doubles:
    return np.full(len(count_R), 1.0 / max(int(count_R.sum()), 1))


def _sequence_sum(count_R: Longs, num_rollouts: int, constant_length: int) -> Doubles:
    return np.full(len(count_R), 1.0 / num_rollouts)


def _constant(count_R: Longs, num_rollouts: int, constant_length: int) -> Doubles:
    return np.full(len(count_R), 1.0 / (num_rollouts * constant_length))


AGGREGATIONS: dict[str, Callable[[Longs, int, int], Doubles]] = {
    "sequence_mean": _sequence_mean,
    "token_mean": _token_mean,
    "sequence_sum": _sequence_sum,
    "constant": _constant,
}


def token_weights(
    trained_N: Bools, ptr_R1: Longs, aggregation: str, *, num_rollouts: int, constant_length: int
) -> Doubles:
    """[N] float64 weight of each token; 0 where it is not trained.

    Args:
        trained_N: which tokens carry loss.
        ptr_R1: row r is `trained_N[ptr_R1[r]:ptr_R1[r + 1]]`.
        aggregation: `sequence_mean`, `token_mean`, `sequence_sum` or `constant`.
        num_rollouts: R of the whole batch, at least the rows given.
        constant_length: L of `constant`, in tokens.

    Raises:
        ValueError: an unknown aggregation, `constant_length` below 1, fewer rollouts than rows.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: wanted one of {tuple(AGGREGATIONS)}, got {aggregation!r}")
    if constant_length < 1:
        raise ValueError(f"constant_length: wanted >= 1, got {constant_length}")
    if num_rollouts < len(ptr_R1) - 1:
        raise ValueError(f"num_rollouts: wanted at least the {len(ptr_R1) - 1} rows, got {num_rollouts}")
    running_N1 = np.concatenate([[0], np.cumsum(trained_N, dtype=np.int64)])
    count_R = np.diff(running_N1[ptr_R1])
    weight_R = AGGREGATIONS[aggregation](count_R, num_rollouts, constant_length)
    return np.where(trained_N, np.repeat(weight_R, np.diff(ptr_R1)), 0.0)
