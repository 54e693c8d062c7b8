"""The local engine against transformers: greedy text, log-probabilities, distribution, independence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from g2rpo_fast.rollout.local import Prefill
from g2rpo_fast.rollout.local.engine import _last_positions, _LogitsHead
from g2rpo_fast.rollout.local.families import plan_batches
from g2rpo_fast.types import Request, Sampling
from local_engines import (
    MODELS,
    VOCABULARY,
    engine_of,
    letters,
    plain_model,
    prompts,
    reference_logp,
    requests,
    tokens,
)


def greedy_text(plain: Any, prompt: tuple[int, ...], length: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    whole = plain.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        min_new_tokens=length,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(whole[0, len(prompt) :].tolist())


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_generate(name: str) -> None:
    plain = plain_model(name)
    engine = engine_of(plain)
    assert engine.decoder_name == MODELS[name][3]
    got = engine.generate(requests(2), Sampling(temperature=0))
    expected = [greedy_text(plain, prompt, 24) for prompt in prompts()]
    assert tokens(got) == expected * 2
    assert len(set(expected)) == len(expected)
    assert {len(c.token_ids) for c in got} == {24}


@pytest.mark.parametrize("name", MODELS)
def test_decoder_logits_are_those_of_a_plain_forward(name: str) -> None:
    plain = plain_model(name)
    engine = engine_of(plain)
    some = requests(2)
    (batch,) = plan_batches([r.prompt_ids for r in some], 99)
    some = [some[i] for i in batch.waves[0]]
    assert engine._prefill is not None
    prefill = engine._prefill([prefix for family in batch.families for prefix in family])
    decoder = engine._decoder(some)
    cache = engine._cache(decoder, batch, prefill, some, _last_positions(batch, prefill, some))
    token_TB = torch.randint(VOCABULARY, (19, len(some)), generator=torch.Generator().manual_seed(1))
    head = _LogitsHead(engine._head, torch.float64)
    got, expected = [], []
    with torch.no_grad():
        for token_B in token_TB:
            cache.advance()
            got.append(head.logits(decoder.step(token_B, cache)))
        for request, token_T in zip(some, token_TB.T.tolist()):
            logits = plain(torch.tensor([[*request.prompt_ids, *token_T]])).logits[0]
            expected.append(logits[len(request.prompt_ids) :])
    torch.testing.assert_close(torch.stack(got, 1), torch.stack(expected), rtol=1e-10, atol=1e-10)
    assert torch.stack(expected).std() > 0.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=9, top_p=0.8),
        Sampling(temperature=0),
    ],
    ids=["plain", "cool", "truncated", "greedy"],
)
def test_logp_is_that_of_a_plain_forward(name: str, sampling: Sampling) -> None:
    plain = plain_model(name)
    some = requests(1, max_tokens=40)
    for request, completion in zip(some, engine_of(plain).generate(some, sampling)):
        expected = reference_logp(plain, request, completion, sampling)
        # exact to 1e-10, then kept as float32
        np.testing.assert_allclose(completion.logp, expected, rtol=2**-23, atol=1e-10)
        assert completion.logp.dtype == np.float32
        assert completion.logp.min() < -0.5


def test_logp_in_float32_is_within_float32() -> None:
    plain, exact = plain_model(dtype=torch.float32), plain_model()
    some = requests(2)
    for request, completion in zip(some, engine_of(plain).generate(some, Sampling())):
        expected = reference_logp(exact, request, completion, Sampling())
        np.testing.assert_allclose(completion.logp, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softcaps need eager attention, whose softmax rounds to float32 unless it is told not to."""
    softmax = F.softmax
    monkeypatch.setattr(F, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


def test_sampling_has_the_models_distribution() -> None:
    size, num_samples, prompt = 6, 6000, (3, 1, 4)
    plain = plain_model(vocabulary=size, dtype=torch.float32)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.75)
        first = plain(torch.tensor([prompt])).logits[0, -1].double().softmax(0)
        second = plain(torch.tensor([(*prompt, i) for i in range(size)])).logits[:, -1].double().softmax(-1)
    expected = (first[:, None] * second).flatten().numpy() * num_samples
    some = [Request(prompt_ids=prompt, max_tokens=2, seed=seed) for seed in range(num_samples)]
    pairs = np.array(tokens(engine_of(plain, max_rows=2000).generate(some, Sampling())))
    counts = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size * size)
    critical = 66.619  # 0.999 quantile of chi-square, 35 degrees of freedom
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < critical
    assert ((counts - expected.mean()) ** 2 / expected.mean()).sum() > 2 * critical  # it would notice


def test_results_do_not_depend_on_the_batch() -> None:
    engine = engine_of(plain_model())
    some = requests(4)
    whole = engine.generate(some, Sampling())
    order = np.random.default_rng(0).permutation(len(some))
    shuffled = engine.generate([some[i] for i in order], Sampling())
    alone = [engine.generate([request], Sampling())[0] for request in some[:5]]
    assert [tokens(shuffled)[i] for i in np.argsort(order)] == tokens(whole)
    assert tokens(alone) == tokens(whole)[:5]
    assert len(set(tokens(whole))) == len(some)  # seeds differ, so texts do


def test_waves_give_the_same_and_encode_each_prefix_once() -> None:
    plain = plain_model()
    encoded: list[tuple[int, ...]] = []
    engine = engine_of(plain)
    inner = engine._prefill
    assert inner is not None

    def counted(prefixes: list[tuple[int, ...]]) -> Prefill:
        encoded.extend(prefixes)
        return inner(prefixes)

    some = requests(4)
    small = engine_of(plain, prefill=counted, max_rows=5)
    assert tokens(small.generate(some, Sampling())) == tokens(engine.generate(some, Sampling()))
    assert sorted(encoded) == sorted(prompts())


def test_batches_keep_families_whole() -> None:
    a, b, c = (1, 2, 3), (9, 9), (5, 6)
    batches = plan_batches([a, b, (*a, 4), a, c, b], 3)
    assert [batch.families for batch in batches] == [[[a, (*a, 4)]], [[b], [c]]]
    assert [batch.waves for batch in batches] == [[[0, 3, 2]], [[1, 5, 4]]]
    assert [batch.waves for batch in plan_batches([a] * 5, 2)] == [[[0, 1], [2, 3], [4]]]


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_rows_that_end_early_leave_the_rest_alone(name: str) -> None:
    engine = engine_of(plain_model(name))
    long = requests(6, max_tokens=90)
    lengths = np.random.default_rng(2).integers(0, 20, len(long))
    lengths[::11] = 90
    short = [Request(prompt_ids=r.prompt_ids, max_tokens=int(n), seed=r.seed) for r, n in zip(long, lengths)]
    whole, cut = engine.generate(long, Sampling()), engine.generate(short, Sampling())
    for n, a, b in zip(lengths, whole, cut):
        assert b.token_ids == a.token_ids[:n]
        np.testing.assert_allclose(b.logp, a.logp[:n], atol=1e-6)
        assert b.finish_reason == "length"
    assert 0 in lengths


def test_stop_tokens_end_a_completion_and_stay_in_it() -> None:
    engine = engine_of(plain_model())
    free = tokens(engine.generate(requests(4), Sampling()))
    stopped = engine.generate(requests(4), Sampling(stop_token_ids=(7, 20)))
    for ids, completion in zip(free, stopped):
        ends = [i + 1 for i, token in enumerate(ids) if token in (7, 20)]
        assert completion.token_ids == (ids[: ends[0]] if ends else ids)
        assert completion.finish_reason == ("stop" if ends else "length")
        assert len(completion.logp) == len(completion.token_ids)
    assert {c.finish_reason for c in stopped} == {"stop", "length"}


def test_stop_strings_end_a_completion_with_the_token_that_completes_them() -> None:
    engine = engine_of(plain_model())
    free = tokens(engine.generate(requests(4, max_tokens=60), Sampling()))
    texts = [letters(ids) for ids in free]
    stops = (texts[0][30:32], texts[1][11:14], texts[2][59:60])
    stopped = engine.generate(requests(4, max_tokens=60), Sampling(stop_strings=stops))
    for ids, text, completion in zip(free, texts, stopped):
        ends = sorted(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert completion.token_ids == (ids[: ends[0]] if ends else ids)
        assert completion.finish_reason == ("stop" if ends else "length")
    assert sum(c.finish_reason == "stop" for c in stopped) > 3
    assert len({len(c.token_ids) for c in stopped}) > 3


@pytest.mark.parametrize(("guidance", "begins"), [(0, False), (1, True), (3, True), (None, True)])
def test_a_stop_string_may_begin_in_the_guidance(guidance: int | None, begins: bool) -> None:
    engine = engine_of(plain_model())
    free = Request(prompt_ids=(1, 2, 9), max_tokens=30, seed=3, guidance_len=guidance)
    (whole,) = engine.generate([free], Sampling())
    stop = letters((9, whole.token_ids[0]))
    assert stop not in letters(whole.token_ids)
    (done,) = engine.generate([free], Sampling(stop_strings=(stop,)))
    assert done.token_ids == (whole.token_ids[:1] if begins else whole.token_ids)
    assert done.finish_reason == ("stop" if begins else "length")
    (kept,) = engine.generate([free], Sampling(stop_strings=(letters((9,)),)))
    assert len(kept.token_ids) > 1  # the guidance's own text does not end it


def test_a_stop_at_the_very_limit_is_a_stop() -> None:
    engine = engine_of(plain_model())
    request = Request(prompt_ids=(1, 2), max_tokens=6, seed=3)
    (free,) = engine.generate([request], Sampling())
    last = free.token_ids[-1]
    assert last not in free.token_ids[:-1]
    (stopped,) = engine.generate([request], Sampling(stop_token_ids=(last,)))
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids, "stop")


def test_completions_carry_the_weight_version_and_weights_are_read_anew() -> None:
    engine = engine_of(plain_model())
    some = [Request(prompt_ids=(1, 2, 3), max_tokens=12, seed=5)]
    (before,) = engine.generate(some, Sampling())
    engine.sync(4)
    with torch.no_grad():
        for parameter in engine._model.parameters():
            parameter.mul_(1.5)
    (after,) = engine.generate(some, Sampling())
    assert (before.weight_version, after.weight_version) == (0, 4)
    assert before.token_ids != after.token_ids
    (empty,) = engine.generate([Request(prompt_ids=(1,), max_tokens=0, seed=0)], Sampling())
    assert (empty.token_ids, len(empty.logp), empty.finish_reason) == ((), 0, "length")


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_training_goes_on_after_sampling(name: str) -> None:
    engine = engine_of(plain_model(name))
    model = engine._model.train()
    engine.generate(requests(1, max_tokens=4), Sampling())
    assert model.training
    model.set_attn_implementation("sdpa" if name == "qwen3" else "eager")
    model(torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.model.layers.parameters())


def test_nothing_asked_is_nothing_answered() -> None:
    assert engine_of(plain_model()).generate([], Sampling()) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(prompt_ids=(), max_tokens=3, seed=0), "request 1: wanted a prompt"),
        (
            Request(prompt_ids=(1,), max_tokens=-1, seed=0),
            "request 1: wanted max_tokens .* got -1",
        ),
        (Request(prompt_ids=(1,) * 100, max_tokens=61, seed=0), "request 1: .* 160 positions, got 100 . 61"),
        (Request(prompt_ids=(1, VOCABULARY), max_tokens=1, seed=0), r"in \[0, 37\), got 37"),
        (Request(prompt_ids=(1, -2), max_tokens=1, seed=0), r"in \[0, 37\), got -2"),
    ],
)
def test_a_wrong_request_is_named(request_: Request, message: str) -> None:
    fine = Request(prompt_ids=(1,), max_tokens=1, seed=0)
    with pytest.raises(ValueError, match=message):
        engine_of(plain_model()).generate([fine, request_], Sampling())


def test_logits_that_are_not_finite_are_refused() -> None:
    engine = engine_of(plain_model())
    with torch.no_grad():
        next(iter(engine._model.parameters())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="request 0: wanted finite logits"):
        engine.generate([Request(prompt_ids=(1,), max_tokens=3, seed=0)], Sampling())
