"""The chain from rewards to advantages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2rpo_fast.own import PieceError
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


def advantages(chain: Sequence[Credit], scored: Scored, store: PromptStore) -> Doubles:
    """[R] float64: the rows' total rewards, passed through each piece in turn.

    A row that no channel applies to is none of any piece's rows, and has advantage 0, as in TRL.

    Raises:
        ValueError: rewards that are not one finite number a row; a piece whose result is not, by its name.
    """
    judged_R = ~np.isnan(scored.rewards.reward_RK).all(axis=1)
    if not judged_R.all():
        rows = np.flatnonzero(judged_R)
        spread_R = np.zeros(len(scored.rollouts))
        spread_R[rows] = advantages(chain, scored.keep(rows.tolist()), store)
        return spread_R
    a_R = _checked(scored.rewards.total_R, "rewards.total_R", len(scored.rollouts))
    for piece in chain:
        a_R = _checked(piece(a_R, scored, store), f"{piece.section}.{piece.use}", len(scored.rollouts))
    return a_R


def _checked(a_R: Doubles, name: str, num_rows: int) -> Doubles:
    if a_R.shape != (num_rows,):
        raise PieceError(f"{name}: wanted [{num_rows}] numbers, one a row, got {list(a_R.shape)}")
    bad = np.flatnonzero(~np.isfinite(a_R))
    if len(bad):
        raise PieceError(f"{name}: wanted finite numbers, got {a_R[bad[0]]} at row {bad[0]}")
    return a_R
