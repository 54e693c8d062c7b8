"""Trackio: a local database, shown by `trackio show`."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Mapping

import trackio

from g2rpo_fast.loggers import LoggedRun


class Trackio:
    def __init__(self, run: LoggedRun) -> None:
        self._run = trackio.init(
            project=run.project,
            name=run.id,
            resume="allow",
            config=run.flat,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish()


def open_logger(run: LoggedRun) -> Trackio:
    return Trackio(run)
