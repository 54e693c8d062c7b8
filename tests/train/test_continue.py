"""A run that goes on by its directory alone, with other settings, from a checkpoint of another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_fast.cli import read_arguments
from g2rpo_fast.config import Config, config_from_dict, plain
from g2rpo_fast.config.read import with_method
from g2rpo_fast.fork import checkpoint_of, fork
from g2rpo_fast.methods import load_method
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from runs import TINY, quiet, tiny_config, without_times

SHORT = {
    "evaluate": {"every": 0, "profile_prompts": 0},
    "checkpoint": {"every": 1, "keep": 9},
    "embedded": TINY["embedded"] | {"warm_start_steps": 1, "train_rows": 32},
}


def config_of(directory: Path, steps: int = 2, **sections: dict) -> Config:
    return tiny_config(directory, **SHORT, run={"dir": str(directory), "steps": steps}, **sections)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a method with settings that are nobody's default."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    values, _ = with_method(plain(config_of(directory)), load_method("gspo"))
    values["optim"] |= {"minibatches": 2, "lr": 7e-4}
    train(config_from_dict(values), show=quiet)
    return directory


def test_the_directory_alone_says_all(finished: Path) -> None:
    config = read_arguments(["--run.dir", str(finished)])
    stored = json.loads((finished / "config.json").read_text())
    assert plain(config) == stored
    assert (config.method, config.optim.lr, config.terms[0].use) == ("gspo", 7e-4, "clip")
    longer = read_arguments([f"--run.dir={finished}", "--run.steps", "5", "--optim.lr", "1e-4"])
    assert (longer.run.steps, longer.optim.lr, longer.method) == (5, 1e-4, "gspo")


def test_keys_of_another_version_are_left_out(finished: Path, tmp_path: Path) -> None:
    stored = json.loads((finished / "config.json").read_text())
    stored["rollout"]["long_gone"], stored["bygone"] = 3, {"x": 1}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_arguments(["--run.dir", str(tmp_path)]).optim.lr == 7e-4
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.dir: .*config\.json, got a damaged one"):
        read_arguments(["--run.dir", str(tmp_path)])


def test_a_directory_without_a_run_is_a_new_run_of_the_embedded_task(tmp_path: Path) -> None:
    config = read_arguments(["--run.dir", str(tmp_path / "new")])
    assert config.run.dir == str(tmp_path / "new")
    assert config.data.path is None


def test_what_may_change_changes_with_a_note_and_what_may_not_says_why(tmp_path: Path) -> None:
    train(config_of(tmp_path), show=quiet)
    lines: list[str] = []
    changed = {"optim": {"lr": 5e-4}, "tree": {"token_budget": 640}}
    train(config_of(tmp_path, steps=3, **changed), show=lines.append)
    notes = [line for line in lines if line.startswith("note: goes on with another ")]
    assert [line.split()[5] for line in notes] == ["optim.lr:", "run.steps:", "tree.token_budget:"]
    (record,) = json.loads((tmp_path / "changes.json").read_text())
    assert record["after_step"] == 2
    assert record["changes"][1] == "run.steps: 2 -> 3"
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 5e-4
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["optim/lr"] <= 5e-4
    for wrong, why in (
        ({"optim": {"beta1": 0.5}}, r"optim\.beta1: wanted 0\.9, got 0\.5, but the optimiser's state"),
        ({"rollout": {"group_size": 8}}, r"rollout\.group_size: wanted 6, got 8, but what is sampled"),
        (
            {"objective": {"aggregation": "token_mean"}},
            r"objective\.aggregation: .* but the method is the run",
        ),
        ({"data": {"seed": 9}}, r"data\.seed: wanted 0, got 9, but the prompts and their order"),
    ):
        with pytest.raises(ValueError, match=why + r".*--run\.fork .* in a new directory"):
            train(config_of(tmp_path, steps=3, **changed | wrong), show=quiet)


def test_a_fork_goes_on_from_the_checkpoint_with_any_setting(finished: Path, tmp_path: Path) -> None:
    """As the run would have gone on, where nothing is another."""
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*") if path.name != "lock")
    new = tmp_path / "new"
    config = read_arguments(
        ["--run.fork", f"{finished}:1", "--run.dir", str(new), "--optim.lr", "7e-4", "--run.threads", "1"]
    )
    train(config, show=quiet)
    assert without_times(read_metrics(new / "metrics.jsonl")) == without_times(
        read_metrics(finished / "metrics.jsonl")
    )
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (new, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((new / "changes.json").read_text())[0]["changes"][0].startswith("run: forked from ")
    train(read_arguments(["--run.dir", str(new), "--run.steps", "3"]), show=quiet)  # goes on like any other
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in finished.rglob("*") if path.name != "lock"
    )


def test_a_fork_may_be_another_method_s(finished: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    arguments = ["--run.fork", str(finished), "--run.dir", str(new), "--method", "vade", "--run.steps", "3"]
    config = read_arguments(arguments)
    assert (config.method, config.selection.use) == ("vade", "vade")
    train(config, show=quiet)
    assert [record["step"] for record in read_metrics(new / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_fork_without_a_directory_gets_a_new_one(finished: Path) -> None:
    config = read_arguments(["--run.fork", str(finished)])
    assert config.run.dir is None
    assert config.method == "gspo"


def test_a_fork_of_nothing_is_refused_and_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    for source, wanted in (
        (f"{finished}:7", r"run\.fork: wanted a step from 1, 2, got .*:7"),
        (str(tmp_path), r"run\.fork: wanted a run's directory, or RUN:STEP, got"),
    ):
        config = config_of(tmp_path / "new")
        values = plain(config)
        values["run"]["fork"] = source
        with pytest.raises(ValueError, match=wanted):
            train(config_from_dict(values), show=quiet)
        assert not (tmp_path / "new").exists()


def test_a_fork_that_was_stopped_is_no_run_and_can_be_made_again(finished: Path, tmp_path: Path) -> None:
    """Of another checkpoint, too: nothing of the first one is left."""
    new = tmp_path / "new"
    new.mkdir()
    fork(checkpoint_of(f"{finished}:2"), new)
    with pytest.raises(ValueError, match=r"run\.dir: wanted a run or no run, got .*new with checkpoints and"):
        train(config_of(new), show=quiet)
    arguments = ["--run.fork", f"{finished}:1", "--run.dir", str(new), "--run.threads", "1"]
    train(read_arguments(arguments), show=quiet)
    assert json.loads((new / "changes.json").read_text())[0]["after_step"] == 1


def test_a_checkpoint_that_goes_while_it_is_copied_is_told(finished: Path, tmp_path: Path) -> None:
    gone = finished / "checkpoints" / "step_00000009"
    with pytest.raises(ValueError, match=r"^run\.fork: copying .*step_00000009 failed: "):
        fork(gone, tmp_path)


def test_a_step_saves_after_so_many_seconds(tmp_path: Path) -> None:
    often = {"every": 100, "keep": 9, "every_s": 1e-9}
    train(
        tiny_config(tmp_path, **SHORT | {"checkpoint": often}, run={"dir": str(tmp_path), "steps": 3}),
        show=quiet,
    )
    assert len(list((tmp_path / "checkpoints").glob("step_*"))) >= 3


def test_the_optimiser_s_state_goes_at_the_end_where_it_is_not_wanted(tmp_path: Path) -> None:
    lines: list[str] = []
    without = {"checkpoint": {"every": 1, "keep": 9, "keep_moments": False}}
    train(tiny_config(tmp_path, **SHORT | without, run={"dir": str(tmp_path), "steps": 2}), show=lines.append)
    assert not list(tmp_path.rglob("optimizer.pt"))
    assert f"{tmp_path}: " in lines[-1]
    assert "MiB" in lines[-1]
    with pytest.raises(
        ValueError, match=r"wanted a checkpoint with the optimiser's state, got step_00000002"
    ):
        train(read_arguments(["--run.dir", str(tmp_path), "--run.steps", "3"]), show=quiet)
