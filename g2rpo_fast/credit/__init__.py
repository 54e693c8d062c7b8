"""The credit stage: from rewards to advantages, in plain float64 NumPy.

GRPO, DAPO, BNPO, GSPO, CISPO, SAPO, VESPO, LUSPO    center, std
Dr. GRPO                                             center
Lite PPO                                             center, batch_std
GDPO                                                 channels, whiten
RLOO                                                 rloo (and whiten, in TRL's normalised form)
REINFORCE++                                          whiten over tokens; with a baseline center before it
"""

from g2rpo_fast.credit.batch_std import BatchStd
from g2rpo_fast.credit.center import Center
from g2rpo_fast.credit.chain import advantages
from g2rpo_fast.credit.channels import Channels
from g2rpo_fast.credit.own import Own
from g2rpo_fast.credit.rloo import Rloo
from g2rpo_fast.credit.std import Std
from g2rpo_fast.credit.whiten import Whiten
from g2rpo_fast.pieces import Credit, TokenCredit

CREDITS: dict[str, type[Credit]] = {
    piece.use: piece for piece in (Center, Std, BatchStd, Channels, Whiten, Rloo, Own)
}
"""By the name in `use`."""
TOKEN_CREDITS: dict[str, type[TokenCredit]] = {}

__all__ = [
    "CREDITS",
    "TOKEN_CREDITS",
    "BatchStd",
    "Center",
    "Channels",
    "Rloo",
    "Std",
    "Whiten",
    "advantages",
]
