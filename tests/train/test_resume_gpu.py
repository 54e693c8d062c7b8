"""A run on a GPU that stops and goes on is the uninterrupted one, bit for bit; also on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

for name in ("pydantic", "plotext"):  # of the program; a GPU machine may have what the ops need alone
    pytest.importorskip(name)

from g2rpo_fast import train  # noqa: E402
from g2rpo_fast.metrics import read_metrics  # noqa: E402
from runs import quiet, tiny_config, without_times  # noqa: E402

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_run_stopped_after_two_steps_equals_the_uninterrupted(device: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(directory: Path, steps: int) -> None:
        train(
            tiny_config(directory, run={"device": device, "steps": steps, "dir": str(directory)}), show=quiet
        )

    run(whole, 4)
    run(broken, 2)
    run(broken, 4)
    expected = without_times(read_metrics(whole / "metrics.jsonl"))
    assert without_times(read_metrics(broken / "metrics.jsonl")) == expected
    assert [record["step"] for record in expected] == [0, 1, 2, 3, 4]
    assert all(record["optim/grad_norm"] > 0 for record in expected[1:])
    for name in ("model/model.safetensors", "checkpoints/step_00000004/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
