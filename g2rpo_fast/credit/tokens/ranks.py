"""Each item of a list has its own reward, and is compared with the items of the same rank in its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Literal

import numpy as np

from g2rpo_fast.bounds import Ge, Gt
from g2rpo_fast.credit.groups import deviations
from g2rpo_fast.own import PieceError, called, function_of
from g2rpo_fast.pieces import RowTokens, Scored, TokenCredit
from g2rpo_fast.types import Doubles, Rollout


@dataclass(frozen=True, kw_only=True)
class Ranks(TokenCredit):
    """a_t = (R_ik - mean_i R_ik) / (std_i R_ik + eps) for the tokens of item k of row i, over its group.

    own: R_ik = hit_ik. decayed: R_ik = sum_{j >= k} hit_ij / log2(j + 2), items counted from 0. An item that
    a row does not have is a miss; std is the sample's. Tokens of the items from `length` on get -penalty, the
    end of the response +penalty behind exactly `length` items, else -penalty. It replaces what came before.

    Rank-GRPO (arXiv 2510.20150). Evidence: code (yaochenzhu/Rank-GRPO); what a hit is without a function is
    ours.
    """

    use = "ranks"
    of_units = True
    function: Any = ""
    """A function (items, answer, rollout) -> a number an item, such as 1 for a hit and 0 for a miss, or
    "module:function". The items: texts, without the space around them. "" = an item is a hit where it is a
    line of the answer and did not come before."""
    length: Annotated[int, Ge(1)] = 20
    """Items of a whole list; at most `units.items.most`."""
    reward: Literal["own", "decayed"] = "decayed"
    """Whether an item answers for those after it."""
    penalty: Annotated[float, Ge(0)] = 0.1
    """Of what is too long or ends too early; what ends in time is paid as much."""
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function:
            function_of(self.function, self._key)

    @property
    def _key(self) -> str:
        return f"{self.section}.{self.use}.function"

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert scored.cuts is not None
        assert tokens.unit_N is not None
        advantage_RK = self.advantages(scored)
        unit_N, row_N = tokens.unit_N, tokens.row_N
        whole_R = np.asarray([len(cut.texts) == self.length for cut in scored.cuts])
        of_item_N = advantage_RK[row_N, np.clip(unit_N, 0, self.length - 1)]
        end_N = np.where(whole_R[row_N], self.penalty, -self.penalty)
        return np.where(unit_N < 0, end_N, np.where(unit_N < self.length, of_item_N, -self.penalty))

    def advantages(self, scored: Scored) -> Doubles:
        """[R, K] of each row's first `length` items."""
        assert scored.cuts is not None
        hit_RK = np.zeros((len(scored.rollouts), self.length))
        for row, (cut, rollout) in enumerate(zip(scored.cuts, scored.rollouts, strict=True)):
            items = [text.strip() for text in cut.texts[: self.length]]
            hit_RK[row, : len(items)] = self._grades(items, rollout)
        if self.reward == "decayed":
            discount_K = 1 / np.log2(np.arange(self.length) + 2)
            hit_RK = np.cumsum((hit_RK * discount_K)[:, ::-1], axis=1)[:, ::-1]
        made = [deviations(np.ascontiguousarray(column), scored.group_R) for column in hit_RK.T]
        return np.stack([deviation_R / (std_R + self.eps) for deviation_R, std_R in made], axis=1)

    def _grades(self, items: list[str], rollout: Rollout) -> Sequence[float]:
        """Raises PieceError for anything but one finite number an item."""
        answer = rollout.prompt.answer
        if not self.function:
            lines = {line.strip() for line in answer.splitlines()}
            return [item in lines and item not in items[:place] for place, item in enumerate(items)]
        graded = called(self._key, self.function, items, answer, rollout)
        many = isinstance(graded, Sequence | np.ndarray) and len(graded) == len(items)
        if not (many and all(isinstance(grade, Real) and np.isfinite(float(grade)) for grade in graded)):
            raise PieceError(f"{self._key}: wanted {len(items)} finite numbers, one an item, got {graded!r}")
        return [float(grade) for grade in graded]
