"""Sync of models that are not one dense transformer in one worker: tensor parallel, mixture of experts."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_child import EngineChild, EngineFailed
from trainer import Trainer, config_of, error, write_config
from transformers import Qwen3MoeConfig


def test_two_tensor_parallel_workers_each_take_their_shards(tmp_path: Path) -> None:
    """By both rungs in turn in one engine; heads and vocabulary are cut in two."""
    workers = EngineChild(tmp_path)
    config = config_of(tied=True)
    workers.start("two", write_config(config, tmp_path / "config"), tensor_parallel_size=2)
    for rung in ("plan", "layerwise", "plan"):
        trainer = Trainer(workers, "two", config)
        assert trainer.attach(rung)["rung"] == rung
        for version in (1, 2):
            model = trainer.sync(version)
            assert error(model, trainer.samples()).max() < 1e-5
    workers.close()


def test_experts_on_a_cpu_are_refused(tmp_path: Path) -> None:
    """vLLM's reload ends without an error there, and the experts stay what they were."""
    engines = EngineChild(tmp_path)  # of its own: a process has groups of experts from its first engine on
    dense = config_of(tied=True)
    config = Qwen3MoeConfig(
        **{
            key: getattr(dense, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim")
        },
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        max_position_embeddings=256,
    )
    config.architectures = ["Qwen3MoeForCausalLM"]
    engines.start("experts", write_config(config, tmp_path / "config"))
    trainer = Trainer(engines, "experts", dense)
    for rung in ("auto", "layerwise"):
        with pytest.raises(EngineFailed, match="on a CPU vLLM computes from packed experts"):
            trainer.attach(rung)
    engines.close()
