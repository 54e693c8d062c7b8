"""Guided GRPO for small language models, exact and fast: `from g2rpo_fast import Config, train`."""

from g2rpo_fast.config import Config
from g2rpo_fast.train import TrainResult, train

__all__ = ["Config", "TrainResult", "train"]
