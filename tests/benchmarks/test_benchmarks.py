"""The benchmarks of the ops run, small; a run on a GPU machine keeps what it has, whatever ends its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch

import sides
from attention_sides import Tokens, varlen
from on_gpu import FIRST_RUN, PARTS, Part, run_parts
from peers import Peer, usable
from timing import Deadline

ROOT = Path(__file__).parents[2]
LEAVES_A_CHILD = """
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "60"])
pathlib.Path('{pids}').write_text(str(child.pid))
time.sleep(60)
"""
SMOKE = [
    "attention",
    "linear_loss",
    "token_loss",
    "policy_loss",
    "tile_lists",
    "tree_mask",
    "prefix_tree",
    "growth",
    "gpu_step",
    "packed",
]


@pytest.mark.slow
def test_benchmarks_of_the_ops_run_small():
    files = [f"benchmarks/bench_{name}.py" for name in SMOKE]
    before = {file: file.stat().st_mtime_ns for file in (ROOT / "benchmarks/results").iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
    after = {file: file.stat().st_mtime_ns for file in (ROOT / "benchmarks/results").iterdir()}
    assert after == before


def test_sides_of_the_step_s_benchmark_run_here(tmp_path, monkeypatch):
    """Those that need nobody else's trainer."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for side, arguments in {
        sides.ours_step: {"prompt": 8},
        sides.ours_embedded: {"warm_start_steps": 0},
        sides.tree_update: {"prompt": 8},
        sides.padded_update: {"prompt": 8},
    }.items():
        figures = side(steps=1, **arguments)
        assert len(figures["seconds"]) == len(figures["cpu_seconds"]) == 1
        assert figures["peak_mib"] > 0


def test_peers_that_cannot_run_are_left_out_with_the_reason():
    peers = {
        "fine": Peer(lambda: lambda: 1),
        "absent": Peer(lambda: lambda: 1, needs="no_such_package"),
        "broken": Peer(lambda: lambda: 1 / 0),
    }
    made, skipped = usable(peers, Deadline(None))
    assert list(made) == ["fine"]
    assert skipped == {
        "absent": "no_such_package is not installed",
        "broken": "ZeroDivisionError: division by zero",
    }
    assert usable(peers, Deadline(0.0)) == (
        {},
        {"fine": "no time left", "absent": skipped["absent"], "broken": "no time left"},
    )


def test_run_on_gpu_keeps_what_it_has(tmp_path):
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    parts = {
        "build": Part(20, python("print('built', '{soft}')")),
        "check": Part(20, python("raise SystemExit(3)")),
        "slow": Part(3, python(LEAVES_A_CHILD.format(pids=tmp_path / "child"))),
    }
    work, out = tmp_path / "work", tmp_path / "out"
    assert run_parts(parts, work, out, 60.0) == 1
    summary = json.loads((out / "summary.json").read_text())
    ended = {name: part["ended"] for name, part in summary["parts"].items()}
    assert ended == {"build": "ok", "check": "failed with status 3", "slow": "cut off after 3 s"}
    assert (work / "results" / "build.log").read_text() == "built 13\n"
    assert sorted(file.name for file in out.iterdir()) == ["results.tgz", "summary.json"]
    with tarfile.open(out / "results.tgz") as archive:
        names = archive.getnames()
    assert {f"results/{name}" for name in ("build.log", "check.log", "slow.log", "summary.json")} <= set(
        names
    )
    assert not lives(int((tmp_path / "child").read_text()))
    assert run_parts({"build": parts["build"]}, tmp_path / "late", out, 0.5) == 0
    late = json.loads((out / "summary.json").read_text())
    assert late["parts"]["build"]["ended"] == "skipped: no time left"


def lives(pid: int) -> bool:
    """A process that nobody has waited for yet is a zombie: dead."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_parts_on_gpu_fit_nine_minutes():
    assert sum(PARTS[name].limit_s for name in FIRST_RUN) < 9 * 60
    assert tuple(PARTS)[: len(FIRST_RUN)] == FIRST_RUN
    for part in PARTS.values():
        files = [word for word in part.command if word.endswith(".py")]
        assert all((ROOT / file).exists() for file in files)


def test_checks_on_gpu_take_every_gpu_test():
    mark = "pytest.mark." + "gpu"
    files = (ROOT / "tests").rglob("test_*.py")
    marked = {file.relative_to(ROOT).as_posix() for file in files if mark in file.read_text()}
    taken = {word for name in ("check", "check_sync") for word in PARTS[name].command if word.endswith(".py")}
    assert marked == taken
    assert len(marked) >= 5


def test_replicated_flash_is_called_as_this_torch_takes_it():
    """Only the device is wrong."""
    q_SHE, k_SKE, v_SKE = (torch.randn(3, heads, 8) for heads in (2, 1, 1))
    paths = [torch.tensor([0, 1]), torch.tensor([0, 2])]
    tokens = Tokens(q_SHE, k_SKE, v_SKE, torch.tensor([3, 2, 3]), paths, prompt=1, tree_pairs=5)
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        varlen(tokens).run()
