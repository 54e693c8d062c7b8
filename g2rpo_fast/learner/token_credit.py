"""Token credit and weights: from rows' advantages to tokens', before the edges are summed.

Dimension key: N tokens of all rows of a batch (along its `ids_N`), K trained tokens of a step's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2rpo_fast.learner.look import Look
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import RowTokens, Scored, TokenCredit, TokenPiece, Weight
from g2rpo_fast.types import Doubles, Longs


def credited(
    batches: Sequence[TrainBatch],
    looks: Sequence[Look | None],
    scored: Scored,
    credit: Sequence[TokenCredit],
    weights: Sequence[Weight],
) -> list[TrainBatch]:
    """The batches of a step with their tokens' advantages as `credit` leaves them, weights multiplied.

    Args:
        looks: at the old policy, where a piece needs one.

    Raises:
        ValueError: a piece that returns anything but one finite number a token, by its name.
    """
    trained = [np.flatnonzero(batch.sequences.trained_N) for batch in batches]
    tokens, order_K = _row_tokens(batches, looks, trained, scored)
    a_K = _join([batch.advantage_N[at] for batch, at in zip(batches, trained, strict=True)])[order_K]
    w_K = np.ones(len(a_K))
    for piece in credit:
        a_K = _checked(piece, piece(a_K, tokens, scored), len(w_K))
    for piece in weights:
        w_K = w_K * _checked(piece, piece(tokens, scored), len(w_K))
    back_K = np.argsort(order_K)
    parts = np.cumsum([len(at) for at in trained])[:-1]
    made = zip(batches, trained, np.split(a_K[back_K], parts), np.split(w_K[back_K], parts), strict=True)
    return [_with(batch, at, a, w) for batch, at, a, w in made]


def _with(batch: TrainBatch, at: Longs, advantage: Doubles, weight: Doubles) -> TrainBatch:
    advantage_N, weight_N = batch.advantage_N.astype(np.float64), batch.weight_N.astype(np.float64)
    advantage_N[at] = advantage
    weight_N[at] *= weight
    return replace(batch, advantage_N=advantage_N, weight_N=weight_N)


def _row_tokens(
    batches: Sequence[TrainBatch], looks: Sequence[Look | None], trained: Sequence[Longs], scored: Scored
) -> tuple[RowTokens, Longs]:
    """The tokens by the step's rows, and where each lies among those of the batches end to end."""
    numbers: dict[str, list[np.ndarray]] = {}
    for batch, seen, at in zip(batches, looks, trained, strict=True):
        ptr_R1 = batch.sequences.ptr_R1
        row = np.searchsorted(ptr_R1, at, side="right") - 1
        rollouts = [scored.rollouts[index] for index in batch.rollout_R]
        prompt_R = np.asarray([len(rollout.training_prompt_ids) for rollout in rollouts], np.int64)
        found = {
            "id_N": batch.sequences.ids_N[at],
            "row_N": batch.rollout_R[row].astype(np.int64),
            "place_N": at - ptr_R1[row] - prompt_R[row],
            "rollout_logp_N": batch.rollout_logp_N[at].astype(np.float64),
        }
        if batch.unit_N is not None:
            found["unit_N"] = batch.unit_N[at]
        if seen is not None:
            found |= {"old_logp_N": seen.logp_N[at], "entropy_N": seen.entropy_N[at]}
            for name in ("hot_logp_N", "influence_N"):
                if (value_N := getattr(seen, name)) is not None:
                    found[name] = value_N[at]
        for name, value in found.items():
            numbers.setdefault(name, []).append(value)
    order_K = np.argsort(_join(numbers["row_N"]), kind="stable")
    return RowTokens(**{name: _join(values)[order_K] for name, values in numbers.items()}), order_K


def loud_rows(batch: TrainBatch) -> list[int]:
    """Rows with an advantage somewhere."""
    row = np.searchsorted(batch.sequences.ptr_R1, np.flatnonzero(batch.advantage_N), side="right") - 1
    return np.unique(row).tolist()


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)


def _checked(piece: TokenPiece, value_K: Doubles, num_tokens: int) -> Doubles:
    name = f"{piece.section}.{piece.use}"
    if np.shape(value_K) != (num_tokens,):
        raise PieceError(f"{name}: wanted [{num_tokens}] numbers, one a token, got {list(np.shape(value_K))}")
    bad = np.flatnonzero(~np.isfinite(value_K))
    if len(bad):
        raise PieceError(f"{name}: wanted finite numbers, got {value_K[bad[0]]} at token {bad[0]}")
    return value_K
