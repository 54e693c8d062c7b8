"""Rounds of a step: what is asked of the engine, asked again, and kept (`pieces.Round`)."""

from g2rpo_fast.pieces import Round
from g2rpo_fast.rounds.chain import first_memory, first_round, next_round, noted, observed, settled

ROUNDS: dict[str, type[Round]] = {}

__all__ = ["ROUNDS", "first_memory", "first_round", "next_round", "noted", "observed", "settled"]
