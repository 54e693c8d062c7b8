"""Advantages and factors of tokens: what a method says of them one by one.

`TOKEN_CREDITS` changes advantages, which only what is multiplied by them sees. `WEIGHTS` multiplies all that
the loss sums, penalties included. Both see the old policy's numbers where they say so (`needs`).
"""

from g2rpo_fast.credit.tokens.by_probability import ByProbability
from g2rpo_fast.credit.tokens.confident import Confident
from g2rpo_fast.credit.tokens.conflicts import Conflicts
from g2rpo_fast.credit.tokens.forking import Forking
from g2rpo_fast.credit.tokens.hidden_reward import HiddenReward
from g2rpo_fast.credit.tokens.hotter import Hotter
from g2rpo_fast.credit.tokens.learned_length import LearnedLength
from g2rpo_fast.credit.tokens.ranks import Ranks
from g2rpo_fast.pieces import TokenCredit, Weight

TOKEN_CREDITS: dict[str, type[TokenCredit]] = {
    piece.use: piece for piece in (ByProbability, Conflicts, Forking, HiddenReward, Hotter, Ranks)
}
"""By the name in `use`."""
WEIGHTS: dict[str, type[Weight]] = {piece.use: piece for piece in (Confident, LearnedLength)}

__all__ = [
    "TOKEN_CREDITS",
    "WEIGHTS",
    "ByProbability",
    "Confident",
    "Conflicts",
    "Forking",
    "HiddenReward",
    "Hotter",
    "LearnedLength",
    "Ranks",
]
