"""What must not happen to weights: an update that fails, or is incomplete, ends the engine's use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from engine_child import EngineChild, EngineFailed
from trainer import Trainer, config_of, error, model_of, write_config

from g2rpo_fast.rollout.sync import Arena, Manifest


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineChild]:
    """A process for engines that fail half-way: vLLM's models share rotary tables, so others there suffer."""
    child = EngineChild(tmp_path_factory.mktemp("doomed"))
    yield child
    child.close()


AGAIN = "this engine must be started anew, update to version"


def corrupted(trainer: Trainer) -> None:
    """One byte of the slot changes between the trainer's checksum and the engine's."""
    report = trainer.arena.pack(trainer.named(model_of(trainer.config, 1)), 1, checksum=True)
    trainer.arena.views(report.slot)[0].view(torch.uint8).view(-1)[5] ^= 1
    trainer.engines.rpc(trainer.engine, "g2rpo_update", report.slot, 1, True)


def wrong_version(trainer: Trainer) -> None:
    report = trainer.arena.pack(trainer.named(model_of(trainer.config, 1)), 1)
    trainer.engines.rpc(trainer.engine, "g2rpo_update", report.slot, 2, False)


def slot_never_filled(trainer: Trainer) -> None:
    report = trainer.arena.pack(trainer.named(model_of(trainer.config, 1)), 1)
    trainer.engines.rpc(trainer.engine, "g2rpo_update", 1 - report.slot, 1, False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (corrupted, "wanted checksum [0-9a-f]{16}, got"),
        (wrong_version, "wanted version 2, complete, got version 1"),
        (slot_never_filled, "wanted version 1, complete, got nothing"),
    ],
)
@pytest.mark.parametrize("rung", ["plan", "layerwise"])
def test_a_refused_slot_ends_the_engine(
    engines: EngineChild, tmp_path: Path, spoil: Callable[[Trainer], None], message: str, rung: str
) -> None:
    trainer = started(engines, tmp_path, f"refused {spoil.__name__} {rung}")
    trainer.attach(rung)
    with pytest.raises(EngineFailed, match=message):
        spoil(trainer)
    assert_ended(trainer)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (("layers.1.mlp.down_proj.weight",), "layers.1.mlp.down_proj .0 of 6144 elements"),
        (("layers.0.self_attn.k_proj.weight",), "layers.0.self_attn.qkv_proj .12288 of 16384 elements"),
        (("embed_tokens.weight",), "embed_tokens .0 of 16000 elements., lm_head"),
    ],
    ids=["tensor", "part of a fused tensor", "embedding of a tied head"],
)
def test_weights_that_do_not_come_are_not_overlooked(
    doomed: EngineChild, tmp_path: Path, left_out: tuple[str, ...], message: str
) -> None:
    """vLLM's own reload warns, or fills a fused tensor with what was in memory; here it is an error."""
    trainer = started(doomed, tmp_path, f"left out {left_out}", leave_out=left_out)
    with pytest.raises(EngineFailed, match="rung 'plan' is refused: the loader's copies cover"):
        trainer.attach("plan")
    trainer.attach("layerwise")
    with pytest.raises(EngineFailed, match=f"too few for [12] layers: model.{message}"):
        trainer.sync(1)
    assert_ended(trainer)


def test_an_exception_half_way_ends_the_engine_and_a_new_one_continues(
    doomed: EngineChild, engines: EngineChild, tmp_path: Path
) -> None:
    """The last tensor has another shape: by then the layers before it hold new weights."""
    trainer = started(doomed, tmp_path / "first", "half")
    trainer.attach("layerwise")
    before = trainer.sync(1)
    shorter = [(n, p[:-1] if n == "model.norm.weight" else p) for n, p in before.named_parameters()]
    other = Trainer(doomed, "half", trainer.config)
    other.arena = Arena.create(Manifest.of(shorter, None), kind="memfd", device=torch.device("cpu"))
    other.attach("layerwise")
    slot = other.arena.pack(shorter, 2).slot
    with pytest.raises(EngineFailed):
        doomed.rpc("half", "g2rpo_update", slot, 2, False)
    assert_ended(trainer)
    new = started(engines, tmp_path / "second", "after half")
    new.attach()
    assert error(new.sync(1), new.samples()).max() < 1e-5


def test_a_plan_that_cannot_be_falls_to_layerwise_and_says_why(engines: EngineChild, tmp_path: Path) -> None:
    """float32 in the arena, bfloat16 in the engine: copies alone would not do."""
    engines.start("fall", write_config(config_of(tied=True), tmp_path), dtype="bfloat16")
    trainer = Trainer(engines, "fall", config_of(tied=True), dtype=torch.bfloat16)
    assert trainer.attach("plan") == {"rung": "plan", "refused": {}, "device_uuid": "cpu", "bytes": 206336}
    trainer = Trainer(engines, "fall", config_of(tied=True), dtype=torch.float32)
    with pytest.raises(EngineFailed, match="rung 'plan' is refused: the loader changes a dtype"):
        trainer.attach("plan")
    answer = trainer.attach("auto")
    assert answer["rung"] == "layerwise"
    assert "changes a dtype: torch.float32" in answer["refused"]["plan"]
    model = trainer.sync(1)
    assert error(model, trainer.samples(), torch.bfloat16).mean() < 0.05


def test_an_arena_that_cannot_be_opened_is_reported(engines: EngineChild, tmp_path: Path) -> None:
    trainer = started(engines, tmp_path, "no arena")
    address = trainer.arena.address()
    trainer.arena.close()
    answer = engines.rpc("no arena", "g2rpo_attach", address, "auto")
    assert answer["rung"] is None
    assert answer["bytes"] == 0
    assert "RuntimeError" in answer["refused"]["memfd"]
    with pytest.raises(EngineFailed, match="wanted an arena and a rung, got a refusal"):
        engines.rpc("no arena", "g2rpo_update", 0, 1, False)
    another = Trainer(engines, "no arena", trainer.config)
    assert another.attach()["rung"] == "layerwise"
    assert error(another.sync(1), another.samples()).max() < 1e-5


def test_an_update_before_any_arena_is_refused(engines: EngineChild, tmp_path: Path) -> None:
    started(engines, tmp_path, "none")
    with pytest.raises(EngineFailed, match="wanted g2rpo_attach first, got none"):
        engines.rpc("none", "g2rpo_update", 0, 1, False)


def started(engines: EngineChild, directory: Path, engine: str, leave_out: tuple[str, ...] = ()) -> Trainer:
    config = config_of(tied=True)
    engines.start(engine, write_config(config, directory))
    return Trainer(engines, engine, config, leave_out=leave_out)


def assert_ended(trainer: Trainer) -> None:
    """Every later call says that the engine is of no use."""
    with pytest.raises(EngineFailed, match=AGAIN):
        trainer.sync(2)
    with pytest.raises(EngineFailed, match=AGAIN):
        trainer.attach()
    with pytest.raises(EngineFailed, match=AGAIN):
        trainer.engines.rpc(trainer.engine, "g2rpo_checksums")
