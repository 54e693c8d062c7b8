"""Data stage: JSON lines to tokenised prompts, and the order in which they are visited."""

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.order import batch_indices
from g2rpo_fast.data.prompts import PromptSet, ReferenceCheck, load_prompts, read_texts
from g2rpo_fast.data.render import with_chat_settled
from g2rpo_fast.data.rows import listed

__all__ = [
    "DataConfig",
    "PromptSet",
    "ReferenceCheck",
    "batch_indices",
    "listed",
    "load_prompts",
    "read_texts",
    "with_chat_settled",
]
