"""The policy: a Hugging Face causal language model whose attention runs over packed prefix trees."""

from g2rpo_fast.model.config import ModelConfig, compute_context, compute_dtype
from g2rpo_fast.model.export import export_dtype, export_model, make_exportable, write_small_files
from g2rpo_fast.model.forward import TreeContext, TreeOutput, tree_hidden
from g2rpo_fast.model.head import Head, head_of
from g2rpo_fast.model.hook import ATTENTION, Attend, register_attention
from g2rpo_fast.model.load import load_model, noise_of
from g2rpo_fast.model.vocabulary import check_vocabulary, load_tokenizer

__all__ = [
    "ATTENTION",
    "Attend",
    "Head",
    "ModelConfig",
    "TreeContext",
    "TreeOutput",
    "check_vocabulary",
    "compute_context",
    "compute_dtype",
    "export_dtype",
    "export_model",
    "head_of",
    "load_model",
    "load_tokenizer",
    "make_exportable",
    "noise_of",
    "register_attention",
    "tree_hidden",
    "write_small_files",
]
