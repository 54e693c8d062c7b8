"""Which prompts a step trains on, and how many rollouts each gets."""

from g2rpo_fast.pieces import Selection
from g2rpo_fast.select.in_order import InOrder
from g2rpo_fast.select.vade import Vade

SELECTIONS: dict[str, type[Selection]] = {piece.use: piece for piece in (InOrder, Vade)}

__all__ = ["SELECTIONS", "InOrder", "Vade"]
