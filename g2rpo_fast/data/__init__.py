"""Data stage: rows to tokenised prompts, and the order in which they are visited.

Here is what a configuration needs; the rest is imported from its modules.
"""

from g2rpo_fast.data.config import DataConfig, named_data
from g2rpo_fast.data.order import batch_indices

__all__ = ["DataConfig", "batch_indices", "named_data"]
