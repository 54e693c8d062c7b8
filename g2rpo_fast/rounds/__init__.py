"""Rounds of a step: what is asked of the engine, asked again, and kept (`pieces.Round`).

Guide     hint_on_failure     failed groups again, from a hint
DAPO      resample            other prompts for groups without a signal
PODS      max_variance        keeps the rows whose rewards vary most
"""

from g2rpo_fast.pieces import Round
from g2rpo_fast.rounds.chain import first_round, next_round, settled
from g2rpo_fast.rounds.hint_on_failure import HintOnFailure
from g2rpo_fast.rounds.horizon import Horizon
from g2rpo_fast.rounds.max_variance import MaxVariance
from g2rpo_fast.rounds.resample import Resample
from g2rpo_fast.rounds.revalue import Revalue

ROUNDS: dict[str, type[Round]] = {
    piece.use: piece for piece in (HintOnFailure, Resample, MaxVariance, Horizon, Revalue)
}

__all__ = [
    "ROUNDS",
    "HintOnFailure",
    "Horizon",
    "MaxVariance",
    "Resample",
    "Revalue",
    "first_round",
    "next_round",
    "settled",
]
