"""A run with vLLM's own LoRA, on a base that is adapters itself, stopped and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from g2rpo_fast.embedded import prepare
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from runs import TINY, quiet, tiny_config

ADAPTER = {
    "adapter": {"kind": "lora", "rank": 4, "alpha": 6.0},
    "optim": {"lr": 0.05, "schedule": "constant"},
}
"""Steps large enough that an engine without the adapters of the step before would be far off."""
VLLM: dict[str, Any] = {
    "rollout": TINY["rollout"] | {"engine": "vllm"},
    "vllm": {"kv_cache_mib": 64, "adapters": "lora"},
}


def num_numbers(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118


def test_adapters_beside_a_base_that_was_adapters(tmp_path: Path) -> None:
    made = prepare(tmp_path / "made", tiny_config(tmp_path).embedded, seed=0, report=quiet)
    data = {"data": {"path": str(made.train_path), "eval_path": str(made.eval_path), "eval_rows": 8}}
    on_plain = {**data, **ADAPTER, "model": {"path": str(made.model_dir)}, "run": {"steps": 1}}
    first = train(tiny_config(tmp_path / "first", **on_plain), show=quiet)
    stored = first.directory / "checkpoints" / "step_00000001"

    def config(steps: int) -> Any:
        model = {"model": {"path": str(stored)}}
        return tiny_config(tmp_path / "run", **data, **ADAPTER, **VLLM, **model, run={"steps": steps})

    train(config(2), show=quiet)
    result = train(config(4), show=quiet)
    records = [r for r in read_metrics(result.metrics_path) if r["step"] > 0]
    assert [r["engine/weight_version"] for r in records] == [1, 2, 3, 4]
    assert all(r["mismatch/max_abs"] < 1e-4 for r in records)
    assert records[1]["update/approx_kl"] > 0.01
    adapters = 4 * num_numbers(result.directory / "checkpoints" / "step_00000004/adapter_model.safetensors")
    base = 4 * num_numbers(result.model_dir / "model.safetensors")
    # The engine's first sync is the trial's too, before step 1; continued adapters are no zeros.
    assert [r["engine/sync_bytes"] for r in records] == [
        base + 3 * adapters,
        adapters,
        base + 2 * adapters,
        adapters,
    ]
