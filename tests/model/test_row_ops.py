"""RMSNorm and gated SiLU in one sweep: float64 error budget, thread independence, what they take over."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from budget import assert_within_budget, budget, draws, error
from g2rpo_fast.model.row_ops import rms_norm, swiglu, use_row_ops
from liger_cases import gated

EPS = 1e-6
SHAPE: dict[str, Any] = {
    "vocab_size": 31, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip


def eager_norm(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def our_norm(x: Tensor, w: Tensor) -> Tensor:
    return rms_norm(x, w, EPS)


def value_and_gradients(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def check(ours, eager, inputs: list[Tensor], upstream: Tensor) -> None:
    truth = value_and_gradients(eager, [x.double() for x in inputs], upstream)
    eagers = draws(lambda: value_and_gradients(eager, inputs, upstream))
    assert_within_budget(value_and_gradients(ours, inputs, upstream), eagers, truth)


@pytest.mark.parametrize("width", [1, 7, 16, 33, 128, 384])
@pytest.mark.parametrize("rows", [0, 1, 257])
def test_rms_norm_within_the_budget(rows, width):
    torch.manual_seed(rows * 1000 + width)
    x = torch.randn(rows, width) * torch.logspace(-3, 3, rows)[:, None]
    check(our_norm, eager_norm, [x, torch.randn(width)], torch.randn(rows, width))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 8193, 40_001])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_swiglu_within_the_budget(size, scale):
    """Eager's error is taken over the whole sample: on sixteen numbers it can be luckily small."""
    torch.manual_seed(size)
    whole = [scale * torch.randn(40_001), torch.randn(40_001)]
    upstream = torch.randn(40_001)
    truth = value_and_gradients(gated, [x.double() for x in whole], upstream)
    eagers = draws(lambda: value_and_gradients(gated, whole, upstream))
    got = value_and_gradients(swiglu, [x[:size] for x in whole], upstream[:size])
    for g, same, t in zip(got, zip(*eagers, strict=True), truth, strict=True):
        allowed = budget(same, t, torch.float32)
        assert g.shape == (size,)
        assert size == 0 or error(g, t[:size]) <= allowed
        assert allowed < 3e-6 * float(t.abs().max())


def test_swiglu_at_the_ends_of_the_exponential():
    gate = torch.tensor([-1e4, -100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 100.0, 1e4])
    check(swiglu, gated, [gate, torch.ones(9)], torch.ones(9))
    assert swiglu(gate, torch.ones(9)).tolist()[4:6] == [0.0, 20.0]


def test_row_ops_give_the_same_bits_with_any_number_of_threads():
    torch.manual_seed(0)
    cases = [
        (our_norm, [torch.randn(1999, 48), torch.randn(48)], torch.randn(1999, 48)),
        (swiglu, [torch.randn(1999, 48), torch.randn(1999, 48)], torch.randn(1999, 48)),
    ]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([value_and_gradients(*case) for case in cases])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_row_ops_take_strided_inputs():
    x, w = torch.randn(5, 12, 8).transpose(0, 1), torch.randn(8)
    assert torch.allclose(our_norm(x, w), eager_norm(x, w), rtol=1e-5, atol=1e-6)


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).float()


def loss_and_gradients(model) -> list[Tensor]:
    ids = torch.arange(22).reshape(2, 11) % 31
    model.zero_grad()
    logits = model(input_ids=ids).logits
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_models_compute_the_same_through_row_ops(kind):
    model = model_of(kind(**SHAPE))
    plain = loss_and_gradients(model)
    fast = copy.deepcopy(model)
    per_layer = 5 if kind is Qwen3Config else 3
    assert use_row_ops(fast) == 2 * per_layer + 1
    for a, b in zip(loss_and_gradients(copy.deepcopy(fast)), plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert list(fast.state_dict()) == list(model.state_dict())


def test_other_dtypes_and_other_norms_keep_their_own_forward():
    model = model_of(Qwen3Config(**SHAPE)).double()
    plain = loss_and_gradients(model)
    use_row_ops(model)
    assert all(torch.equal(a, b) for a, b in zip(loss_and_gradients(model), plain, strict=True))
    assert use_row_ops(model_of(Gemma2Config(**SHAPE))) == 0
