"""Engines that die, hang or fail to start: what is said, how soon, and what goes on afterwards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_engines import change, gone, model_directories, plain_logp, tiny_model, trainer_of, vllm_engine

from g2rpo_fast.rollout.vllm import VllmConfig
from g2rpo_fast.rollout.vllm.liveness import LOOK_S
from g2rpo_fast.types import EngineError, Request, Sampling
from runs import busy_loops

LONG = [Request(prompt_ids=(5, 6, 7, i), max_tokens=500, seed=i) for i in range(40)]
SHORT = [Request(prompt_ids=(5, 6, 7), max_tokens=8, seed=i) for i in range(4)]


def test_a_hung_engine_is_noticed_within_half_a_minute() -> None:
    """The first look is only compared with: the silence begins then at the latest."""
    assert VllmConfig().stall_s + 3 * LOOK_S < 30
    assert VllmConfig().sync_timeout_s + 3 * LOOK_S < 30


@pytest.mark.deep
def test_a_busy_machine_makes_an_engine_slow_and_not_hung(tmp_path: Path) -> None:
    """Limits so short that every phase outlasts them beside four loops that want the same cores."""
    plain = tiny_model()
    model = trainer_of(plain)
    with busy_loops(4):
        engine = vllm_engine(model, tmp_path, start_timeout_s=2.0, stall_s=2.0, sync_timeout_s=2.0)
        try:
            engine.sync(0)
            began = time.monotonic()
            completions = engine.generate(4 * LONG, Sampling())
            assert time.monotonic() - began > 2.0
            engine.sync(1)
            for request, completion in zip(LONG[:4], completions):
                expected = plain_logp(plain, request, completion, Sampling())
                np.testing.assert_allclose(completion.logp, expected, atol=2e-5, rtol=0)
            assert engine.metrics()["engine/restarts"] == 0
            pid = engine.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(EngineError, match=rf"hangs in sync .*process {pid} of its group has been"):
                engine.sync(2)
        finally:
            engine.close()


def test_an_engine_that_is_stopped_as_it_starts_is_named(tmp_path: Path) -> None:
    engine = vllm_engine(trainer_of(tiny_model()), tmp_path, stall_s=3.0)
    try:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match=rf"hangs in start \(process {engine.pid}\): process"):
            engine.sync(0)
    finally:
        engine.close()


def test_a_killed_engine_is_named_at_once_and_a_sync_revives_it(tmp_path: Path) -> None:
    shown: list[str] = []
    before = model_directories()
    plain = tiny_model()
    model = trainer_of(plain)
    engine = vllm_engine(model, tmp_path, show=shown.append)
    try:
        engine.sync(3)
        first = engine.pid
        assert first is not None
        collect = engine.submit(LONG, Sampling())
        time.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(EngineError) as error:
            collect()
        assert time.monotonic() - began < 10
        message = str(error.value)
        assert (
            f"died in generation after step 3 (weight version 3) (process {first}, ended by SIGKILL)"
            in message
        )
        assert str(tmp_path / "vllm.log") in message
        assert engine.pid is None
        with pytest.raises(EngineError, match="wanted one running for generation"):
            engine.generate(SHORT, Sampling())

        engine.sync(4)
        assert engine.pid not in (None, first)
        for request, completion in zip(SHORT, engine.generate(SHORT, Sampling())):
            expected = plain_logp(plain, request, completion, Sampling())
            np.testing.assert_allclose(completion.logp, expected, atol=1e-5, rtol=0)
            assert completion.weight_version == 4
        assert engine.metrics()["engine/restarts"] == 1
        assert [line.split(":")[0] for line in shown] == ["weight sync", "rollout engine", "weight sync"]
    finally:
        engine.close()
    engine.close()
    assert model_directories() == before


def test_an_engine_that_dies_before_a_sync_is_replaced_with_its_batch(tmp_path: Path) -> None:
    plain = tiny_model()
    model = trainer_of(plain)
    engine = vllm_engine(model, tmp_path)
    try:
        engine.sync(0)
        collect = engine.submit(LONG[:6], Sampling())
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        change(model, 1)
        engine.sync(1)
        change(plain, 1)
        for request, completion in zip(LONG, collect()):
            assert completion.weight_version == 1
            expected = plain_logp(plain, request, completion, Sampling())
            np.testing.assert_allclose(completion.logp, expected, atol=2e-5, rtol=0)
    finally:
        engine.close()


def test_a_stopped_engine_is_named_and_ended(tmp_path: Path) -> None:
    engine = vllm_engine(trainer_of(tiny_model()), tmp_path, stall_s=3.0, sync_timeout_s=3.0)
    try:
        for phase, stalled in (
            ("generation after step 0", lambda: engine.generate(LONG, Sampling())),
            ("sync after step 1", lambda: engine.sync(1)),
        ):
            engine.sync(0)
            pid = engine.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            why = rf"process {pid} of its group has been stopped for 3 s"
            with pytest.raises(EngineError, match=rf"hangs in {phase} .*process {pid}\): {why}"):
                stalled()
            assert 3 <= time.monotonic() - began < 15
            assert gone(pid)
    finally:
        engine.close()


def test_the_second_failure_in_a_row_is_an_error(tmp_path: Path) -> None:
    """Weights that vLLM has no place for: no engine can take them."""
    model = trainer_of(tiny_model())
    model.get_decoder().register_parameter("stray", model.get_decoder().norm.weight)
    model.get_decoder().stray = type(model.get_decoder().norm.weight)(
        model.get_decoder().norm.weight.detach() + 1
    )
    shown: list[str] = []
    engine = vllm_engine(model, tmp_path, show=shown.append)
    try:
        with pytest.raises(EngineError, match=r"failed in sync after step 0 .*stray"):
            engine.sync(0)
        assert engine.metrics()["engine/restarts"] == 1
        assert any(line.startswith("rollout engine: a new one is started; ") for line in shown)
        assert engine.pid is None
    finally:
        engine.close()


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    engine = vllm_engine(trainer_of(tiny_model()), tmp_path, kv_cache_mib=10**8)
    try:
        with pytest.raises(EngineError, match=r"failed in start") as error:
            engine.sync(0)
        assert "memory" in str(error.value)
    finally:
        engine.close()
