"""The weight-sync benchmark runs on a CPU: two processes, every value arrives, nothing grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_weight_sync_script_runs_on_a_cpu(tmp_path: Path):
    out = tmp_path / "weight_sync_cpu.json"
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    script = ROOT / "benchmarks" / "sync_on_gpu.py"
    words = ["--device", "cpu", "--layout", "tiny", "--syncs", "15", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["figures"]["cases"]["memfd tiny"]
    assert figures["arrived"]
    assert (figures["syncs"], figures["tensors"], figures["copies"]) == (15, 25, 25)
    assert figures["bytes"] == 2 * figures["parameters"] == 379_648
    assert figures["growth"]["trainer_files"] == figures["growth"]["reader_files"] == 0
    assert figures["to_copy"] == figures["device_ms"] / figures["copy_ms"] > 0
    assert 0 < figures["replay_ms"]["median"] <= figures["wall_ms"]["most"]
