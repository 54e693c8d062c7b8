"""What a response is cut into, for rewards, baselines and ratios of its parts (`pieces.Units`).

whole    a response is one unit
items    the lines of a list, the steps of a solution     Rank-GRPO
"""

from g2rpo_fast.pieces import Units
from g2rpo_fast.units.items import Items
from g2rpo_fast.units.whole import Whole

UNITS: dict[str, type[Units]] = {piece.use: piece for piece in (Whole, Items)}

__all__ = ["UNITS", "Items", "Whole"]
