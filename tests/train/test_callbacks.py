"""What a program is told of a run from Python, and how it ends one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast import Callback, TrainResult, train
from g2rpo_fast.checkpoint import latest_checkpoint
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.own import PieceError
from runs import quiet, tiny_config, without_times


class Heard(Callback):
    """Keeps what it is told, and may end the run after a step."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.steps, self.saved = last, [], []
        self.results: list[TrainResult] = []

    def on_step(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        self.steps.append((step, dict(metrics)))
        return step == self.last

    def on_save(self, step: int, directory: Path) -> None:
        self.saved.append((step, directory, sorted(path.name for path in directory.iterdir())))

    def on_end(self, result: TrainResult) -> None:
        self.results.append(result)


class Failing(Callback):
    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise RuntimeError("no such table")


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_callback_is_told_and_ends_a_run_that_goes_on_bit_for_bit(tmp_path: Path, ahead: int):
    sections: dict[str, Any] = {"run": {"steps": 4, "ahead": ahead}}
    if ahead:
        sections["objective"] = {"importance": "token_truncate"}
    whole, stopping, rest = Heard(), Heard(last=2), Heard()
    one = train(tiny_config(tmp_path / "one", **sections), show=quiet, callbacks=[whole])
    other = tiny_config(tmp_path / "other", **sections)
    first = train(other, show=quiet, callbacks=[stopping, Callback()])
    assert [step for step, _ in stopping.steps] == [0, 1, 2]
    assert first.model_dir.is_dir()
    assert stopping.results == [first]
    newest = latest_checkpoint(first.directory / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000002"
    second = train(other, show=quiet, callbacks=[rest])
    assert [step for step, _ in rest.steps] == [3, 4]
    assert [step for step, _ in whole.steps] == [0, 1, 2, 3, 4]
    assert whole.saved[-1][:2] == (4, one.directory / "checkpoints" / "step_00000004")
    assert {"model.safetensors", "optimizer.pt"} <= set(whole.saved[-1][2])
    records = [without_times(read_metrics(result.metrics_path)) for result in (one, second)]
    assert records[0] == records[1]
    told = whole.steps[3][1]
    assert told["update/positions"] == records[0][3]["update/positions"]
    weights = [(result.model_dir / "model.safetensors").read_bytes() for result in (one, second)]
    assert weights[0] == weights[1]


def test_what_a_callback_raises_ends_the_run_saved_and_is_told_in_a_line(tmp_path: Path):
    config = tiny_config(tmp_path / "run", checkpoint={"every": 100}, evaluate={"every": 0})
    with pytest.raises(PieceError) as caught:
        train(config, show=quiet, callbacks=[Failing()])
    assert str(caught.value) == "callbacks: Failing.on_step: RuntimeError: no such table"
    assert any("the state after step 2 is saved" in note for note in caught.value.__notes__)
    heard = Heard()
    train(config, show=quiet, callbacks=[heard])
    assert [step for step, _ in heard.steps] == [3, 4]


def test_what_is_no_callback_is_refused_before_anything_is_made(tmp_path: Path):
    wrong: Any = print
    with pytest.raises(ValueError, match=r"callbacks: wanted objects of g2rpo_fast\.Callback, got builtin"):
        train(tiny_config(tmp_path / "run"), show=quiet, callbacks=[wrong])
    assert not (tmp_path / "run").exists()
