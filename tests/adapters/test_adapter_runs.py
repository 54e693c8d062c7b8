"""Runs that train adapters: what they keep, how they go on, what others load of them, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from commands import printed
from g2rpo_fast.adapters.stored import read_causal_lm
from g2rpo_fast.assemble import assemble
from g2rpo_fast.config import Config
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import load_model
from g2rpo_fast.train import train
from g2rpo_fast.types import TrainResult
from runs import embedded_paths, quiet, tiny_config, without_times

LORA = {"kind": "lora", "rank": 4, "targets": ("q_proj", "down_proj")}
KL = ({"use": "clip"}, {"use": "kl", "coef": 0.05})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The embedded task's model and data, made once."""
    return embedded_paths(tmp_path_factory.mktemp("embedded"))


def config_of(directory: Path, paths: dict[str, dict[str, Any]], steps: int, **sections: Any) -> Config:
    values: dict[str, Any] = {"run": {"steps": steps}, "adapter": LORA, "optim": {"schedule": "constant"}}
    values["optim"] |= {"lr": 0.01, "updates_per_batch": 2}
    return tiny_config(directory, **values | paths | sections)


@pytest.fixture(scope="module")
def finished(paths: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(config_of(tmp_path_factory.mktemp("runs") / "whole", paths, 4), show=quiet)


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def test_a_run_stopped_and_continued_is_the_whole_run_bit_for_bit(
    finished: TrainResult, paths: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    lines: list[str] = []
    train(config_of(tmp_path, paths, 2), show=lines.append)
    assert "model: 0.40M parameters, 0.01M of them in adapters on cpu" in "\n".join(lines)
    train(config_of(tmp_path, paths, 4), show=quiet)
    records = read_metrics(finished.metrics_path)
    assert without_times(read_metrics(tmp_path / "metrics.jsonl")) == without_times(records)
    assert any(record.get("rollout/guidance_tokens") for record in records)
    assert all(record["mismatch/max_abs"] < 1e-4 for record in records[1:])
    for step in (2, 4):
        one, other = (checkpoint(run, step) for run in (finished.directory, tmp_path))
        names = sorted(path.name for path in one.iterdir())
        assert "adapter_model.safetensors" in names
        assert "model.safetensors" not in names
        stored = [(path / "adapter_model.safetensors").read_bytes() for path in (one, other)]
        assert stored[0] == stored[1]
    trained = load_file(checkpoint(tmp_path, 4) / "adapter_model.safetensors")
    before = load_file(checkpoint(tmp_path, 2) / "adapter_model.safetensors")
    assert all(not torch.equal(tensor, before[name]) for name, tensor in trained.items())


def test_a_base_of_four_bits_goes_on_bit_for_bit_and_leaves_a_dense_model(
    paths: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    sections: Any = {
        "adapter": {"kind": "dora", "rank": 4, "base": "nf4"},
        "evaluate": {"every": 0, "profile_prompts": 0},
    }
    whole = train(config_of(tmp_path / "whole", paths, 2, **sections), show=quiet)
    train(config_of(tmp_path / "broken", paths, 1, **sections), show=quiet)
    broken = train(config_of(tmp_path / "broken", paths, 2, **sections), show=quiet)
    records = without_times(read_metrics(whole.metrics_path))
    assert without_times(read_metrics(broken.metrics_path)) == records
    assert all(record["mismatch/max_abs"] < 1e-4 for record in records[1:])
    weights = [(result.model_dir / "model.safetensors").read_bytes() for result in (whole, broken)]
    assert weights[0] == weights[1]
    base = load_file(Path(paths["model"]["path"]) / "model.safetensors")
    for name, tensor in load_file(whole.model_dir / "model.safetensors").items():
        assert tensor.dtype == base[name].dtype
        assert tensor.shape == base[name].shape
    merged = load_file(whole.model_dir / "model.safetensors")
    stored = shutil.copytree(checkpoint(whole.directory, 2), tmp_path / "stored")
    for exact in (True, False):
        again = read_causal_lm(str(stored), torch.float32).state_dict()
        off = max(float((again[name] - tensor).abs().max()) for name, tensor in merged.items())
        assert off < 1e-6 if exact else off > 1e-3, off
        (stored / "adapter_base.json").unlink(missing_ok=True)  # then their base is the one that was rounded


def test_the_final_model_is_the_base_with_the_adapters_merged(
    finished: TrainResult, paths: dict[str, dict[str, Any]]
) -> None:
    base = load_file(Path(paths["model"]["path"]) / "model.safetensors")
    merged = load_file(finished.model_dir / "model.safetensors")
    assert merged.keys() == base.keys()
    moved = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "down_proj"}
    assert len(moved) == 4
    stored = checkpoint(finished.directory, 4)
    ids = torch.arange(3, 13)[None]
    plain = AutoModelForCausalLM.from_pretrained(finished.model_dir)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(paths["model"]["path"]), stored)
    ours = load_model(str(stored), ModelConfig(attention="reference"), "cpu")
    ours.set_attn_implementation("eager")
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (plain, by_peft, ours)]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-5)


def test_checkpoints_are_evaluated_and_exported(
    finished: TrainResult,
    paths: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = finished.directory
    for name, directory in ((str(run), tmp_path / "final"), (f"{run}:4", tmp_path / "four")):
        assert "0.40M parameters" in printed(["export", name, directory, "--dtype", "float32"], capsys)
        got = load_file(directory / "model.safetensors")
        wanted = load_file(finished.model_dir / "model.safetensors")
        assert all(torch.equal(tensor, got[name]) for name, tensor in wanted.items())
    data = paths["data"]["eval_path"]
    summaries = [
        json.loads(printed(["eval", name, data, "--samples", "2", "--json"], capsys))
        for name in (str(run), f"{run}:4")
    ]
    assert summaries[0]["sampled"] == summaries[1]["sampled"]
    assert summaries[0]["greedy"] == summaries[1]["greedy"]
    assert summaries[0]["sampled"]["samples"] == 2


def test_a_directory_with_nothing_but_adapters_is_evaluated(
    finished: TrainResult,
    paths: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As PEFT writes one: the tokenizer and config.json are those of the base."""
    stored = tmp_path / "stored"
    stored.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(checkpoint(finished.directory, 4) / name, stored)
    words = [paths["data"]["eval_path"], "--samples", "2", "--rollout.max-tokens", "40"]
    words += ["--reward.functions", "runs:wobble", "--json"]
    found, wanted = (
        json.loads(printed(["eval", name, *words], capsys)) for name in (stored, finished.model_dir)
    )
    assert found["sampled"] == wanted["sampled"]


def test_adapters_alone_are_exported_for_peft(
    finished: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, directory = finished.directory, tmp_path / "adapters"
    said = printed(["export", run, directory, "--adapters"], capsys)
    assert "adapters" in said
    names = {path.name for path in directory.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "optimizer.pt", "trainer_state.json"}
    wanted = (checkpoint(run, 4) / "adapter_model.safetensors").read_bytes()
    assert (directory / "adapter_model.safetensors").read_bytes() == wanted


def test_the_reference_is_the_base_and_no_second_model(
    paths: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    with_kl = replace(config_of(tmp_path / "kl", paths, 3), terms=KL)
    parts = assemble(with_kl, quiet)
    assert parts.learner.reference is parts.learner.model
    parts.close()
    shutil.rmtree(tmp_path / "kl")
    records = read_metrics(train(with_kl, show=quiet).metrics_path)
    divergences = [record["update/kl"] for record in records[1:]]
    assert all(value > 1e-6 for value in divergences), divergences  # by the second pass over each batch


def test_a_run_begins_from_the_adapters_of_another(
    finished: TrainResult, paths: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    stored = str(checkpoint(finished.directory, 4))
    begun = train(config_of(tmp_path / "next", paths, 0, model={"path": stored}), show=quiet)
    wanted = load_file(finished.model_dir / "model.safetensors")
    got = load_file(begun.model_dir / "model.safetensors")
    assert all(torch.equal(tensor, got[name]) for name, tensor in wanted.items())
    going = train(config_of(tmp_path / "more", paths, 1, model={"path": stored}), show=quiet)
    final = load_file(going.model_dir / "model.safetensors")
    assert any(not torch.equal(tensor, wanted[name]) for name, tensor in final.items())
    again = read_causal_lm(str(checkpoint(going.directory, 1)), torch.float32).state_dict()
    for name, tensor in final.items():  # adapters on a base that is adapters on another
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-6)
    content = json.loads((begun.directory / "content.json").read_text())["content"]["model.path"]
    assert {"adapter_model.safetensors", "model.safetensors"} <= content.keys()


@pytest.mark.parametrize("adapter", [{"kind": "off"}, LORA | {"rank": 8}, LORA | {"kind": "dora"}])
def test_a_run_is_not_continued_with_other_adapters(
    adapter: dict[str, Any], finished: TrainResult, paths: dict[str, dict[str, Any]]
) -> None:
    reason = r"adapter\.\w+: wanted .* but the trained adapters are of that shape"
    with pytest.raises(ValueError, match=reason):
        train(config_of(finished.directory, paths, 5, adapter=adapter), show=quiet)


def test_adapters_whose_base_is_gone_are_named(finished: TrainResult, tmp_path: Path) -> None:
    stored = tmp_path / "moved"
    shutil.copytree(checkpoint(finished.directory, 4), stored)
    file = stored / "adapter_config.json"
    values = json.loads(file.read_text())
    for base, reason in (("/not/there", "got no directory /not/there"), (None, "got none")):
        file.write_text(json.dumps(values | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=rf"^model\.path: wanted .*{reason}") as caught:
            load_model(str(stored), ModelConfig(), "cpu")
        assert "\n" not in str(caught.value)
