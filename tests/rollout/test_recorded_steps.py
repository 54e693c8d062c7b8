"""Recorded decoding steps are the plain ones: same tokens, log-probabilities up to rounding, any layout."""

from __future__ import annotations

import pytest
import torch

from g2rpo_fast.rollout.local import static_cache
from g2rpo_fast.types import Request, Sampling
from local_engines import (
    FUNCTIONAL,
    SAMPLING,
    VOCABULARY,
    assert_same,
    engine_of,
    plain_model,
    requests,
    tokens,
    uneven,
)
from recorders import Eager, Tape

RECORDERS = {"eager": Eager, "recorded": Tape}


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_recorded_steps_are_the_plain_ones(name: str, recorder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, and so in every token; rows end, families die out, and the cache grows twice."""
    monkeypatch.setattr(static_cache, "GROWTH", 48)
    plain, how = plain_model(name), RECORDERS[recorder]()
    wanted = engine_of(plain).generate(uneven(), SAMPLING)
    assert_same(engine_of(plain, recorder=how).generate(uneven(), SAMPLING), wanted, 1e-7)
    assert how.num_recorded >= 5
    assert len({len(c.token_ids) for c in wanted}) > 9


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLING,
        Sampling(temperature=1.3, top_k=9, top_p=0.8, stop_token_ids=(7, 20)),
        Sampling(temperature=0),
    ],
    ids=["plain", "stopped", "greedy"],
)
def test_recorded_steps_in_float32(sampling: Sampling, recorder: str) -> None:
    plain = plain_model(dtype=torch.float32)
    wanted = engine_of(plain).generate(uneven(), sampling)
    how = RECORDERS[recorder]()
    assert_same(engine_of(plain, recorder=how).generate(uneven(), sampling), wanted, 1e-5)
    assert how.num_recorded > 0


def test_recorded_steps_in_waves() -> None:
    """Each wave has a cache and recordings of its own."""
    plain, how = plain_model(), Tape()
    wanted = engine_of(plain).generate(uneven(), SAMPLING)
    small = engine_of(plain, recorder=how, max_rows=5)
    assert_same(small.generate(uneven(), SAMPLING), wanted, 1e-7)
    assert how.num_recorded >= 4
    assert_same(small.generate(uneven(), SAMPLING), wanted, 0)


def test_recording_a_step_rounds_nothing_anew() -> None:
    """What a recorded step computes is, bit for bit, what it computes when it is run."""
    plain = plain_model(dtype=torch.float32)
    got, again, run = (
        engine_of(plain, recorder=how, compute_dtype=torch.bfloat16).generate(uneven(), SAMPLING)
        for how in (Tape(), Tape(), Eager())
    )
    assert_same(got, again, 0)
    assert_same(got, run, 0)


def test_recorded_steps_read_the_weights_of_the_moment() -> None:
    engine = engine_of(plain_model(), recorder=Tape())
    some = [Request(prompt_ids=(1, 2, 3), max_tokens=12, seed=5)]
    before = engine.generate(some, SAMPLING)
    with torch.no_grad():
        for parameter in engine._model.parameters():
            parameter.mul_(1.5)
    after = engine.generate(some, SAMPLING)
    assert tokens(before) != tokens(after)
    plain = plain_model()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.5)
    assert_same(after, engine_of(plain).generate(some, SAMPLING), 1e-7)


def test_other_models_take_plain_steps() -> None:
    plain, how = plain_model("gemma2"), Tape()
    wanted = engine_of(plain).generate(requests(1), SAMPLING)
    assert_same(engine_of(plain, recorder=how).generate(requests(1), SAMPLING), wanted, 0)
    assert how.num_recorded == 0


def test_a_tape_repeats_what_was_recorded() -> None:
    """The number 2.0, not the variable; the tensor that was there, not the one that is there now."""
    x, factor = torch.ones(3), 2.0

    def step() -> torch.Tensor:
        return x.narrow(0, 0, 2).mul(factor).add_(x[2])

    replay = Tape().record(step)
    kept, x, factor = x, torch.zeros(3), 5.0
    kept.fill_(4.0)
    assert replay().tolist() == [12.0, 12.0]
    with pytest.raises(AssertionError, match="the host waits"):
        Tape().record(lambda: torch.ones(VOCABULARY)[int(x.argmax())])
