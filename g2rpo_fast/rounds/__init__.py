"""Rounds of a step: what is asked of the engine, asked again, and kept (`pieces.Round`)."""

from g2rpo_fast.pieces import Round
from g2rpo_fast.rounds.chain import first_round, next_round, settled
from g2rpo_fast.rounds.hint_on_failure import HintOnFailure
from g2rpo_fast.rounds.resample import Resample

ROUNDS: dict[str, type[Round]] = {piece.use: piece for piece in (HintOnFailure, Resample)}

__all__ = [
    "ROUNDS",
    "HintOnFailure",
    "Resample",
    "first_round",
    "next_round",
    "settled",
]
