"""Data stage: rows to tokenised prompts, and the order in which they are visited.

Here is what a configuration needs; the rest is imported from its modules.
"""

from g2rpo_fast.data.config import DataConfig, named_data

__all__ = ["DataConfig", "named_data"]
