"""Engines of another make: two tensor-parallel workers, bfloat16, quantised weights."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tiny_engines import change, gone, plain_logp, requests, tiny_model, trainer_of, vllm_engine

from g2rpo_fast.types import EngineError, Sampling


def shared_files(pids: Iterable[int]) -> set[Path]:
    """What the processes have mapped of the shared memory that has a name."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    names = [line.partition("/dev/shm/")[2] for line in lines if not line.endswith("(deleted)")]
    return {Path("/dev/shm", name) for name in names if name}


def largest_difference(plain: Any, engine: Any) -> tuple[float, float]:
    """Mean and maximum |log p - log p| against transformers."""
    asked = requests(1)
    got = engine.generate(asked, Sampling())
    difference_N = np.abs(
        np.concatenate([c.logp - plain_logp(plain, r, c, Sampling()) for r, c in zip(asked, got)])
    )
    return float(difference_N.mean()), float(difference_N.max())


def workers_of(engine: Any) -> list[psutil.Process]:
    """All processes below the engine's own."""
    return psutil.Process(engine.pid).children(recursive=True)


def a_worker(engine: Any) -> psutil.Process:
    return next(p for p in workers_of(engine) if "resource_tracker" not in " ".join(p.cmdline()))


def test_two_workers_compute_the_same_and_end_together(tmp_path: Path) -> None:
    plain = tiny_model()
    model = trainer_of(plain)
    engine = vllm_engine(model, tmp_path, tensor_parallel=2)
    try:
        engine.sync(0)
        assert largest_difference(plain, engine)[1] < 1e-5
        for each in (plain, model):
            change(each, 1)
        engine.sync(1)
        assert largest_difference(plain, engine)[1] < 1e-5
        assert engine.pid is not None
        family = workers_of(engine)
        assert len(family) >= 2
        shared = shared_files([engine.pid, *(process.pid for process in family)])
        assert shared
        collect = engine.submit(requests(4, 300), Sampling())
        a_worker(engine).kill()
        began = time.monotonic()
        with pytest.raises(EngineError, match="generation after step 1"):
            collect()
        assert time.monotonic() - began < 30
    finally:
        engine.close()
    assert all(gone(process.pid) for process in family)
    assert not any(path.exists() for path in shared)
    assert engine.pid is None


@pytest.mark.deep
def test_workers_of_a_killed_engine_end_when_another_takes_its_place(tmp_path: Path) -> None:
    model = trainer_of(tiny_model())
    engine = vllm_engine(model, tmp_path, tensor_parallel=2)
    try:
        engine.sync(0)
        assert engine.pid is not None
        family = workers_of(engine)
        shared = shared_files([engine.pid, *(process.pid for process in family)])
        assert shared
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL"):
            engine.generate(requests(), Sampling())

        engine.sync(1)
        assert all(gone(process.pid) for process in family)
        assert not any(path.exists() for path in shared)
        assert len(engine.generate(requests(), Sampling())) == len(requests())
    finally:
        engine.close()


@pytest.mark.deep
def test_a_stopped_worker_is_named_and_ends_with_its_engine(tmp_path: Path) -> None:
    """The engine process itself beats, and computes as it waits."""
    engine = vllm_engine(trainer_of(tiny_model()), tmp_path, tensor_parallel=2, stall_s=5.0)
    try:
        engine.sync(0)
        assert engine.pid is not None
        family, worker = workers_of(engine), a_worker(engine)
        worker.suspend()
        began = time.monotonic()
        with pytest.raises(
            EngineError, match=rf"hangs in generation .*process {worker.pid} of its group has"
        ):
            engine.generate(requests(4, 300), Sampling())
        assert time.monotonic() - began < 30
    finally:
        engine.close()
    assert all(gone(process.pid) for process in family)


@pytest.mark.parametrize(
    ("config", "mean", "largest"),
    [
        ({"dtype": "bfloat16"}, (1e-4, 0.05), 1.0),
        ({"quantization": "fp8_per_channel"}, (1e-3, 0.4), 4.0),
    ],
    ids=["bfloat16", "fp8"],
)
def test_coarser_weights_pass_the_probe_and_follow_every_sync(
    tmp_path: Path, config: dict[str, Any], mean: tuple[float, float], largest: float
) -> None:
    plain = tiny_model()
    model = trainer_of(plain)
    engine = vllm_engine(model, tmp_path, **config)
    try:
        for version in (0, 1, 2):
            engine.sync(version)
            average, most = largest_difference(plain, engine)
            assert mean[0] < average < mean[1]
            assert most < largest
            for each in (plain, model):
                change(each, version)
        stale, _ = largest_difference(plain, engine)
        assert stale > 3 * average
    finally:
        engine.close()
