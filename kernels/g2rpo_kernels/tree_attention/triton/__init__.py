"""Tree attention by block-sparse Triton kernels; imported only where asked for, since it needs Triton."""

from g2rpo_kernels.tree_attention.triton.launch import tree_attention_triton

__all__ = ["tree_attention_triton"]
