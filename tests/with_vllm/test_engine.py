"""vLLM's completions against transformers and the local engine: tokens, log-probabilities, ends, versions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from tiny_engines import (
    TOKENIZER,
    VOCABULARY,
    change,
    local_engine,
    plain_logp,
    requests,
    tiny_model,
    trainer_of,
    vllm_engine,
)

from g2rpo_fast.rollout.vllm.engine import VllmEngine
from g2rpo_fast.rollout.vllm.launch import CPU_BATCHED_TOKENS
from g2rpo_fast.types import Request, Sampling

LOGP_TOLERANCE = 1e-5
"""Nats, float32: measured 2e-6."""

PLAIN = tiny_model()
TRAINER = trainer_of(PLAIN)
LOCAL = local_engine(TRAINER)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """One engine on the weights of PLAIN, as version 5."""
    engine = vllm_engine(TRAINER, tmp_path_factory.mktemp("engine"))
    engine.sync(5)
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=0.0),
        Sampling(temperature=1.3, top_k=5),
        Sampling(top_p=0.8),
        Sampling(temperature=0.8, top_k=9, top_p=0.9),
    ],
    ids=str,
)
def test_logp_is_transformers(engine: VllmEngine, sampling: Sampling) -> None:
    asked = requests()
    got = engine.generate(asked, sampling)
    for request, completion in zip(asked, got, strict=True):
        expected = plain_logp(PLAIN, request, completion, sampling)
        np.testing.assert_allclose(completion.logp, expected, atol=LOGP_TOLERANCE, rtol=0)
        assert len(completion.token_ids) == 24
        assert completion.weight_version == 5
        assert completion.token_versions is not None
        assert completion.token_versions.tolist() == [5] * 24
    spread = np.concatenate([c.logp for c in got])
    assert spread.std() > 0.3


def test_greedy_is_the_local_engines(engine: VllmEngine) -> None:
    greedy = Sampling(temperature=0)
    got, expected = engine.generate(requests(), greedy), LOCAL.generate(requests(), greedy)
    assert [c.token_ids for c in got] == [c.token_ids for c in expected]
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a.logp, b.logp, atol=LOGP_TOLERANCE, rtol=0)
    assert len({c.token_ids for c in got}) == 7


def test_seeds_repeat_whatever_else_is_in_the_batch(engine: VllmEngine) -> None:
    asked = requests(3)
    whole = engine.generate(asked, Sampling())
    again = engine.generate(asked[::-1], Sampling())[::-1]
    alone = engine.generate(asked[4:5], Sampling())
    assert [c.token_ids for c in again] == [c.token_ids for c in whole]
    assert alone[0].token_ids == whole[4].token_ids
    assert len({c.token_ids for c in whole}) == len(whole)


def test_more_prompt_tokens_than_a_step_computes(engine: VllmEngine) -> None:
    """A prompt split over two steps would make vLLM rewind a CPU generator, which ends the engine."""
    rng = np.random.default_rng(3)
    rows = 2 * CPU_BATCHED_TOKENS // 400 + 1
    prompts = [tuple(rng.integers(0, VOCABULARY, 400).tolist()) for _ in range(rows)]
    asked = [Request(prompt_ids=ids, max_tokens=4, seed=i) for i, ids in enumerate(prompts)]
    for request, completion in zip(asked, engine.generate(asked, Sampling()), strict=True):
        expected = plain_logp(PLAIN, request, completion, Sampling())
        np.testing.assert_allclose(completion.logp, expected, atol=LOGP_TOLERANCE, rtol=0)
    assert engine.metrics()["engine/restarts"] == 0


def test_stops_are_the_local_engines(engine: VllmEngine) -> None:
    free = LOCAL.generate(requests(1, 60), Sampling(temperature=0))
    text = [TOKENIZER.decode(list(c.token_ids), skip_special_tokens=True) for c in free]
    strings = (text[0][9:12], text[1][20:22], text[3][3:5], text[5][-2:])
    samplings = [
        Sampling(temperature=0, stop_token_ids=(free[0].token_ids[7],)),
        Sampling(temperature=0, stop_token_ids=(free[1].token_ids[20], free[2].token_ids[2])),
        Sampling(temperature=0, stop_strings=strings),
        Sampling(temperature=0, stop_strings=strings[1:], stop_token_ids=(free[0].token_ids[11],)),
    ]
    reasons = set()
    for sampling in samplings:
        for length in (1, 3, 60):
            got = engine.generate(requests(1, length), sampling)
            expected = LOCAL.generate(requests(1, length), sampling)
            assert [c.token_ids for c in got] == [c.token_ids for c in expected]
            assert [c.finish_reason for c in got] == [c.finish_reason for c in expected]
            reasons |= {(c.finish_reason, len(c.token_ids)) for c in got}
    assert {reason for reason, _ in reasons} == {"stop", "length"}
    assert len(reasons) > 8


def test_sampled_rows_end_at_stop_strings(engine: VllmEngine) -> None:
    free = engine.generate(requests(2, 60), Sampling())
    texts = [TOKENIZER.decode(list(c.token_ids), skip_special_tokens=True) for c in free]
    stops = tuple(text[5 * i + 10 : 5 * i + 12] for i, text in enumerate(texts[:8]))
    stopped = engine.generate(requests(2, 60), Sampling(stop_strings=stops))
    ends = [c for c in stopped if c.finish_reason == "stop"]
    for whole, cut in zip(free, stopped, strict=True):
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        text = TOKENIZER.decode(list(cut.token_ids), skip_special_tokens=True)
        before = TOKENIZER.decode(list(cut.token_ids[:-1]), skip_special_tokens=True)
        assert any(stop in text for stop in stops) == (cut.finish_reason == "stop")
        assert not any(stop in before for stop in stops)
        assert len(cut.logp) == len(cut.token_ids)
    assert len(ends) > 3
    assert len({len(c.token_ids) for c in ends}) > 3


def test_stop_strings_find_special_tokens_and_begin_in_guidance(engine: VllmEngine) -> None:
    """As in the local engine: the engine's process has the trainer's text of tokens."""
    free = LOCAL.generate(requests(1, 60), Sampling(temperature=0))
    first = free[0].token_ids[0]
    guided = [replace(r, guidance_len=2) for r in requests(1, 60)]
    begun = TOKENIZER.decode([guided[0].prompt_ids[-1], first])
    special = [
        name for name in TOKENIZER.all_special_tokens if _id(name) in {i for c in free for i in c.token_ids}
    ]
    sampling = Sampling(temperature=0, stop_strings=(begun, *special))
    got, expected = engine.generate(guided, sampling), LOCAL.generate(guided, sampling)
    assert [c.token_ids for c in got] == [c.token_ids for c in expected]
    assert len(got[0].token_ids) == 1
    assert special


def _id(name: str) -> int:
    return TOKENIZER.convert_tokens_to_ids(name)


def test_nothing_to_sample_is_answered_empty(engine: VllmEngine) -> None:
    none = Request(prompt_ids=(3,), max_tokens=0, seed=0)
    assert engine.generate([], Sampling()) == []
    (only,) = engine.generate([none], Sampling())
    assert (only.token_ids, len(only.logp), only.finish_reason) == ((), 0, "length")
    got = engine.generate([none, replace(none, max_tokens=2), none], Sampling())
    assert [len(c.token_ids) for c in got] == [0, 2, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        Request(prompt_ids=(), max_tokens=3, seed=0),
        Request(prompt_ids=(1,), max_tokens=-1, seed=0),
        Request(prompt_ids=(1,) * 500, max_tokens=13, seed=0),
        Request(prompt_ids=(1, VOCABULARY), max_tokens=1, seed=0),
    ],
    ids=["empty", "negative", "long", "outside"],
)
def test_refusals_are_the_local_engines(engine: VllmEngine, wrong: Request) -> None:
    asked = [Request(prompt_ids=(1,), max_tokens=1, seed=0), wrong]
    with pytest.raises(ValueError) as local:
        LOCAL.generate(asked, Sampling())
    with pytest.raises(ValueError) as vllm:
        engine.generate(asked, Sampling())
    assert str(vllm.value) == str(local.value)
    with pytest.raises(ValueError, match="temperature: wanted 0 or at least"):
        engine.generate(asked[:1], Sampling(temperature=0.001))


def test_a_row_may_fill_the_model(engine: VllmEngine) -> None:
    asked = [Request(prompt_ids=(1,) * 500, max_tokens=12, seed=3)]
    (got,) = engine.generate(asked, Sampling())
    assert len(got.token_ids) == 12
    expected = plain_logp(PLAIN, asked[0], got, Sampling())
    np.testing.assert_allclose(got.logp, expected, atol=LOGP_TOLERANCE, rtol=0)


def let_work(engine: VllmEngine, seconds: float) -> None:
    """Until the engine process has used that much CPU time: tokens were sampled, on a busy machine too."""
    process = psutil.Process(engine.pid)
    until = sum(process.cpu_times()[:2]) + seconds
    while sum(process.cpu_times()[:2]) < until:
        time.sleep(0.01)


def test_sync_amid_generation_is_exact_on_both_sides(tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = tiny_model(1)
    model = trainer_of(plain)
    engine = vllm_engine(model, tmp_path_factory.mktemp("amid"))
    try:
        engine.sync(0)
        weights = {0: {name: p.clone() for name, p in model.named_parameters()}}
        asked = [Request(prompt_ids=(5, 6, 7, i), max_tokens=400, seed=i) for i in range(12)]
        collect = engine.submit(asked, Sampling())
        for version in (1, 2, 3):
            let_work(engine, 0.2)
            change(model, version)
            weights[version] = {name: p.clone() for name, p in model.named_parameters()}
            engine.sync(version)
        completions = collect()
        metrics = engine.metrics()
    finally:
        engine.close()
    expected = {}
    for version, values in weights.items():
        plain.load_state_dict({**plain.state_dict(), **values})
        plain.tie_weights()
        expected[version] = [plain_logp(plain, r, c, Sampling()) for r, c in zip(asked, completions)]
    seen: set[int] = set()
    for row, completion in enumerate(completions):
        versions = completion.token_versions
        assert versions is not None
        assert (np.diff(versions) >= 0).all()
        assert completion.weight_version == versions[0]
        seen |= set(versions.tolist())
        wanted = np.choose(versions, [expected[version][row] for version in range(4)])
        np.testing.assert_allclose(completion.logp, wanted, atol=2 * LOGP_TOLERANCE, rtol=0)
    assert len(seen) > 1
    assert np.abs(expected[0][0] - expected[1][0]).max() > 0.1
    assert metrics["engine/weight_version"] == 3
    assert metrics["engine/restarts"] == 0
    assert metrics["engine/sync_bytes"] == 4 * sum(4 * p.numel() for p in model.parameters())


def test_a_copy_plan_follows_every_sync_and_brings_what_is_not_finite_too(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plain = tiny_model(2)
    model = trainer_of(plain)
    shown: list[str] = []
    directory = tmp_path_factory.mktemp("plan")
    engine = vllm_engine(model, directory, show=shown.append, rung="plan", checksum=True)
    asked = requests(1)
    try:
        for version in range(4):  # twice each slot
            engine.sync(version)
            for request, completion in zip(asked, engine.generate(asked, Sampling()), strict=True):
                expected = plain_logp(plain, request, completion, Sampling())
                np.testing.assert_allclose(completion.logp, expected, atol=LOGP_TOLERANCE, rtol=0)
                assert completion.weight_version == version
            for each in (plain, model):
                change(each, version)
        assert engine.rung == "plan"
        assert shown == ["weight sync: plan, 1.6 MB a sync"]
        assert engine.metrics()["engine/rung_plan"] == 1
        with torch.no_grad():
            model.get_decoder().norm.weight.fill_(torch.nan)
        engine.sync(4)
        with pytest.raises(FloatingPointError, match="request 0: wanted finite logits, got NaN or infinity"):
            engine.generate(asked, Sampling())
    finally:
        engine.close()
