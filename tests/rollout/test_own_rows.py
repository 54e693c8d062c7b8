"""Models that follow no tree, sampled by their own forward, in float64.

Each token's log-probability is that of a plain forward over the whole sequence, whatever else is in the batch
and whenever rows leave it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from causal_types import CAUSAL_TYPES, VOCAB, plain_logp, tiny_model
from g2rpo_fast.backbone import backbone_of
from g2rpo_fast.model.head import head_of
from g2rpo_fast.rollout.local import LocalEngine
from g2rpo_fast.rollout.local.own_rows import CachedRows, RecomputedRows, kind_of_rows
from g2rpo_fast.types import Request, Sampling

FAMILIES = {
    "bamba": "cached",
    "bloom": "cached",
    "falcon": "cached",
    "falcon_h1": "cached",
    "gpt_oss": "cached",
    "granitemoehybrid": "cached",
    "lfm2": "cached",
    "llama4_text": "cached",
    "mamba": "cached",
    "recurrent_gemma": "recomputing",  # its state is a buffer of its modules
}
SLOW = {"mamba2": 2e-6, "nemotron_h": 1e-4, "qwen3_5_text": 2e-6, "qwen3_next": 2e-6}
"""And how far off in nats. Nemotron-H bounds its time steps from below in a sequence, not in a step of its
cache, as transformers and mamba_ssm have it: 1e-5 of a hidden state, and 1e-7 without the bound."""


def double(family: str) -> Any:
    model = tiny_model(family).double()
    model.set_experts_implementation("eager")  # the others have no float64
    return model


def engine_of(model: Any, max_rows: int = 512) -> LocalEngine:
    return LocalEngine(model, prefill=None, head=head_of(model), decode=str, max_rows=max_rows)


def requests() -> list[Request]:
    """Two prompts of one length and one of another; rows of many lengths, so that they leave one by one."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, VOCAB, length).tolist()) for length in (7, 7, 4)]
    return [
        Request(prompt_ids=prompts[i % 3], max_tokens=1 + 2 * (i % 7), seed=i, guidance_len=0)
        for i in range(11)
    ]


def check_sampling(family: str, tolerance: float) -> None:
    model = double(family)
    engine = engine_of(model)
    assert engine.decoder_name == FAMILIES.get(family, "cached")
    asked = requests()
    drawn = engine.generate(asked, Sampling(temperature=1.0))
    assert [len(completion.token_ids) for completion in drawn] == [request.max_tokens for request in asked]
    for request, completion in zip(asked, drawn, strict=True):
        wanted = plain_logp(model, request.prompt_ids, completion.token_ids)
        assert np.abs(completion.logp - wanted).max() < tolerance
    few = engine_of(model, max_rows=2).generate(asked, Sampling(temperature=1.0))
    assert [completion.token_ids for completion in few] == [completion.token_ids for completion in drawn]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in CAUSAL_TYPES])
def test_sampled_tokens_have_the_plain_models_log_probabilities(family: str) -> None:
    check_sampling(family, 2e-6)


@pytest.mark.deep
@pytest.mark.parametrize("family", [name for name in SLOW if name in CAUSAL_TYPES])
def test_sampled_tokens_of_slow_families_have_the_plain_models_log_probabilities(family: str) -> None:
    check_sampling(family, SLOW[family])


def test_stop_tokens_end_rows() -> None:
    model = tiny_model("bloom")
    stopping = Sampling(temperature=1.0, stop_token_ids=tuple(range(3, 20)))
    asked = [replace(request, max_tokens=30) for request in requests()]
    for completion in engine_of(model).generate(asked, stopping):
        ends = [token in stopping.stop_token_ids for token in completion.token_ids]
        assert ends.index(True) == len(ends) - 1
        assert completion.finish_reason == "stop"


class Forgetful(CachedRows):
    """As if a model's cache were not exact: every step begins anew."""

    def _encoded(self, token_BL: torch.Tensor) -> torch.Tensor:
        if self._cache is not None:
            self._cache.reset()
        return super()._encoded(token_BL)


def test_a_cache_that_is_not_exact_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if "lfm2" not in CAUSAL_TYPES:
        pytest.skip("this transformers has no lfm2")
    backbone = backbone_of(tiny_model("lfm2"))
    assert kind_of_rows(backbone, VOCAB) is CachedRows
    monkeypatch.setattr("g2rpo_fast.rollout.local.own_rows.CachedRows", Forgetful)
    assert kind_of_rows(backbone, VOCAB) is RecomputedRows
