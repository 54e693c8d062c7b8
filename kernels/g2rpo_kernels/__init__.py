"""Kernels for training on groups of sampled sequences. Knows no trainer; needs torch, and triton on a GPU.

Installed from source, some work on the CPU runs in C++ (`_cpu`); without that extension torch does it.
"""

from g2rpo_kernels.group_advantage import edge_coefficients, group_advantage
from g2rpo_kernels.linear_logprob import VocabShard, linear_logprob
from g2rpo_kernels.linear_policy_loss import linear_policy_loss
from g2rpo_kernels.logprob import LogProb, logprob
from g2rpo_kernels.padded import (
    FusedLinearGRPOLoss,
    GRPOOptions,
    PaddedLoss,
    grpo_loss,
    grpo_loss_of_logps,
    token_logprobs,
)
from g2rpo_kernels.policy_loss import (
    Edges,
    Objective,
    PolicyLoss,
    Rewards,
    policy_loss,
    policy_loss_from_rewards,
)
from g2rpo_kernels.policy_loss.logps import policy_loss_of_logps
from g2rpo_kernels.policy_loss.surrogates import (
    SURROGATES,
    Cispo,
    Clip,
    Reinforce,
    Sapo,
    Surrogate,
    Values,
    Vespo,
)
from g2rpo_kernels.token_loss import TokenLoss, token_loss
from g2rpo_kernels.tree_attention import cascade_plan, tile_plan, tree_attention

__all__ = [
    "SURROGATES",
    "Cispo",
    "Clip",
    "Edges",
    "FusedLinearGRPOLoss",
    "GRPOOptions",
    "LogProb",
    "Objective",
    "PaddedLoss",
    "PolicyLoss",
    "Reinforce",
    "Rewards",
    "Sapo",
    "Surrogate",
    "TokenLoss",
    "Values",
    "Vespo",
    "VocabShard",
    "cascade_plan",
    "edge_coefficients",
    "group_advantage",
    "grpo_loss",
    "grpo_loss_of_logps",
    "linear_logprob",
    "linear_policy_loss",
    "logprob",
    "policy_loss",
    "policy_loss_from_rewards",
    "policy_loss_of_logps",
    "tile_plan",
    "token_logprobs",
    "token_loss",
    "tree_attention",
]
