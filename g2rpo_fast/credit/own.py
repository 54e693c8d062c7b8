"""A step of the chain of one's own, without a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from g2rpo_fast.own import called, function_of
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Own(Credit):
    """function(a_R, scored, store) -> [R] float64 (see `pieces.Credit`)."""

    use = "own"
    function: Any
    """The function, or "module:function"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        function_of(self.function, f"{self.section}.{self.use}.function")

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        return called(f"{self.section}.{self.use}.function", self.function, a_R, scored, store)
