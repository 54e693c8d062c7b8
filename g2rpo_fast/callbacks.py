"""What a program hangs on a run from Python: called as the run gets on, between its phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g2rpo_fast.own import PieceError
from g2rpo_fast.types import TrainResult


class Callback:
    """Subclass it, and define what is wanted: each method does nothing here.

    What one raises ends the run as other errors do, saved; a continued run does not call it again for a step
    that is recorded. A run is the same, bit for bit, with callbacks and without, unless one stops it.
    """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        """A step is evaluated and recorded.

        Args:
            step: 0 for what is measured before the first one.
            metrics: its record in metrics.jsonl, NaN where there is nothing to tell.

        Returns:
            True: this was the last step. It is saved, and the model is written as at the end of a run.
        """

    def on_save(self, step: int, directory: Path) -> None:
        """A checkpoint is there, whole."""

    def on_end(self, result: TrainResult) -> None:
        """The run is done, its model written. Not called where an error or a signal ended it."""


class Callbacks:
    """All callbacks of a run, in their order."""

    def __init__(self, given: Sequence[Callback] = ()) -> None:
        wrong = next((one for one in given if not isinstance(one, Callback)), None)
        if wrong is not None:
            raise ValueError(
                f"callbacks: wanted objects of g2rpo_fast.Callback, got {type(wrong).__name__} {wrong!r}"
            )
        self._given = tuple(given)
        self.stopped = False
        """One of them said that the run ends here."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        answers = [self._called(one, "on_step", step, metrics) for one in self._given]
        self.stopped = self.stopped or any(answer is True for answer in answers)

    def saved(self, step: int, directory: Path) -> None:
        for one in self._given:
            self._called(one, "on_save", step, directory)

    def ended(self, result: TrainResult) -> None:
        for one in self._given:
            self._called(one, "on_end", result)

    def _called(self, one: Callback, name: str, *arguments: Any) -> Any:
        call: Callable[..., Any] = getattr(one, name)
        try:
            return call(*arguments)
        except Exception as error:  # a user's own code
            raise PieceError(
                f"callbacks: {type(one).__name__}.{name}: {type(error).__name__}: {error}"
            ) from error
