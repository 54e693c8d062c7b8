"""`g2rpo-fast train`: a run."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo_fast.progress import Progress


def run(words: Sequence[str]) -> int:
    """Exit status 3: done, without a reward difference to learn from.

    PyTorch and transformers are imported once the command line is known to be a run's: help and mistakes are
    answered at once.
    """
    from g2rpo_fast.config.arguments import read_arguments

    config = read_arguments(words)
    with Progress().phase("loading PyTorch and transformers"):
        from transformers.utils import logging as transformers_logging

        from g2rpo_fast.train import train

    transformers_logging.disable_progress_bar()
    return 3 if train(config).no_signal else 0
