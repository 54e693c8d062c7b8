"""LoRA as tensors beside a base: together they are the merged weights; adapters on trial leave no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.adapters.base import dense_weight
from g2rpo_fast.adapters.beside import TRIAL, adapted_names, lora_config, lora_tensors, trial_adapters
from g2rpo_fast.adapters.merged import adapter_layers, base_parameters, merged_weight, whole_parameters
from updates import base_model

TARGETS = ("q_proj", "down_proj")


def adapted(base: Any, *, spread: float) -> Any:
    model = base_model()
    add_adapters(
        model,
        AdapterConfig(kind="lora", rank=3, alpha=7.0, base=base, targets=TARGETS),
        base="base",
        seed=1,
        compute_dtype=torch.bfloat16 if base == "bfloat16" else torch.float32,
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and spread:
                p.add_(spread * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
def test_base_and_adapters_are_the_merged_weights(base: str) -> None:
    model = adapted(base, spread=0.1)
    whole, plain = dict(whole_parameters(model)), dict(base_parameters(model))
    assert whole.keys() == plain.keys() == dict(base_model().named_parameters()).keys()
    tensors = lora_tensors(model, torch.float64)
    config = lora_config(model)
    assert (config["r"], config["lora_alpha"] / config["r"]) == (3, 1)
    assert config["target_modules"] == adapted_names(model) == sorted(TARGETS)
    layers = adapter_layers(model)
    assert len(tensors) == 2 * len(layers)
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        if module in layers:
            a_RI, b_OR = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
            torch.testing.assert_close(tensor.double() + b_OR @ a_RI, whole[name].double(), rtol=0, atol=1e-6)
            assert not torch.equal(tensor, whole[name])
        else:
            assert torch.equal(tensor, whole[name])


def test_adapters_on_trial_change_every_adapted_weight_and_leave_no_trace() -> None:
    model = adapted("float32", spread=0.0)
    before = [p.clone() for p in model.parameters()]
    with trial_adapters(model) as trial:
        assert trial
        for layer in adapter_layers(model).values():
            weight_OI = dense_weight(layer.get_base_layer())
            change = (merged_weight(layer) - weight_OI).std() / weight_OI.std()
            assert 0.5 * TRIAL < change < 2 * TRIAL
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with pytest.raises(RuntimeError), trial_adapters(model):
        raise RuntimeError
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_adapters_that_add_something_need_no_trial() -> None:
    model = adapted("float32", spread=0.1)
    before = [p.clone() for p in model.parameters()]
    with trial_adapters(model) as trial:
        assert not trial
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
