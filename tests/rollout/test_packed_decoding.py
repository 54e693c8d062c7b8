"""Decoding of models whose weights are large enough to be packed: as exact as a plain forward in float32, and
always with the weights of the moment."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from g2rpo_kernels.packed_weight import PackedWeight, packs

from g2rpo_fast.rollout.local.decoder import FunctionalDecoder, Plain
from g2rpo_fast.rollout.local.engine import _LogitsHead
from g2rpo_fast.types import Sampling
from local_engines import engine_of, plain_model, reference_logp, requests

WIDE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 544, "num_attention_heads": 8, "num_key_value_heads": 4,
    "initializer_range": 0.05,
}  # fmt: skip
VOCABULARY = 521
SAMPLING = Sampling(temperature=1.0)

pytestmark = pytest.mark.skipif(
    not packs(torch.float32), reason="this PyTorch packs no weights on this processor"
)


def wide(name: str) -> Any:
    width = {} if name == "qwen2" else {"head_dim": 64}
    return plain_model(name, vocabulary=VOCABULARY, dtype=torch.float32, **WIDE, **width)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama"])
def test_log_probabilities_are_as_near_to_float64_as_those_of_a_plain_forward(name: str) -> None:
    plain = wide(name)
    engine = engine_of(plain)
    decoder = engine._decoder(requests())
    assert isinstance(decoder, FunctionalDecoder)
    for product in (decoder._layers[0].qkv, decoder._layers[1].gate_up, decoder._layers[1].down):
        assert isinstance(product, PackedWeight)
    assert isinstance(_LogitsHead(engine._head, torch.float32)._product, PackedWeight)
    asked = requests()
    answers = engine.generate(asked, SAMPLING)
    exact = copy.deepcopy(plain).double()
    allowed = errors = 0.0
    for request, answer in zip(asked, answers, strict=True):
        truth, eager = (reference_logp(model, request, answer, SAMPLING) for model in (exact, plain))
        errors = max(errors, float(np.abs(answer.logp - truth).max()))
        allowed = max(allowed, float(np.abs(eager - truth).max()))
    assert 0 < errors <= 2 * allowed + 8 * np.finfo(np.float32).eps


def test_weights_that_change_are_those_of_the_next_rollout() -> None:
    plain = wide("llama")
    engine = engine_of(plain)
    (before,) = engine.generate(requests()[:1], Sampling(temperature=0))
    with torch.no_grad():
        for parameter in engine._model.parameters():
            parameter.mul_(-1.5)
    (after,) = engine.generate(requests()[:1], Sampling(temperature=0))
    assert before.token_ids != after.token_ids
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(-1.5)
    wanted = reference_logp(changed, requests()[0], after, Sampling(temperature=1.0))
    np.testing.assert_allclose(after.logp, wanted, rtol=0, atol=1e-3)


def test_small_models_keep_plain_products() -> None:
    decoder = engine_of(plain_model("qwen3", dtype=torch.float32))._decoder(requests())
    assert isinstance(decoder, FunctionalDecoder)
    layer = decoder._layers[0]
    assert all(isinstance(p, Plain) for p in (layer.qkv, layer.out, layer.gate_up, layer.down))
