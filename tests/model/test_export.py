"""What a run leaves for plain transformers: its model, its checkpoints, and what was mended on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from g2rpo_fast import train
from g2rpo_fast.assemble import assemble
from g2rpo_fast.config import Config
from runs import quiet, tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "run"
    assemble(tiny_config(directory), quiet).close()
    return directory / "embedded"


def config_of(directory: Path, source: Path, made: Path, **sections: dict) -> Config:
    wanted = {"model": {"path": str(source)}, "evaluate": {"every": 1, "profile_prompts": 0}}
    wanted["data"] = {"path": str(made / "train.jsonl"), "eval_path": str(made / "eval.jsonl")}
    wanted["run"] = {"steps": 2}
    for name, section in sections.items():
        wanted[name] = wanted.get(name, {}) | section
    return tiny_config(directory, **wanted)


def in_half(made: Path, to: Path, *, tied: bool) -> Path:
    shutil.copytree(made / "model", to)
    model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.bfloat16)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(to)
    return to


@pytest.mark.parametrize("tied", [True, False])
def test_model_is_saved_in_the_dtype_that_it_came_in_and_checkpoints_exactly(tied, made, tmp_path):
    source = in_half(made, tmp_path / "half", tied=tied)
    result = train(config_of(tmp_path / "run", source, made, optim={"lr": 1e-2}), show=quiet)
    final = result.model_dir / "model.safetensors"
    assert {t.dtype for t in load_file(final).values()} == {torch.bfloat16}
    assert ("lm_head.weight" in load_file(final)) != tied
    assert json.loads((result.model_dir / "config.json").read_text())["dtype"] == "bfloat16"
    assert final.stat().st_size < 1.1 * (source / "model.safetensors").stat().st_size
    last = AutoModelForCausalLM.from_pretrained(result.directory / "checkpoints" / "step_00000002")
    saved = AutoModelForCausalLM.from_pretrained(result.model_dir, dtype=torch.bfloat16)
    start = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    assert last.dtype == torch.float32
    for name, tensor in last.state_dict().items():
        assert torch.equal(tensor.to(torch.bfloat16), saved.state_dict()[name])
    assert any(not torch.equal(start[name], tensor) for name, tensor in saved.state_dict().items())


def test_save_dtype_chooses(made, tmp_path):
    config = config_of(tmp_path / "run", made / "model", made, model={"save_dtype": "float16"})
    result = train(config, show=quiet)
    assert {t.dtype for t in load_file(result.model_dir / "model.safetensors").values()} == {torch.float16}


def always_worse(response: str, answer: str, rollout) -> float:
    """Accuracy 1 on held-out prompts before the first step, then 0."""
    if rollout.prompt.id.startswith("eval"):
        return float(rollout.weight_version == 0)
    return len(response) % 3 / 2


def test_model_before_the_first_step_may_be_the_best_and_is_kept(made, tmp_path):
    worse = {"reward": {"functions": ["test_export:always_worse"]}, "checkpoint": {"keep": 1, "every": 1}}
    lines: list[str] = []
    result = train(config_of(tmp_path / "run", made / "model", made, **worse), show=lines.append)
    assert result.best_accuracy == 1.0
    kept = sorted(p.name for p in (result.directory / "checkpoints").iterdir())
    assert kept == ["step_00000000", "step_00000002"]
    best = AutoModelForCausalLM.from_pretrained(result.directory / "checkpoints" / kept[0]).state_dict()
    start = AutoModelForCausalLM.from_pretrained(made / "model").state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in start.items())
    AutoTokenizer.from_pretrained(result.directory / "checkpoints" / kept[0])
    assert any("best on held-out prompts: 1.000" in line and kept[0] in line for line in lines)


GENERATION: dict[str, tuple[dict, list[str]]] = {
    "sampling flags beside greedy": (
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        ["temperature", "top_p"],
    ),
    "sampling flags alone": ({"temperature": 0.9, "top_k": 5}, ["temperature", "top_k"]),
    "a beam flag without beams": (
        {"length_penalty": 0.5, "do_sample": True, "top_p": 0.5},
        ["length_penalty"],
    ),
    "a plain one": ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}, []),
}


@pytest.mark.parametrize("name", GENERATION)
def test_generation_flags_that_cannot_be_saved_are_dropped_at_the_start(name, made, tmp_path):
    given, dropped = GENERATION[name]
    source = tmp_path / "source"
    shutil.copytree(made / "model", source)
    (source / "generation_config.json").write_text(json.dumps({**given, "eos_token_id": [1, 0]}))
    lines: list[str] = []
    result = train(config_of(tmp_path / "run", source, made, run={"steps": 0}), show=lines.append)
    told = [line for line in lines if "generation_config.json" in line]
    assert len(told) == bool(dropped)
    assert all(flag in told[0] for flag in dropped)
    saved = GenerationConfig.from_pretrained(result.model_dir)
    assert saved.eos_token_id == [1, 0]
    assert saved.to_diff_dict().keys() >= given.keys() - set(dropped) - {"do_sample"}
    AutoModelForCausalLM.from_pretrained(result.model_dir)


def test_configuration_with_generation_flags_of_its_own_is_saved(made, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(made / "model", source)
    values = json.loads((source / "config.json").read_text()) | {"temperature": 0.5, "top_p": 0.9}
    (source / "config.json").write_text(json.dumps(values))
    (source / "generation_config.json").unlink(missing_ok=True)
    result = train(config_of(tmp_path / "run", source, made, run={"steps": 0}), show=quiet)
    AutoModelForCausalLM.from_pretrained(result.model_dir)
