"""Drawing one token per row: truncation as in transformers, inverse CDF, one stream of uniforms per row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from g2rpo_fast.rollout import RolloutConfig
from g2rpo_fast.rollout.local.sampling import DRAWS_BLOCK, Draws, draw, log_distribution
from g2rpo_fast.types import Sampling

CPU = torch.device("cpu")


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits_BV = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).log().repeat(5, 1)  # p = 1/6, 2/6, 3/6
    uniform_B1 = torch.tensor([[0.0], [0.16], [0.17], [0.49], [0.51]], dtype=torch.float64)
    token_B1, logp_B1 = draw(logits_BV, uniform_B1, Sampling())
    assert token_B1[:, 0].tolist() == [0, 0, 1, 1, 2]
    expected = [math.log(p / 6) for p in (1, 1, 2, 2, 3)]
    np.testing.assert_allclose(logp_B1[:, 0].numpy(), expected, rtol=1e-14)


def test_draw_never_takes_a_token_of_probability_zero() -> None:
    logits_BV = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(2, 1)
    for dtype in (torch.float32, torch.float64):
        uniform_B1 = torch.tensor([[0.0], [1 - 2**-24]], dtype=dtype)
        token_B1, _ = draw(logits_BV.to(dtype), uniform_B1, Sampling())
        assert token_B1[:, 0].tolist() == [1, 3]


def test_greedy_takes_the_largest_and_its_logp_at_temperature_one() -> None:
    logits_BV = torch.tensor([[0.5, 2.0, -1.0]], dtype=torch.float64)
    token_B1, logp_B1 = draw(logits_BV, torch.zeros(1, 1), Sampling(temperature=0, top_k=1, top_p=0.1))
    assert token_B1.item() == 1
    assert logp_B1.item() == pytest.approx(2 - math.log(sum(map(math.exp, (0.5, 2.0, -1.0)))), abs=1e-14)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 100])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 1.0])
def test_truncation_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits_BV = 3 * torch.randn(7, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_BV[0, 3:9] = logits_BV[0].max()  # ties across the k-th place
    ids = torch.zeros(7, 1, dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, logits_BV)  # pyright: ignore[reportArgumentType]
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)  # pyright: ignore[reportArgumentType]
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)  # pyright: ignore[reportArgumentType]
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    logp_BV = log_distribution(logits_BV, sampling)
    torch.testing.assert_close(logp_BV, expected.log_softmax(-1), rtol=1e-12, atol=1e-12)
    truncated = top_p < 1 or 0 < top_k < 23
    assert bool(logp_BV.isinf().any()) == truncated


def test_draws_are_numpys_philox_keyed_by_the_seed() -> None:
    seeds = [7, 2**63 - 1, 2**100 + 5]
    draws = Draws(seeds, device=CPU, dtype=torch.float64)
    got_TB = torch.cat([draws.next().T for _ in range(2 * DRAWS_BLOCK + 9)]).numpy()
    for column, seed in zip(got_TB.T, seeds):
        stream = np.random.Generator(np.random.Philox(key=seed)).random(len(column), dtype=np.float32)
        np.testing.assert_array_equal(column, stream)
    assert got_TB[0, 0] == pytest.approx(0.16372650861740112, abs=1e-16)
    assert 0 <= got_TB.min() < got_TB.max() < 1


def test_draws_of_kept_rows_go_on_as_before() -> None:
    whole = Draws(range(6), device=CPU, dtype=torch.float32)
    thinned = Draws(range(6), device=CPU, dtype=torch.float32)
    rows = np.arange(6)
    for step in range(3 * DRAWS_BLOCK):
        if step in (0, 5, DRAWS_BLOCK, 2 * DRAWS_BLOCK + 1):
            kept = np.arange(0, len(rows), 1 + (len(rows) > 2))
            rows = rows[kept]
            thinned.keep(kept)
        torch.testing.assert_close(thinned.next(), whole.next()[torch.from_numpy(rows)], rtol=0, atol=0)
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("temperature", -0.1),
        ("group_size", 0),
        ("max_rows", 0),
    ],
)
def test_config_names_what_is_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"rollout.{field}: wanted"):
        RolloutConfig(**{field: value})
