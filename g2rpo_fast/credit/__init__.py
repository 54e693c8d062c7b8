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
from g2rpo_fast.credit.chain import advantages, chain_of
from g2rpo_fast.credit.channels import Channels
from g2rpo_fast.credit.rloo import Rloo
from g2rpo_fast.credit.std import Std
from g2rpo_fast.credit.whiten import Whiten
from g2rpo_fast.pieces import Credit

CREDITS: dict[str, type[Credit]] = {
    piece.use: piece for piece in (Center, Std, BatchStd, Channels, Whiten, Rloo)
}
"""By the name in `use`."""

__all__ = [
    "CREDITS",
    "BatchStd",
    "Center",
    "Channels",
    "Rloo",
    "Std",
    "Whiten",
    "advantages",
    "chain_of",
]
