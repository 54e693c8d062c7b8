"""Sync of models that are not one dense transformer in one worker: tensor parallel, mixture of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_child import EngineChild, EngineFailed
from tiny_engines import VOCABULARY, change, plain_logp, requests, trainer_of, vllm_engine
from trainer import Trainer, config_of, error, model_of, write_config
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from g2rpo_fast.types import Sampling


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


EXPERTS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
BOUND = 5e-5
"""Nats: float32 rounding through experts; the weights of another version are off by several."""


@pytest.mark.parametrize("width", [64, 48])
def test_experts_on_a_cpu_are_packed_again(width: int, tmp_path: Path) -> None:
    """vLLM computes from packed experts there; those of a width that is no multiple of 32 are padded too."""
    engines = EngineChild(tmp_path)  # of its own: a process has groups of experts from its first engine on
    config = Qwen3MoeConfig(**EXPERTS, vocab_size=250, num_experts=4, moe_intermediate_size=width)
    config.architectures = ["Qwen3MoeForCausalLM"]
    engines.start("experts", write_config(config, tmp_path / "config"))
    trainer = Trainer(engines, "experts", config)
    with pytest.raises(EngineFailed, match=r"rung 'plan' is refused: .*UnquantizedFusedMoEMethod may change"):
        trainer.attach("plan")
    for rung in ("auto", "layerwise"):
        assert trainer.attach(rung)["rung"] == "layerwise"
        for version in (1, 2, 3):
            model = trainer.sync(version)
            samples = trainer.samples()
            assert error(model, samples).max() < BOUND
            assert error(model_of(config, version + 1), samples).max() > 1
        trainer = Trainer(engines, "experts", config)
    engines.close()


def test_experts_by_other_names_reach_the_engine(tmp_path: Path) -> None:
    """transformers' Mixtral has other names than its checkpoints, and vLLM knows only theirs."""
    torch.manual_seed(0)
    config = MixtralConfig(**EXPERTS, vocab_size=VOCABULARY, num_local_experts=4, intermediate_size=64)
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    trainer = trainer_of(plain)
    lines: list[str] = []
    engine = vllm_engine(trainer, tmp_path, show=lines.append)
    for version in (1, 2, 3):
        change(trainer, version)
        plain.load_state_dict(trainer.state_dict())
        engine.sync(version)
        asked = requests(1)
        for request, completion in zip(asked, engine.generate(asked, Sampling()), strict=True):
            wanted = plain_logp(plain, request, completion, Sampling())
            np.testing.assert_allclose(completion.logp, wanted, atol=BOUND, rtol=0)
    engine.close()
    assert any(line.startswith("weight sync: layerwise") for line in lines)
