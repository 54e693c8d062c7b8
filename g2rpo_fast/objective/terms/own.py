"""A term of one's own, without a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_fast.own import called, function_of
from g2rpo_fast.pieces import Term, Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Own(Term):
    """function(logp_N, entropy_N, tokens) -> 0-dim tensor, to be minimised (see `pieces.Term`).

    Attributes of the function may say more: `ties` ("token", "row", "group" or "batch", which is assumed) and
    `needs` (names among old_logp and ref_logp; old_logp is assumed).
    """

    use = "own"
    function: Any
    """The function, or "module:function"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        function_of(self.function, f"{self.section}.{self.use}.function")

    @property
    def told(self) -> Callable[..., Tensor]:
        return function_of(self.function, f"{self.section}.{self.use}.function")

    @property
    def ties(self) -> Ties:
        return getattr(self.told, "ties", "batch")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(getattr(self.told, "needs", ("old_logp",)))

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        return called(f"{self.section}.{self.use}.function", self.function, logp_N, entropy_N, tokens)
