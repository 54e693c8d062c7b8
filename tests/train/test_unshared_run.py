"""Runs of a model whose layers follow no tree: what they say, how they go on, what is refused; of a hybrid,
whose layers do; and of a model whose head is several maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from causal_types import CAUSAL_TYPES
from commands import called, printed
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from model_runs import Paths, check_that_it_goes_on, config_of, made_of
from runs import TINY, quiet, tiny_config


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Attention in chunks."""
    return made_of("llama4_text", tmp_path_factory.mktemp("chunked"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Convolutions and attention."""
    return made_of("lfm2", tmp_path_factory.mktemp("hybrid"))


def test_chunked_model_trains_says_why_and_goes_on_bit_for_bit(chunked: Paths, tmp_path: Path) -> None:
    lines: list[str] = []
    whole = train(config_of(tmp_path / "whole", chunked, 2), show=lines.append)
    shown = "\n".join(lines)
    line = "model: trains on unshared rows (tree.sharing = auto), as prefix trees do not fit llama4_text: "
    assert line in shown
    assert "positions, each row by itself\n" in shown
    assert shown.count("note: with prefix trees the update would have encoded ") == 1
    records = read_metrics(whole.metrics_path)
    ratios = [(record["update/token_ratio"], record["update/ratio_if_shared"]) for record in records[1:]]
    assert all(got < 1.2 < shared for got, shared in ratios)
    assert any(record["rollout/guidance_tokens"] for record in records[1:])
    assert all(record["mismatch/max_abs"] < 1e-4 for record in records[1:])
    check_that_it_goes_on(tmp_path / "broken", chunked, whole)


@pytest.mark.skipif("lfm2" not in CAUSAL_TYPES, reason="this transformers has no lfm2")
def test_hybrid_shares_and_goes_on_bit_for_bit(hybrid: Paths, tmp_path: Path) -> None:
    lines: list[str] = []
    whole = train(config_of(tmp_path / "whole", hybrid, 2, tree={"sharing": "required"}), show=lines.append)
    assert "unshared" not in "\n".join(lines)
    assert "each row by itself" not in "\n".join(lines)
    records = read_metrics(whole.metrics_path)
    assert all(record["update/token_ratio"] > 1.2 for record in records[1:])
    assert any(record["rollout/guidance_tokens"] for record in records[1:])
    assert all(record["mismatch/max_abs"] < 1e-4 for record in records[1:])
    check_that_it_goes_on(tmp_path / "broken", hybrid, whole)


@pytest.mark.skipif("modernbert-decoder" not in CAUSAL_TYPES, reason="this transformers has no such model")
def test_head_of_several_maps_trains_all_of_them_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    paths = made_of("modernbert-decoder", tmp_path / "made")
    whole = train(config_of(tmp_path / "whole", paths, 2), show=quiet)
    records = read_metrics(whole.metrics_path)
    assert all(record["update/token_ratio"] > 1.2 for record in records[1:])
    assert all(record["mismatch/max_abs"] < 1e-4 for record in records[1:])
    before, after = (
        load_file(Path(directory) / "model.safetensors")
        for directory in (paths["model"]["path"], whole.model_dir)
    )
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.dense.weight"], after["lm_head.dense.weight"])
    check_that_it_goes_on(tmp_path / "broken", paths, whole)


def test_required_refuses_before_anything_is_spent(chunked: Paths, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", chunked, 2, tree={"sharing": "required"})
    with pytest.raises(
        ValueError, match=r"tree\.sharing: required, but a prefix tree does not fit llama4_text: "
    ):
        train(config, show=quiet)
    assert not (tmp_path / "run").exists()


def test_plan_says_the_same(chunked: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"--model.path={chunked['model']['path']}", f"--data.path={chunked['data']['path']}",
        "--run.threads=1", "--run.prompts-per-step=2", "--rollout.group-size=4", "--rollout.max-tokens=40",
        "--reward.functions=runs:wobble", "--seconds=0.2",
    ]  # fmt: skip
    status, out, err = called(["plan", *words], capsys)
    assert status == 0, err
    assert (
        "model: trains on unshared rows (tree.sharing = auto), as prefix trees do not fit llama4_text: "
        in err
    )
    assert "encoded row by row; as prefix trees, which this run does not share, " in out
    work = json.loads(printed(["plan", "--json", *words], capsys))["work"]
    assert work["shared_positions"] < work["positions"] <= work["unshared_tokens"]


def test_off_shares_nothing_where_the_model_could(tmp_path: Path) -> None:
    lines: list[str] = []
    short = {"run": {"steps": 1}, "evaluate": {"every": 0, "profile_prompts": 0}}
    embedded = TINY["embedded"] | {"warm_start_steps": 1}
    config = tiny_config(tmp_path / "run", **short, embedded=embedded, tree={"sharing": "off"})
    result = train(config, show=lines.append)
    assert not any("unshared rows" in line for line in lines)
    record = read_metrics(result.metrics_path)[1]
    assert record["update/token_ratio"] < 1.2 < record["update/ratio_if_shared"]
