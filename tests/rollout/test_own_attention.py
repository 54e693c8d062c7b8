"""A decoding step's attention in C++ against float64, within the budget of the same in PyTorch; and an engine
with it against one that composes the step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from budget import assert_within_budget, draws
from g2rpo_fast import _C
from g2rpo_fast.rollout.local.cache import Cache
from g2rpo_fast.types import Sampling
from local_engines import engine_of, plain_model, requests, tokens

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
SCALE = 0.3


def inputs(width: int, num_slots: int, num_queries: int = 2, items: int = 6) -> Inputs:
    """Query (one of several projections side by side), keys, values, the prefix's attention and its lse."""
    torch.manual_seed(width + num_slots)
    side_by_side = torch.randn(items, num_queries + 2, width) * 3
    cache = torch.randn(2, items, num_slots, width)
    prefix, lse = torch.randn(items, num_queries, width), torch.randn(items, num_queries) * 4
    return side_by_side[:, :num_queries], cache[0], cache[1], prefix, lse


def composed(given: Inputs, first: int, last: int) -> Tensor:
    q, k, v, prefix, lse = given
    score = SCALE * q @ k[:, first:last].transpose(1, 2)
    weight = torch.cat([lse[..., None], score], -1).softmax(-1)
    return weight[..., 1:] @ v[:, first:last] + weight[..., :1] * prefix


def compiled(given: Inputs, first: int, last: int, threads: int = 1) -> Tensor:
    """Slots that are not seen, and the output before, are NaN."""
    q, k, v, prefix, lse = given
    k, v = k.clone(), v.clone()
    for hidden in (k[:, :first], k[:, last:], v[:, :first], v[:, last:]):
        hidden.fill_(torch.nan)
    out = torch.full(q.shape, torch.nan)
    arrays = [x.numpy() for x in (q, k, v, prefix, lse, out)]
    _C.own_attention(*arrays, first=first, last=last, scale=SCALE, threads=threads)
    return out


@pytest.mark.parametrize("width", [1, 8, 20, 32, 64, 80, 128, 131])
@pytest.mark.parametrize("seen", [(1, 2), (1, 18), (5, 37), (1, 64)])
def test_step_is_within_the_budget_of_the_composed_one(width: int, seen: tuple[int, int]) -> None:
    given = inputs(width, 64)
    truth = composed(tuple(x.double() for x in given), *seen)  # pyright: ignore[reportArgumentType]
    got = compiled(given, *seen)
    assert float(truth.abs().max()) > 0.1
    assert_within_budget([got], draws(lambda: [composed(given, *seen)]), [truth])


def test_a_prefix_that_is_out_of_sight_adds_nothing() -> None:
    q, k, v, prefix, lse = inputs(32, 64)
    lse[0] = -math.inf
    got = compiled((q, k, v, torch.where(lse[..., None] == -math.inf, 0.0, prefix), lse), 3, 40)
    assert torch.allclose(got, composed((q, k, v, prefix, lse), 3, 40), rtol=1e-5, atol=1e-6)


def test_far_scores_neither_overflow_nor_vanish() -> None:
    q, k, v, prefix, lse = inputs(64, 64)
    given = (q * 30, k, v, prefix, lse + 50)
    truth = composed(tuple(x.double() for x in given), 1, 60)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(compiled(given, 1, 60).double(), truth, rtol=1e-4, atol=1e-5)


def test_threads_do_not_change_a_bit() -> None:
    """Enough work that it is shared out."""
    given = inputs(64, 256, num_queries=4, items=64)
    assert torch.equal(compiled(given, 1, 256, threads=1), compiled(given, 1, 256, threads=3))


@pytest.mark.parametrize(
    ("first", "last", "width", "message"),
    [(2, 1, 8, "slots"), (-1, 3, 8, "slots"), (0, 9, 8, "slots"), (0, 3, 7, "keys")],
)
def test_arrays_that_do_not_fit_are_refused(first: int, last: int, width: int, message: str) -> None:
    q, k, v, prefix, lse = (x.numpy() for x in inputs(8, 8))
    with pytest.raises(ValueError, match=message):
        _C.own_attention(
            q[..., :width], k, v, prefix, lse, np.empty_like(prefix),
            first=first, last=last, scale=1.0, threads=1,
        )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3-windowed", "mistral", "llama-biased"])
def test_an_engine_samples_as_with_the_composed_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of functional and hooked decoders, with windows that hide keys and without."""
    calls = 0
    by_cpp, made = Cache._by_cpp, Cache.__init__

    def counted(self: Cache, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return by_cpp(self, *arguments)

    def composing(self: Cache, *arguments: Any, **keywords: Any) -> None:
        made(self, *arguments, **keywords)
        self._compiled = False

    model, some = plain_model(family).float(), requests(6)
    monkeypatch.setattr(Cache, "_by_cpp", counted)
    first = engine_of(model).generate(some, Sampling())
    sampled = calls
    monkeypatch.setattr(Cache, "__init__", composing)
    second = engine_of(model).generate(some, Sampling())
    assert calls == sampled > 8
    assert tokens(first) == tokens(second)
    for one, other in zip(first, second, strict=True):
        assert np.abs(one.logp - other.logp).max() < 1e-4
