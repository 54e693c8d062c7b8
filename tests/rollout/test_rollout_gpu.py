"""The local engine on a GPU: recorded steps are the plain ones, log-probabilities in bfloat16; also on a CPU.

Error budget: see `budget`; errors are Euclidean norms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from budget import draws
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.rollout.local import static_cache
from g2rpo_fast.rollout.local.graph_decoder import CudaRecorder, Recorder
from g2rpo_fast.types import Completion, Request, Sampling
from local_engines import (
    FUNCTIONAL,
    SAMPLING,
    assert_same,
    engine_of,
    plain_model,
    reference_logp,
    requests,
    tokens,
    uneven,
)
from recorders import Eager, Tape

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
HALF = ModelConfig(precision="bfloat16")
EXACT = ModelConfig(precision="float32")  # the weights' own dtype


def recorder_of(device: str) -> Recorder:
    return Tape() if device == "cpu" else CudaRecorder(torch.device(device, torch.cuda.current_device()))


def sampled(plain: Any, some: list[Request], recorder: Recorder | None, sampling: Sampling = SAMPLING):
    """In bfloat16."""
    engine = engine_of(plain, compute=HALF, compute_dtype=torch.bfloat16, recorder=recorder)
    return engine.generate(some, sampling)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_graphs_take_the_plain_steps(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, and so in every token; rows end, families die out, and the cache grows twice."""
    monkeypatch.setattr(static_cache, "GROWTH", 48)
    plain = plain_model(name).to(device)
    wanted = engine_of(plain, compute=EXACT).generate(uneven(), SAMPLING)
    recorder = recorder_of(device)
    engine = engine_of(plain, compute=EXACT, recorder=recorder)
    assert_same(engine.generate(uneven(), SAMPLING), wanted, 1e-7)
    waves = engine_of(plain, compute=EXACT, recorder=recorder, max_rows=5)
    assert_same(waves.generate(uneven(), SAMPLING), wanted, 1e-7)
    # RoPE's factors are float32, on each device its own.
    truth = all_logp(plain_model(name), uneven(), wanted)
    np.testing.assert_allclose(np.concatenate([c.logp for c in wanted]), truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_repeat_bit_for_bit(device: str) -> None:
    plain, recorder = plain_model(dtype=torch.float32).to(device), recorder_of(device)
    first, again = (sampled(plain, uneven(), recorder) for _ in range(2))
    assert_same(first, again, 0)
    assert_same(first, sampled(plain, uneven(), Eager()), 0)
    eager, eager_again = (sampled(plain, uneven(), None) for _ in range(2))
    assert_same(eager, eager_again, 0)
    assert len(set(tokens(first))) > 15


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "plain"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [*FUNCTIONAL, "gemma2"])
def test_logp_in_bfloat16_keeps_the_budget(name: str, device: str, recorded: bool) -> None:
    """Those of the sampled tokens, against a plain forward over them in float64; eager is one in bfloat16."""
    some = requests(2, max_tokens=40)
    plain = plain_model(name, dtype=torch.float32).to(device)
    done = sampled(plain, some, recorder_of(device) if recorded else None)
    got = np.concatenate([completion.logp for completion in done])
    truth = all_logp(plain_model(name), some, done)

    def eager() -> list[torch.Tensor]:
        with torch.autocast(device, torch.bfloat16):
            return [torch.from_numpy(all_logp(plain, some, done))]

    def error(value: np.ndarray) -> float:
        return float(np.linalg.norm(value.astype(np.float64) - truth))

    allowed = 2 * max(error(own.double().numpy()) for (own,) in draws(eager))
    assert error(got) <= allowed + torch.finfo(torch.bfloat16).eps * float(np.linalg.norm(truth))
    assert error(got) > 1e-3  # it is bfloat16


def all_logp(plain: Any, some: list[Request], done: list[Completion]) -> np.ndarray:
    pairs = zip(some, done, strict=True)
    return np.concatenate([reference_logp(plain, *pair, SAMPLING).astype(np.float64) for pair in pairs])


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_read_the_weights_of_the_moment(device: str) -> None:
    plain = plain_model().to(device)
    engine = engine_of(plain, compute=EXACT, recorder=recorder_of(device))
    before = engine.generate(uneven(), SAMPLING)
    with torch.no_grad():
        for parameter in (*plain.parameters(), *engine._model.parameters()):
            parameter.mul_(1.2)
    after = engine.generate(uneven(), SAMPLING)
    assert_same(after, engine_of(plain, compute=EXACT).generate(uneven(), SAMPLING), 1e-7)
    assert tokens(before) != tokens(after)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_k=9, top_p=0.8)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_graphs_with_other_ways_to_draw(device: str, sampling: Sampling) -> None:
    plain = plain_model().to(device)
    wanted = engine_of(plain, compute=EXACT).generate(uneven(), sampling)
    engine = engine_of(plain, compute=EXACT, recorder=recorder_of(device))
    assert_same(engine.generate(uneven(), sampling), wanted, 1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_leave_no_memory_behind() -> None:
    plain, recorder = plain_model(dtype=torch.float32).to("cuda"), recorder_of("cuda")
    engine = engine_of(plain, compute=HALF, compute_dtype=torch.bfloat16, recorder=recorder)
    used: list[tuple[int, int]] = []
    for _ in range(6):
        engine.generate(uneven(), SAMPLING)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert used[-1][0] <= used[1][0]
    assert used[-1][1] <= used[1][1] + (16 << 20)
