"""`g2rpo-fast train`: a run; with `--plan` what it would take, and no run."""

from __future__ import annotations

from collections.abc import Sequence

from g2rpo_fast.commands.common import loading

ESTIMATE_S = 4.0
"""Seconds of calibration before a run begins, about."""


def run(words: Sequence[str]) -> int:
    """Exit status 3: done, without a reward difference to learn from.

    PyTorch and transformers are imported once the command line is known to be a run's: help and mistakes,
    those in paths too, are answered at once.
    """
    if "--plan" in words:
        from g2rpo_fast.commands import plan

        return plan.run([word for word in words if word != "--plan"])
    from g2rpo_fast.config.arguments import read_arguments
    from g2rpo_fast.paths import check_paths

    config = read_arguments(words)
    check_paths(config)
    loading("g2rpo_fast.train")
    from g2rpo_fast.train import train

    return 3 if train(config, estimate_s=ESTIMATE_S).no_signal else 0
