"""Mixtures of experts on their way to vLLM, as far as no vLLM is needed: names, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.adapters.merged import whole_parameters
from g2rpo_fast.rollout.vllm.layerwise import pack_experts_again, refusal
from g2rpo_fast.rollout.vllm.names import in_checkpoint_names, renames_around_experts

RENAMED = ["mixtral", "phimoe", "granitemoe", "minimax_m2", "ernie4_5_moe"]
AS_THEY_ARE = ["qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "llama", "gpt_neox"]


class UnquantizedFusedMoEMethod:
    """As vLLM's is called."""

    def __init__(self, kernel: object) -> None:
        self.moe_kernel = kernel


class Fp8MoEMethod(UnquantizedFusedMoEMethod):
    pass


def with_experts(method: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    model[1].quant_method = method
    return model


def test_packed_experts_are_taken_or_refused_by_name() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert refusal(with_experts(UnquantizedFusedMoEMethod("kernel")), cpu) is None
    assert refusal(with_experts(Fp8MoEMethod("kernel")), cuda) is None
    for method in (Fp8MoEMethod("kernel"), UnquantizedFusedMoEMethod(None)):
        reason = refusal(with_experts(method), cpu)
        assert reason is not None
        assert reason.startswith("1: on a CPU vLLM computes from packed experts, which its reload does not")
        assert type(method).__name__ in reason
        assert reason.endswith("rollout.engine = local samples from it")


def test_only_experts_without_quantisation_lose_their_kernel() -> None:
    unquantised, quantised = UnquantizedFusedMoEMethod("kernel"), Fp8MoEMethod("kernel")
    pack_experts_again(nn.Sequential(with_experts(unquantised), with_experts(quantised)))
    assert (unquantised.moe_kernel, quantised.moe_kernel) == (None, "kernel")


@pytest.mark.parametrize("model_type", [name for name in RENAMED if name in CAUSAL_TYPES])
def test_parameters_one_by_one_are_those_of_a_checkpoint(model_type: str) -> None:
    model = tiny_model(model_type)
    assert renames_around_experts(model)
    found = dict(in_checkpoint_names(model, model.named_parameters()))
    wanted = revert_weight_conversion(model, dict(model.named_parameters()))
    assert found.keys() == wanted.keys() != dict(model.named_parameters()).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("model_type", [name for name in AS_THEY_ARE if name in CAUSAL_TYPES])
def test_other_parameters_keep_their_names(model_type: str) -> None:
    assert not renames_around_experts(tiny_model(model_type))


def test_adapters_do_not_hide_the_names() -> None:
    model = tiny_model("mixtral")
    names = set(dict(in_checkpoint_names(model, model.named_parameters())))
    add_adapters(model, AdapterConfig(kind="lora", rank=2), base="", seed=0)
    assert renames_around_experts(model)
    assert set(dict(in_checkpoint_names(model, whole_parameters(model)))) == names
