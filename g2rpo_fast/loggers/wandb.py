"""Weights & Biases. Without a network: WANDB_MODE=offline, and `wandb sync` later."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Mapping

import wandb

from g2rpo_fast.loggers import LoggedRun


class WeightsAndBiases:
    def __init__(self, run: LoggedRun) -> None:
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.directory),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def open_logger(run: LoggedRun) -> WeightsAndBiases:
    return WeightsAndBiases(run)
