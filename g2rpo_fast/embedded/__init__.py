"""The embedded default: a task, a tokenizer and a tiny model that need no download."""

from g2rpo_fast.embedded.prepare import EmbeddedConfig, EmbeddedPaths, prepare
from g2rpo_fast.embedded.untrained import UNTRAINED, prepare_untrained

__all__ = ["UNTRAINED", "EmbeddedConfig", "EmbeddedPaths", "prepare", "prepare_untrained"]
