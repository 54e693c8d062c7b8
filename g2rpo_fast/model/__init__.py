"""The policy: a Hugging Face causal language model whose attention runs over packed prefix trees.

Here is what a configuration needs; its modules, which import PyTorch, are imported by name.
"""

from g2rpo_fast.model.config import ModelConfig, compute_context, compute_dtype

__all__ = ["ModelConfig", "compute_context", "compute_dtype"]
