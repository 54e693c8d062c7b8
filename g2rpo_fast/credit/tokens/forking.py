"""Only the tokens of a row where it might have gone elsewhere are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt, Le
from g2rpo_fast.pieces import RowTokens, Scored, TokenCredit
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class Forking(TokenCredit):
    """a_t where the old policy's entropy is among the row's largest `share` (at least one token), else 0.

    The denominator still counts all tokens. SPINE (arXiv 2511.17938), after 2506.01939. Evidence: notes.
    """

    use = "forking"
    needs = frozenset({"entropy"})
    share: Annotated[float, Gt(0), Le(1)] = 0.2
    """Of the row's trained tokens."""

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.entropy_N is not None
        made_N = np.zeros(len(a_N))
        for at in tokens.of_rows.values():
            number = max(1, round(self.share * len(at)))
            chosen = at[np.argsort(-tokens.entropy_N[at], kind="stable")[:number]]
            made_N[chosen] = a_N[chosen]
        return made_N
