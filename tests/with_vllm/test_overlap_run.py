"""The overlapped loop with an engine that works while the trainer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from runs import TINY, tiny_config

AHEAD: dict[str, Any] = {
    "rollout": TINY["rollout"] | {"engine": "vllm"},
    "vllm": {"kv_cache_mib": 64},
    "run": {"ahead": 1},
    "objective": {"importance": "token_truncate"},
}


def test_batches_sampled_during_the_update_are_one_version_old_and_compared(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", **AHEAD)
    records = [r for r in read_metrics(train(config).metrics_path) if r["step"] > 0]
    assert [r["rollout/staleness"] for r in records] == [0, 1, 1, 1]
    assert [r["engine/weight_version"] for r in records] == [1, 2, 3, 4]
    # In float32 both sides compute the same policy: what remains is the age of the weights.
    assert records[0]["mismatch/max_abs"] < 1e-4
    for record in records[1:]:
        assert record["mismatch/max_abs"] > 1e-3
        assert 0.5 < record["mismatch/ess_raw"] <= record["mismatch/ess"] < 1
        assert 0 < record["mismatch/k3"] < 0.1
