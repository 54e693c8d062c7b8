"""Shaping: from the rewards that were paid to those that credit begins with (`pieces.Shaping`).

DAPO                        overlong            added to the sum
SGPO                        stepwise            added, in groups that fail
P-GRPO                      gate                a channel is paid only behind another
surrogate signals           length_format       in place of what was paid
GRPO-lambda, efficient      length_penalty      added, in the batch's most accurate groups
CRPO                        gate, weighted      in place of what was paid
Pref-GRPO                   win_rate            in place of what was paid
Train Long, Think Short     length_budget       added to the sum
PRS                         stages              a channel is paid only behind all before it
SPINE                       majority            in place of what was paid
Demystifying Long CoT       repetition          added to the sum
"""

from g2rpo_fast.pieces import Shaping
from g2rpo_fast.shaping.gate import Gate
from g2rpo_fast.shaping.length_budget import LengthBudget
from g2rpo_fast.shaping.length_format import LengthFormat
from g2rpo_fast.shaping.length_penalty import LengthPenalty
from g2rpo_fast.shaping.majority import Majority
from g2rpo_fast.shaping.overlong import Overlong
from g2rpo_fast.shaping.repetition import Repetition
from g2rpo_fast.shaping.stages import Stages
from g2rpo_fast.shaping.stepwise import Stepwise
from g2rpo_fast.shaping.weighted import Weighted
from g2rpo_fast.shaping.win_rate import WinRate

SHAPINGS: dict[str, type[Shaping]] = {
    piece.use: piece
    for piece in (
        Overlong,
        Majority,
        Stepwise,
        Gate,
        LengthFormat,
        LengthPenalty,
        Weighted,
        WinRate,
        LengthBudget,
        Stages,
        Repetition,
    )
}
"""By the name in `use`."""

__all__ = [
    "SHAPINGS",
    "Gate",
    "LengthBudget",
    "LengthFormat",
    "LengthPenalty",
    "Majority",
    "Overlong",
    "Repetition",
    "Stages",
    "Stepwise",
    "Weighted",
    "WinRate",
]
