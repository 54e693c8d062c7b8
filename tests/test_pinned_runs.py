"""Three short runs repeat what an earlier version computed, metric by metric and weight by weight.

`tests/pinned/*.json` holds the runs' records and a digest of their last weights. A change of the program that
is meant to leave runs as they are must not touch these files; one that is meant to change them writes them
anew and says why:

    PYTHONPATH=tests/helpers python tests/test_pinned_runs.py

Processors round differently. So bits are compared where the arithmetic is that of the recording (a digest of
some sums and products tells), and elsewhere the first step, whose rollouts come from the same weights up to
rounding, to three digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.train import train
from runs import tiny_config, without_times

PINNED = Path(__file__).parent / "pinned"
NO_PROFILE = {"profile_prompts": 0}

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "guided_clip": {"run": {"steps": 3}, "evaluate": {"every": 3, **NO_PROFILE}},
    "ahead_cispo": {
        "run": {"steps": 3, "ahead": 1},
        "evaluate": {"every": 3, **NO_PROFILE},
        "guidance": {"controller": "official"},
        "optim": {"minibatches": 2},
        "objective": {
            "surrogate": "cispo",
            "kl_coef": 0.05,
            "entropy_coef": 0.01,
            "importance": "sequence_truncate",
            "aggregation": "token_mean",
            "advantage_scale": "batch",
        },
    },
    "sequence_ratio_channels": {
        "run": {"steps": 3},
        "evaluate": {"every": 3, **NO_PROFILE},
        "guidance": {"controller": "linear", "members": "stratified", "in_loss": False},
        "reward": {
            "functions": ["runs:wobble", "exact_match", "runs:brevity"],
            "weights": {"runs:brevity": 0.5},
        },
        "objective": {
            "ratio": "sequence",
            "clip_high": 0.28,
            "advantage_aggregation": "normalize_then_sum",
            "aggregation": "constant",
        },
    },
}


def arithmetic() -> str:
    """A digest of how this processor rounds."""
    generator = torch.Generator().manual_seed(0)
    digest = hashlib.blake2b(digest_size=8)
    for rows, inner, columns in ((3, 96, 40), (64, 96, 288), (257, 33, 96)):
        x = torch.randn(rows, inner, generator=generator)
        y = torch.randn(inner, columns, generator=generator)
        norm = torch.nn.functional.rms_norm(x, [inner])
        for value in (x @ y, (x @ y).softmax(-1), norm, x.tanh(), x.sum()):
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def outcome(name: str, directory: Path) -> dict[str, Any]:
    """What a run leaves, as it is recorded."""
    result = train(tiny_config(directory, **RUNS[name]), show=lambda line: None)
    digest, squares = hashlib.blake2b(digest_size=16), 0.0
    for key, tensor in sorted(load_file(result.model_dir / "model.safetensors").items()):
        digest.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        squares += float(tensor.double().square().sum())
    records = without_times(read_metrics(result.metrics_path))
    return {
        "arithmetic": arithmetic(),
        "weights": digest.hexdigest(),
        "weight_norm": math.sqrt(squares),
        "records": records,
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_repeats_the_pinned_one(name: str, tmp_path: Path) -> None:
    wanted = json.loads((PINNED / f"{name}.json").read_text())
    got = outcome(name, tmp_path / "run")
    assert len(got["records"]) == len(wanted["records"]) == 4
    assert wanted["records"][1]["rollout/sampled_tokens"] > 200
    if got["arithmetic"] == wanted["arithmetic"]:
        for before, after in zip(wanted["records"], got["records"], strict=True):
            assert {key: after.get(key, "missing") for key in before} == before
        assert (got["weights"], got["weight_norm"]) == (wanted["weights"], wanted["weight_norm"])
    else:
        first = {key: value for key, value in wanted["records"][1].items() if value is not None}
        assert {key: got["records"][1][key] for key in first} == pytest.approx(first, rel=1e-3, abs=1e-5)


if __name__ == "__main__":
    import tempfile

    for run in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            text = json.dumps(outcome(run, Path(scratch) / "run"), indent=1)
        (PINNED / f"{run}.json").write_text(text + "\n")
        print(f"{run}: written")
