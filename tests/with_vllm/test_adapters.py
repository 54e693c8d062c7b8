"""Adapters that vLLM computes itself, beside a base that it is sent once: log-probabilities against PEFT's
forwards after every update, bytes, memory, refusals, an engine that is replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tiny_engines import (
    VOCABULARY,
    model_directories,
    plain_logp,
    requests,
    tiny_model,
    trainer_of,
    vllm_engine,
)
from transformers import StableLmConfig, StableLmForCausalLM

from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.adapters.beside import lora_tensors
from g2rpo_fast.adapters.merged import adapter_layers, base_parameters
from g2rpo_fast.rollout.vllm import adapter_file
from g2rpo_fast.rollout.vllm.engine import VllmEngine
from g2rpo_fast.types import Completion, EngineError, Request, Sampling

LOGP_TOLERANCE = 1e-5
"""Nats, float32, as for merged weights."""


def adapted(model: Any, **config: Any) -> Any:
    add_adapters(model, AdapterConfig(**{"kind": "lora", "rank": 4, "alpha": 7.0, **config}), base="", seed=3)
    return model


def reference(**config: Any) -> Any:
    """What transformers and PEFT themselves compute, no forward of ours."""
    model = adapted(tiny_model(), **config)
    for layer in adapter_layers(model).values():
        del layer.forward
    return model


@torch.no_grad()
def update(version: int, *models: Any) -> None:
    """Gives each model the same other adapters."""
    for model in models:
        generator = torch.Generator().manual_seed(version)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def off(plain: Any, asked: list[Request], got: list[Completion]) -> float:
    """Largest |log p - log p| against transformers."""
    pairs = zip(asked, got, strict=True)
    return max(float(np.abs(c.logp - plain_logp(plain, r, c, Sampling())).max()) for r, c in pairs)


def nbytes(model: Any) -> int:
    return sum(tensor.nbytes for tensor in lora_tensors(model, torch.float32).values())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, VllmEngine, list[str]]]:
    """PEFT's model, the trainer's, and its engine before the first sync."""
    shown: list[str] = []
    model = adapted(trainer_of(tiny_model()))
    engine = vllm_engine(model, tmp_path_factory.mktemp("lora"), show=shown.append, adapters="lora")
    yield reference(), model, engine, shown
    engine.close()


def test_the_engine_has_the_base_once_and_then_the_adapters_of_every_version(both: Any) -> None:
    peft, model, engine, shown = both
    asked = requests()
    before = [p.clone() for p in model.parameters()]
    base = sum(4 * p.numel() for _, p in base_parameters(model))
    stale: list[Completion] = []
    for version in range(6):
        engine.sync(version)
        got = engine.generate(asked, Sampling())
        assert off(peft, asked, got) < LOGP_TOLERANCE
        assert {c.weight_version for c in got} == {version}
        sent = engine.metrics()["engine/sync_bytes"]
        if version == 0:
            assert sent == base + 2 * nbytes(model)  # those of the trial too
            assert all(torch.equal(p, q) for p, q in zip(before, model.parameters()))
        else:
            assert sent == nbytes(model) < 0.1 * base
            assert off(peft, asked, stale) > 0.05
        stale = got
        update(version, peft, model)
    assert shown == [next(line for line in shown if line.startswith("weight sync: layerwise, 1.6 MB once, "))]
    assert engine.metrics()["engine/restarts"] == 0


def test_rows_in_flight_go_on_with_the_new_adapters(both: Any) -> None:
    peft, model, engine, _ = both
    engine.sync(10)
    asked = [Request(prompt_ids=(5, 6, 7, i), max_tokens=300, seed=i) for i in range(12)]
    process = psutil.Process(engine.pid)
    collect = engine.submit(asked, Sampling())
    until = sum(process.cpu_times()[:2]) + 0.3
    while sum(process.cpu_times()[:2]) < until:
        pass
    old = [p.detach().clone() for p in peft.parameters()]
    update(11, model)
    engine.sync(11)
    got = collect()
    first = [plain_logp(peft, r, c, Sampling()) for r, c in zip(asked, got)]
    update(11, peft)
    second = [plain_logp(peft, r, c, Sampling()) for r, c in zip(asked, got)]
    assert any(not torch.equal(p, q) for p, q in zip(old, peft.parameters()))
    versions = {int(v) for c in got if c.token_versions is not None for v in c.token_versions}
    assert versions == {10, 11}
    for row, c in enumerate(got):
        assert c.token_versions is not None
        wanted = np.where(c.token_versions == 10, first[row], second[row])
        np.testing.assert_allclose(c.logp, wanted, atol=2 * LOGP_TOLERANCE, rtol=0)


def test_a_hundred_syncs_leave_nothing(both: Any) -> None:
    engine = both[2]

    def held() -> tuple[int, int, int]:
        process = psutil.Process(engine.pid)
        return process.memory_info().rss, process.num_fds(), psutil.Process().num_fds()

    for version in range(100, 110):
        engine.sync(version)
    directories, (rss, *files) = model_directories(), held()
    for version in range(110, 210):
        engine.sync(version)
    assert held()[0] - rss < 8 << 20  # the adapters of one version are 0.1 MB, so 10 MB of a hundred
    assert list(held()[1:]) == files
    assert model_directories() == directories


def test_an_engine_that_died_gets_base_and_adapters_again(both: Any) -> None:
    peft, model, engine, shown = both
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL"):
        engine.generate(requests(), Sampling())
    engine.metrics()
    engine.sync(300)
    asked = requests()
    assert off(peft, asked, engine.generate(asked, Sampling())) < LOGP_TOLERANCE
    metrics = engine.metrics()
    assert metrics["engine/restarts"] == 1
    assert metrics["engine/sync_bytes"] > nbytes(model) + 1e6
    assert [line.split(":")[0] for line in shown] == ["weight sync", "rollout engine", "weight sync"]


def test_it_is_what_merged_weights_compute(both: Any, tmp_path: Path) -> None:
    _, model, engine, _ = both
    asked = requests()
    got = engine.generate(asked, Sampling())
    merged = vllm_engine(model, tmp_path)
    try:
        merged.sync(300)
        expected = merged.generate(asked, Sampling())
    finally:
        merged.close()
    assert [c.token_ids for c in got] == [c.token_ids for c in expected]
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one.logp, other.logp, atol=LOGP_TOLERANCE, rtol=0)


CLOSE = {"float32": LOGP_TOLERANCE, "bfloat16": 0.15}
"""Largest |log p - log p|; bfloat16 merged: 0.06."""


@pytest.mark.parametrize(
    ("adapter", "config"),
    [
        ({"rank": 9, "targets": ("q_proj", "up_proj", "down_proj")}, {"rung": "plan", "checksum": True}),
        ({}, {"tensor_parallel": 2}),
        ({}, {"dtype": "bfloat16"}),
    ],
    ids=["plan, some maps", "two workers", "bfloat16"],
)
def test_other_engines_and_shapes(adapter: Any, config: Any, tmp_path: Path) -> None:
    peft, model = reference(**adapter), adapted(trainer_of(tiny_model()), **adapter)
    engine = vllm_engine(model, tmp_path, adapters="lora", **config)
    asked = requests(1)
    bound = CLOSE[config.get("dtype", "float32")]
    got: list[Completion] = []
    try:
        for version in range(3):
            engine.sync(version)
            got = engine.generate(asked, Sampling())
            assert off(peft, asked, got) < bound
            update(version, peft, model)
        assert off(peft, asked, got) > 3 * bound
        sent = engine.metrics()["engine/sync_bytes"]
        base = sum(p.numel() for _, p in base_parameters(model))
        assert sent == (base + 4 * nbytes(model) / 4) * (4 if bound < 0.1 else 2)
    finally:
        engine.close()


def test_adapters_that_vllm_leaves_out_are_refused_at_the_first_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no layer 9, and says nothing of adapters for it."""

    def renamed(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        tensors = lora_tensors(model, dtype)
        return {name.replace("layers.1.mlp.up", "layers.9.mlp.up"): t for name, t in tensors.items()}

    monkeypatch.setattr(adapter_file, "lora_tensors", renamed)
    shown: list[str] = []
    engine = vllm_engine(adapted(trainer_of(tiny_model())), tmp_path, adapters="lora", show=shown.append)
    try:
        with pytest.raises(
            EngineError, match=r"^vllm\.adapters: wanted merged, .*layers\.9\.mlp.*, got lora$"
        ):
            engine.sync(0)
        assert engine.pid is None
        assert len(shown) == 1  # no other engine was started
    finally:
        engine.close()


def test_a_model_that_vllm_serves_no_adapters_is_refused_as_the_engine_starts(tmp_path: Path) -> None:
    config = StableLmConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    engine = vllm_engine(adapted(StableLmForCausalLM(config)), tmp_path, adapters="lora")
    try:
        with pytest.raises(EngineError, match=r"vllm\.adapters: wanted merged with a StableLmForCausalLM"):
            engine.sync(0)
    finally:
        engine.close()


@pytest.mark.deep
def test_adapters_that_vllm_takes_for_others_are_noticed_though_they_are_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every B is, at the start of a run: adapters on trial tell."""

    def turned(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {
            name: tensor.flip(0) if "q_proj.lora_B" in name else tensor
            for name, tensor in lora_tensors(model, dtype).items()
        }

    monkeypatch.setattr(adapter_file, "lora_tensors", turned)
    engine = vllm_engine(adapted(trainer_of(tiny_model())), tmp_path, adapters="lora")
    try:
        with pytest.raises(EngineError, match=r"wanted the trainer's .*, or not with its adapters"):
            engine.sync(0)
    finally:
        engine.close()
