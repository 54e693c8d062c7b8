"""The embedded default: a task, a tokenizer and a tiny model that need no download."""

from g2rpo_fast.embedded.prepare import EmbeddedConfig, EmbeddedPaths, prepare

__all__ = ["EmbeddedConfig", "EmbeddedPaths", "prepare"]
