"""Weights sent to a running vLLM: afterwards it is an engine that was started with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_child import EngineChild, Sample
from trainer import Trainer, config_of, error, model_of, samples_of, write_config

from g2rpo_fast.rollout.sync import checksum

FLOAT32_BOUND = 1e-5
"""Nats; log-probabilities here reach -15."""
STALE = 0.5
"""Nats by which old weights or an old cache are wrong at some token, at least."""


def fresh_samples(
    engines: EngineChild, directory: Path, *, tied: bool, version: int, **llm: object
) -> list[Sample]:
    """Of an engine that loads the weights from files."""
    model_of(config_of(tied=tied), version).to(
        getattr(torch, str(llm.get("dtype", "float32")))
    ).save_pretrained(directory)
    engines.start(str(directory), directory, load_format="auto", **llm)
    return samples_of(engines, str(directory))


def differences(ours: list[Sample], theirs: list[Sample]) -> float:
    """Greatest difference of log-probabilities; the tokens must be the same."""
    assert [s.token_ids for s in ours] == [s.token_ids for s in theirs]
    return max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x.logp, y.logp))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_sync_gives_a_fresh_engine_and_transformers(
    engines: EngineChild, tmp_path: Path, tied: bool
) -> None:
    """Three syncs, both slots, by both rungs; prompts and caches are reused."""
    config = config_of(tied=tied)
    directory = write_config(config, tmp_path / "config")
    trainers = {}
    for rung in ("plan", "layerwise"):
        engine = f"{rung}, tied {tied}"
        engines.start(engine, directory)
        trainers[rung] = Trainer(engines, engine, config)
        assert trainers[rung].attach(rung)["rung"] == rung
    for version in (1, 2, 3):
        fresh = fresh_samples(engines, tmp_path / str(version), tied=tied, version=version)
        for rung, trainer in trainers.items():
            model = trainer.sync(version, checksum=version == 2)
            samples = trainer.samples()
            assert error(model, samples).max() < FLOAT32_BOUND
            assert differences(samples, fresh) <= (FLOAT32_BOUND if rung == "plan" else 0.0)
            assert error(model_of(config, version - 1), samples).max() > STALE


def test_a_prefix_cache_of_old_weights_would_be_seen(engines: EngineChild, tmp_path: Path) -> None:
    """96 of 100 prompt tokens come from the cache: without a reset after the update they are the old ones."""
    config = config_of(tied=True)
    engines.start("cache", write_config(config, tmp_path))
    trainer = Trainer(engines, "cache", config)
    trainer.attach()
    assert error(trainer.sync(1), trainer.samples()).max() < FLOAT32_BOUND
    model = trainer.sync(2, reset=False)
    assert error(model, trainer.samples()).max() > STALE
    engines.reset("cache")
    assert error(model, trainer.samples()).max() < FLOAT32_BOUND


def test_bfloat16_is_off_by_no_more_than_a_fresh_engine(engines: EngineChild, tmp_path: Path) -> None:
    """float32 masters, bfloat16 arena and engine. The bound is twice what a fresh engine is off by."""
    config = config_of(tied=True)
    directory = write_config(config, tmp_path / "config")
    fresh = fresh_samples(engines, tmp_path / "1", tied=True, version=1, dtype="bfloat16")
    noise = error(model_of(config, 1), fresh, torch.bfloat16)
    for rung in ("plan", "layerwise"):
        engine = f"{rung}, bfloat16"
        engines.start(engine, directory, dtype="bfloat16")
        trainer = Trainer(engines, engine, config, dtype=torch.bfloat16)
        trainer.attach(rung)
        model = trainer.sync(1)
        samples = trainer.samples()
        assert error(model, samples, torch.bfloat16).max() < 2 * noise.max()
        assert error(model_of(config, 2), samples, torch.bfloat16).mean() > 20 * noise.mean()
        if rung == "layerwise":
            assert differences(samples, fresh) == 0.0


def test_quantised_engines_reload_by_layers(engines: EngineChild, tmp_path: Path) -> None:
    """Bitwise a fresh engine that quantised the same weights; the plan is refused, and why is said."""
    config, quantization = config_of(tied=False), "fp8_per_channel"
    engines.start(quantization, write_config(config, tmp_path), dtype="bfloat16", quantization=quantization)
    trainer = Trainer(engines, quantization, config, dtype=torch.bfloat16)
    answer = trainer.attach()
    assert answer["rung"] == "layerwise"
    assert quantization in answer["refused"]["plan"]
    for version in (1, 2):
        trainer.sync(version)
        ours = trainer.samples()
    fresh = fresh_samples(
        engines, tmp_path / "fresh", tied=False, version=2, dtype="bfloat16", quantization=quantization
    )
    assert differences(ours, fresh) == 0.0
    assert 0.0 < error(model_of(config, 2), ours, torch.bfloat16).mean() < STALE


def test_checksums_are_of_the_weights_that_the_kernels_read(engines: EngineChild, tmp_path: Path) -> None:
    """q, k and v in one; what vLLM keeps only in a packed form is named as such."""
    config = config_of(tied=True)
    engines.start("sums", write_config(config, tmp_path))
    trainer = Trainer(engines, "sums", config)
    trainer.attach("plan")
    weights = dict(trainer.sync(1).named_parameters())
    found = engines.rpc("sums", "g2rpo_checksums")
    layer = "model.layers.1.self_attn"
    fused = torch.cat([weights[f"{layer}.{part}_proj.weight"] for part in "qkv"])
    assert found[f"{layer}.qkv_proj.weight"] == f"{checksum(fused):016x}"
    assert found["model.norm.weight"] == f"{checksum(weights['model.norm.weight']):016x}"
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"]
    trainer = Trainer(engines, "sums", config)
    trainer.attach("layerwise")
    trainer.sync(1)
    packed = engines.rpc("sums", "g2rpo_checksums")
    assert {name for name in found if packed[name] != found[name]} == {n for n in found if "_proj" in n}
    assert packed[f"{layer}.qkv_proj.weight"] == "packed"
