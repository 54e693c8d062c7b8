"""The ops on padded batches, with the signatures that other trainers know."""

from g2rpo_kernels.padded.fused_linear import FusedLinearGRPOLoss
from g2rpo_kernels.padded.grpo_loss import PaddedLoss, grpo_loss, grpo_loss_of_logps
from g2rpo_kernels.padded.options import GRPOOptions
from g2rpo_kernels.padded.token_logprobs import token_logprobs

__all__ = [
    "FusedLinearGRPOLoss",
    "GRPOOptions",
    "PaddedLoss",
    "grpo_loss",
    "grpo_loss_of_logps",
    "token_logprobs",
]
