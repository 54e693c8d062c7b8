"""The credit stage: from rewards to advantages, in plain float64 NumPy.

GRPO, DAPO, BNPO, GSPO, CISPO, SAPO, VESPO, LUSPO    center, std
Dr. GRPO                                             center
Lite PPO                                             center, batch_std
GDPO                                                 channels, whiten
RLOO                                                 rloo (and whiten, in TRL's normalised form)
REINFORCE++                                          whiten over tokens; with a baseline center before it
RAFT, RAFT++                                         positive
Reinforce-Rej                                        reject
GPG                                                  center, valid_share
NGRPO                                                virtual_sample
DGPO                                                 center, mad, valid_share over tokens, difficulty
SEED-GRPO                                            center, semantic_entropy
PC-GRPO                                              center, puzzle_curriculum
FAKER-Air                                            rank
GRPO-lambda (traces)                                 center, std, floor
SPO (single-stream)                                  tracker_baseline, whiten
VSPO                                                 center, std, copies

An empty chain leaves the raw rewards.
"""

from g2rpo_fast.credit.batch_std import BatchStd
from g2rpo_fast.credit.center import Center
from g2rpo_fast.credit.chain import advantages
from g2rpo_fast.credit.channels import Channels
from g2rpo_fast.credit.copies import Copies
from g2rpo_fast.credit.difficulty import Difficulty
from g2rpo_fast.credit.floor import Floor
from g2rpo_fast.credit.mad import Mad
from g2rpo_fast.credit.own import Own
from g2rpo_fast.credit.positive import Positive
from g2rpo_fast.credit.puzzle_curriculum import PuzzleCurriculum
from g2rpo_fast.credit.rank import Rank
from g2rpo_fast.credit.reject import Reject
from g2rpo_fast.credit.rloo import Rloo
from g2rpo_fast.credit.semantic_entropy import SemanticEntropy
from g2rpo_fast.credit.std import Std
from g2rpo_fast.credit.tokens import TOKEN_CREDITS, WEIGHTS
from g2rpo_fast.credit.tracker_baseline import TrackerBaseline
from g2rpo_fast.credit.valid_share import ValidShare
from g2rpo_fast.credit.virtual_sample import VirtualSample
from g2rpo_fast.credit.whiten import Whiten
from g2rpo_fast.pieces import Credit

CREDITS: dict[str, type[Credit]] = {
    piece.use: piece
    for piece in (
        Center,
        Std,
        BatchStd,
        Channels,
        Whiten,
        Rloo,
        Positive,
        Reject,
        ValidShare,
        VirtualSample,
        Mad,
        Difficulty,
        SemanticEntropy,
        PuzzleCurriculum,
        Rank,
        Floor,
        TrackerBaseline,
        Copies,
        Own,
    )
}
"""By the name in `use`."""

__all__ = [
    "CREDITS",
    "TOKEN_CREDITS",
    "WEIGHTS",
    "BatchStd",
    "Center",
    "Channels",
    "Copies",
    "Difficulty",
    "Mad",
    "Positive",
    "PuzzleCurriculum",
    "Rank",
    "Reject",
    "Rloo",
    "SemanticEntropy",
    "Std",
    "TrackerBaseline",
    "ValidShare",
    "VirtualSample",
    "Whiten",
    "advantages",
]
