"""A response is one unit."""

from __future__ import annotations

from dataclasses import dataclass

from g2rpo_fast.pieces import Scored, Units


@dataclass(frozen=True, kw_only=True)
class Whole(Units):
    """Nothing is cut."""

    use = "whole"
    cuts = False

    def __call__(self, scored: Scored) -> None:
        return None
