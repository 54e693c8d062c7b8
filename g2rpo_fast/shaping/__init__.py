"""Shaping: from the rewards that were paid to those that credit begins with (`pieces.Shaping`)."""

from g2rpo_fast.pieces import Shaping
from g2rpo_fast.shaping.overlong import Overlong

SHAPINGS: dict[str, type[Shaping]] = {piece.use: piece for piece in (Overlong,)}
"""By the name in `use`."""

__all__ = ["SHAPINGS", "Overlong"]
