"""Data stage: JSON lines to tokenised prompts, and the order in which they are visited."""

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.order import batch_indices
from g2rpo_fast.data.prompts import PromptSet, load_prompts, read_texts

__all__ = ["DataConfig", "PromptSet", "batch_indices", "load_prompts", "read_texts"]
