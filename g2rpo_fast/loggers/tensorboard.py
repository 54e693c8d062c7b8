"""TensorBoard: event files under `tensorboard/` of the run directory."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from g2rpo_fast.loggers import LoggedRun


class TensorBoard:
    def __init__(self, run: LoggedRun) -> None:
        # What a killed process wrote of later steps is taken back by TensorBoard itself.
        purge = None if run.last_step < 0 else run.last_step + 1
        self._writer = SummaryWriter(str(run.directory / "tensorboard"), purge_step=purge)
        if run.last_step < 0:
            self._writer.add_text("settings", f"```json\n{json.dumps(run.settings, indent=1)}\n```", 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


def open_logger(run: LoggedRun) -> TensorBoard:
    return TensorBoard(run)
