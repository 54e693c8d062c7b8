"""Runs that take less memory: they go on bit for bit, their checkpoints and models are as they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_fast.config import Config
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from runs import embedded_paths, quiet, tiny_config, without_times

KEPT: dict[str, dict[str, dict[str, Any]]] = {
    "half": {"model": {"weights": "bfloat16"}},
    "8 bits": {"optim": {"kind": "adamw_8bit"}},
    "muon": {"optim": {"kind": "muon"}},
    "all of it": {
        "model": {"weights": "bfloat16", "gradient_checkpointing": True, "checkpointed_layers": 1},
        "optim": {"kind": "adamw_8bit", "in_backward": True, "max_grad_norm": float("inf")},
    },
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The embedded task's model and data, made once."""
    return embedded_paths(tmp_path_factory.mktemp("embedded"))


def config_of(directory: Path, paths: Any, steps: int, kept: dict[str, dict[str, Any]]) -> Config:
    sections: dict[str, dict[str, Any]] = {name: dict(section) for name, section in paths.items()}
    sections["optim"] = {"schedule": "constant", "lr": 1e-3, "updates_per_batch": 2, "minibatches": 2}
    for name, section in kept.items():
        sections[name] = sections.get(name, {}) | section
    return tiny_config(directory, run={"steps": steps, "dir": str(directory)}, **sections)


@pytest.mark.parametrize("name", KEPT)
def test_a_run_stopped_and_continued_is_the_whole_run_bit_for_bit(
    name: str, paths: Any, tmp_path: Path
) -> None:
    if "8bit" in str(KEPT[name]):
        pytest.importorskip("bitsandbytes")
    whole = train(config_of(tmp_path / "whole", paths, 4, KEPT[name]), show=quiet)
    train(config_of(tmp_path / "broken", paths, 2, KEPT[name]), show=quiet)
    broken = train(config_of(tmp_path / "broken", paths, 4, KEPT[name]), show=quiet)
    records = without_times(read_metrics(whole.metrics_path))
    assert without_times(read_metrics(broken.metrics_path)) == records
    assert any(record.get("rollout/guidance_tokens") for record in records)
    half = "weights" in KEPT[name].get("model", {})
    assert all(record["mismatch/max_abs"] < (0.2 if half else 1e-4) for record in records[1:])
    stored = [
        load_file(r.directory / "checkpoints" / "step_00000004" / "model.safetensors")
        for r in (whole, broken)
    ]
    before = load_file(whole.directory / "checkpoints" / "step_00000002" / "model.safetensors")
    for key, tensor in stored[0].items():
        assert torch.equal(tensor, stored[1][key]), key
        assert not torch.equal(tensor, before[key]), key
        assert (tensor.dtype == torch.bfloat16) == (half and "norm" not in key), key
    model = load_file(whole.model_dir / "model.safetensors")
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}  # as the model at `path`


def test_steps_in_the_backward_pass_may_be_switched_on_later(paths: Any, tmp_path: Path) -> None:
    """They are the same steps; what the optimiser keeps is the same, too."""
    plain: Any = {"optim": {"max_grad_norm": float("inf")}}
    within: Any = {"optim": {"max_grad_norm": float("inf"), "in_backward": True}}
    whole = train(config_of(tmp_path / "whole", paths, 4, plain), show=quiet)
    train(config_of(tmp_path / "broken", paths, 2, plain), show=quiet)
    broken = train(config_of(tmp_path / "broken", paths, 4, within), show=quiet)
    one, other = (load_file(run.model_dir / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_optimiser_does_not_go_on_with_a_run(paths: Any, tmp_path: Path) -> None:
    train(config_of(tmp_path, paths, 1, {}), show=quiet)
    for kept, message in (
        ({"optim": {"kind": "muon"}}, r"optim\.kind: wanted 'adamw', got 'muon', but the optimiser's state"),
        (
            {"model": {"weights": "bfloat16"}},
            r"model\.weights: wanted 'float32', got 'bfloat16', but the weights",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(config_of(tmp_path, paths, 2, kept), show=quiet)


@pytest.mark.parametrize("name", ["muon", "all of it"])
def test_a_fork_may_have_another_optimiser_which_begins_anew(name: str, paths: Any, tmp_path: Path) -> None:
    """Without a word where it is of the same kind; back to float32 as well."""
    if "8bit" in str(KEPT[name]):
        pytest.importorskip("bitsandbytes")
    train(config_of(tmp_path / "plain", paths, 1, {}), show=quiet)
    taken = tmp_path / "plain"
    for place, kept in enumerate((KEPT[name], KEPT[name], {})):
        lines: list[str] = []
        config = config_of(tmp_path / str(place), paths, 2 + place, kept)
        train(replace(config, run=replace(config.run, fork=str(taken))), show=lines.append)
        anew = [line for line in lines if "the optimiser begins anew" in line]
        assert len(anew) == (place != 1), anew
        taken = tmp_path / str(place)
