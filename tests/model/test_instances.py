"""Forwards of single modules replaced: which, that results stay, that nothing else changes, the undoing."""

from __future__ import annotations

import copy
from functools import wraps

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaAttention

from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.instances import use_rope
from g2rpo_fast.model.liger_ops import use_liger_ops
from g2rpo_fast.model.load import checkpoint_layers, fuse_ops, load_model
from liger_cases import KINDS, hidden_and_gradients, tiny

NUM_LAYERS = 2


def replaced(model: PreTrainedModel) -> list[str]:
    return [type(module).__name__ for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_attentions_rotate_through_ours_with_the_same_bits(kind: type, checkpointing: bool) -> None:
    calls = []

    def rotate(plain, q, k, cos, sin):
        calls.append(cos.shape[-1] == q.shape[-1])
        return plain(q, k, cos, sin)

    model = tiny(kind)
    plain = hidden_and_gradients(model, torch.float32)
    ours = copy.deepcopy(model)
    assert use_rope(ours, rotate) == NUM_LAYERS
    if checkpointing:
        checkpoint_layers(ours)
    again = hidden_and_gradients(copy.deepcopy(ours), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))
    assert calls == [True] * NUM_LAYERS * (2 if checkpointing else 1)
    assert float(plain[1].abs().max()) > 1e-3


def test_what_rotates_is_the_rotation_given_and_deleted_forwards_undo_it() -> None:
    """A rotation that is not one shows, in this model only."""
    model, other = tiny(LlamaConfig), tiny(LlamaConfig)
    plain = hidden_and_gradients(model, torch.float32)
    use_rope(model, lambda plain, q, k, cos, sin: (q, k))
    assert not torch.equal(hidden_and_gradients(model, torch.float32)[0], plain[0])
    assert torch.equal(hidden_and_gradients(other, torch.float32)[0], plain[0])
    for module in model.modules():
        vars(module).pop("forward", None)
    assert all(
        torch.equal(a, b) for a, b in zip(hidden_and_gradients(model, torch.float32), plain, strict=True)
    )


def test_a_decorated_forward_and_other_families_are_left_alone() -> None:
    @wraps(LlamaAttention.forward)
    def forward(self, *args, **kwargs):
        return LlamaAttention.forward(self, *args, **kwargs)

    decorated = type("LlamaAttention", (LlamaAttention,), {"forward": forward})
    model = tiny(LlamaConfig)
    model.model.layers[0].self_attn.__class__ = decorated
    assert use_rope(model, lambda plain, *args: plain(*args)) == NUM_LAYERS - 1
    gemma = tiny(Gemma2Config)
    assert use_liger_ops(gemma) == 0
    assert replaced(gemma) == []


def test_a_decorator_that_calls_what_it_wraps_is_kept_around_it() -> None:
    """As transformers' `deprecate_kwarg`, which is around attentions from 5.24 on."""

    def counted(function):
        @wraps(function)
        def forward(*args, **kwargs):
            calls.append("decorator")
            return function(*args, **kwargs)

        return forward

    def rotate(plain, *args):
        calls.append("rotation")
        return plain(*args)

    calls: list[str] = []
    model = tiny(LlamaConfig)
    plain = hidden_and_gradients(model, torch.float32)
    decorated = type("LlamaAttention", (LlamaAttention,), {"forward": counted(LlamaAttention.forward)})
    model.model.layers[0].self_attn.__class__ = decorated
    assert use_rope(model, rotate) == NUM_LAYERS
    again = hidden_and_gradients(model, torch.float32)
    assert calls == ["decorator", "rotation", "rotation"]
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_liger_takes_over_modules_but_no_tensor_of_a_cpu(kind: type) -> None:
    """Norms, MLPs and attentions; what is no tensor for Liger is computed as before, to the bit."""
    model = tiny(kind)
    plain = hidden_and_gradients(model, torch.float32)
    ours = copy.deepcopy(model)
    assert use_liger_ops(ours) == NUM_LAYERS * (6 if kind is Qwen3Config else 4) + 1
    again = hidden_and_gradients(ours, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))
    assert list(ours.state_dict()) == list(model.state_dict())


def test_fused_ops_names_what_computes(tmp_path) -> None:
    tiny(Qwen3Config).save_pretrained(tmp_path)
    off = load_model(str(tmp_path), ModelConfig(fused_ops="off"), "cpu")
    auto = load_model(str(tmp_path), ModelConfig(), "cpu")
    assert replaced(off) == []
    assert set(replaced(auto)) == {"Qwen3RMSNorm", "Qwen3MLP"}
    assert fuse_ops(off, "auto") == NUM_LAYERS * 5 + 1
    with pytest.raises(ValueError, match=r"model.fused_ops: wanted .*auto.*off.*, got 'liger'"):
        ModelConfig(fused_ops="liger")  # pyright: ignore[reportArgumentType]
