"""Adapters: what they compute, what is trained of them, and the same as weights of a plain model.

Models are float64 throughout, their norms too.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM

from causal_types import tiny_model
from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters, without_adapters
from g2rpo_fast.adapters.forward import use_own_forwards
from g2rpo_fast.adapters.merged import adapter_layers, has_adapters, whole, whole_parameters
from g2rpo_fast.adapters.stored import load_adapters, read_causal_lm, save_adapters
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.model.products import rounded_weights
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import Request, Rollout, Sampling
from local_engines import engine_of
from objectives import Loss
from products import Work
from updates import TEMPERATURE, advantages, base_model, batches, model64, rollouts, textbook_loss

Kind = Literal["lora", "dora"]
KINDS: tuple[Kind, ...] = ("lora", "dora")
RANK, ALPHA = 4, 6.0
TOKENS = Loss(aggregation="token_mean")


def adapted(model: Any, kind: Kind, *, spread: float = 0.1, **settings: Any) -> Any:
    """A model with adapters that are not zero."""
    add_adapters(model, AdapterConfig(kind=kind, rank=RANK, alpha=ALPHA, **settings), base="base", seed=1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(spread * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def peft_s_own(model: Any) -> Any:
    """With PEFT's own forwards."""
    for layer in adapter_layers(model).values():
        del layer.forward
    return model


def float32_advantages() -> np.ndarray:
    """As batches keep them."""
    return advantages().astype(np.float32).astype(np.float64)


def exact_batches(made: list[Rollout], advantage: np.ndarray, objective: Loss) -> list[TrainBatch]:
    """Batches keep numbers of tokens in float32; here they are float64, as in the textbook."""
    (batch,) = batches(made, advantage, objective)
    trained_N = batch.weight_N > 0
    weight_N = trained_N / trained_N.sum()
    return [replace(batch, weight_N=weight_N, advantage_N=batch.advantage_N.astype(np.float64))]


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 33).reshape(2, 15)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_new_adapters_change_nothing_and_follow_their_seed_alone() -> None:
    plain = model64()
    torch.manual_seed(11)
    drawn = torch.rand(3)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(11)
        model = model64()
        add_adapters(model, AdapterConfig(kind="lora"), base="base", seed=seed)
        assert torch.equal(torch.rand(3), drawn)
        assert torch.equal(logits(model), logits(plain))
        states.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    assert len(states[0]) == 2 * 7 * plain.config.num_hidden_layers
    assert all(".lora_" in name for name in states[0])
    assert all(torch.equal(p, states[1][name]) for name, p in states[0].items())
    assert any(not torch.equal(p, states[2][name]) for name, p in states[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_whole_model_compute_what_adapters_do(kind: Kind) -> None:
    plain, model = model64(), adapted(model64(), kind)
    wanted, before = logits(model), logits(plain)
    named = dict(whole_parameters(model))
    assert list(named) == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(dict(whole(model, model.state_dict().items())))
    assert float((wanted - before).abs().max()) > 0.1
    torch.testing.assert_close(logits(plain), wanted, rtol=0, atol=1e-12)
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forwards_are_peft_s_values_and_gradients(kind: Kind, bias: bool) -> None:
    """Biases are not scaled with the rows; an input of three dimensions is one of rows."""
    base, found = nn.Sequential(nn.Linear(7, 11, bias=bias)).double(), []
    asked = LoraConfig(r=3, lora_alpha=5, target_modules=["0"], use_dora=kind == "dora")
    layers = inject_adapter_in_model(asked, base, adapter_name="default")
    wave = torch.arange(2 * 5 * 7, dtype=torch.float64).sin().view(2, 5, 7)
    for own in (False, True):
        torch.manual_seed(0)
        for p in layers.parameters():
            p.data.copy_(torch.randn_like(p))
            p.grad = None
        if own:
            assert use_own_forwards(layers) == 1
        x = wave.clone().requires_grad_()
        y = layers(x)
        (y * y.detach().cos()).sum().backward()
        trained = [p.grad for p in layers.parameters() if p.requires_grad]
        assert len(trained) == (2 if kind == "lora" else 3)
        found.append([y, x.grad, *trained])
    for got, wanted in zip(*((x.detach() for x in one) for one in found[::-1]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_adapters_it_is_the_base_and_then_itself_again(kind: Kind) -> None:
    model = adapted(model64(), kind)
    trained = [p.requires_grad for p in model.parameters()]
    wanted = logits(model)
    with without_adapters(model):
        assert torch.equal(logits(model), logits(model64()))
    assert torch.equal(logits(model), wanted)
    assert [p.requires_grad for p in model.parameters()] == trained


def learner(model: Any, objective: Loss, *, budget: int = 64, checkpointing: bool = False) -> Learner:
    select_tree_attention(model)
    if checkpointing:
        from g2rpo_fast.model.load import checkpoint_layers

        checkpoint_layers(model)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        reference=model if objective.kl_coef else None,
        objective=objective.config,
        optim=OptimConfig(max_grad_norm=1e9),
        tree=TreeConfig(token_budget=budget),
        compute=ModelConfig(),
        temperature=TEMPERATURE,
        terms=objective.terms,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_update_on_trees_is_that_of_peft_on_padded_rows(kind: Kind, checkpointing: bool) -> None:
    """The textbook: PEFT's own model, plain transformers, the base as a second model for the KL term."""
    objective, made, advantage = (
        Loss(kl_coef=0.1, entropy_coef=0.02, aggregation="token_mean"),
        rollouts(),
        float32_advantages(),
    )
    ours = adapted(model64(), kind)
    textbook = peft_s_own(copy.deepcopy(ours))
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    wanted_loss = textbook_loss(textbook, made, advantage, None, model64(), objective)

    wanted_loss.backward()

    given = learner(ours, objective, checkpointing=checkpointing)
    metrics = given.update(exact_batches(made, advantage, objective), lr=1.0)
    assert metrics["update/micro_batches"] > 1
    assert metrics["loss"] == pytest.approx(float(wanted_loss.detach()), rel=1e-12)
    for name, p in textbook.named_parameters():
        got = dict(ours.named_parameters())[name]
        assert got.requires_grad == p.requires_grad == (".lora_" in name)
        if p.grad is None:
            assert torch.equal(got, start[name]), name
            continue
        largest = float(p.grad.abs().max())
        assert largest > 1e-6, name
        torch.testing.assert_close(start[name] - got, p.grad, rtol=0, atol=1e-9 * largest)


def test_gradient_of_lora_is_that_of_full_training_through_its_matrices() -> None:
    """dB = s dW A^T and dA = s B^T dW, from the full gradient of the merged weights."""
    objective, made, advantage = TOKENS, rollouts(), float32_advantages()
    model, plain = adapted(model64(), "lora"), model64()
    plain.load_state_dict(dict(whole(model, model.state_dict().items())))
    loss = textbook_loss(plain, made, advantage, None, None, objective)
    loss.backward()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner(model, objective).update(exact_batches(made, advantage, objective), lr=1.0)
    scale, name = ALPHA / RANK, "model.layers.1.mlp.down_proj"
    d_weight = plain.get_parameter(f"{name}.weight").grad
    a, b = (start[f"{name}.lora_{letter}.default.weight"] for letter in "AB")
    for letter, wanted in (("A", scale * b.T @ d_weight), ("B", scale * d_weight @ a.T)):
        key = f"{name}.lora_{letter}.default.weight"
        got = start[key] - model.get_parameter(key)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_local_engine_samples_from_merged_weights(kind: Kind) -> None:
    model, plain = adapted(base_model(), kind), base_model()
    plain.load_state_dict(dict(whole(model, model.state_dict().items())))
    requests = [Request(prompt_ids=tuple(range(3, 3 + n)), max_tokens=12, seed=n) for n in (4, 4, 7)]
    answers = []
    for one in (model, plain, adapted(base_model(), kind, spread=0.0)):
        engine = engine_of(one)
        assert engine.decoder_name == "functional"
        answers.append(engine.generate(requests, Sampling(temperature=1.0)))
    for got, wanted in zip(answers[0], answers[1], strict=True):
        assert got.token_ids == wanted.token_ids
        np.testing.assert_allclose(got.logp, wanted.logp, rtol=0, atol=1e-5)
    assert any(got.token_ids != other.token_ids for got, other in zip(answers[0], answers[2], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_stored_adapters_are_peft_s_own_format(kind: Kind, tmp_path: Path) -> None:
    base, stored = tmp_path / "base", tmp_path / "stored"
    base_model().save_pretrained(base)
    stored.mkdir()
    model = base_model()
    add_adapters(model, AdapterConfig(kind=kind, rank=RANK), base=str(base), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    save_adapters(stored, model)
    wanted = logits(model)

    again = base_model()
    add_adapters(again, AdapterConfig(kind=kind, rank=RANK), base=str(base), seed=2)
    load_adapters(stored, again)
    assert torch.equal(logits(again), wanted)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), stored)
    torch.testing.assert_close(logits(by_peft), wanted, rtol=0, atol=1e-5)
    if kind == "lora":  # of DoRA, transformers' own loader does not find the norms in PEFT's files
        found = logits(AutoModelForCausalLM.from_pretrained(stored))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    merged = read_causal_lm(str(stored), torch.float32)
    assert not has_adapters(merged)
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-5)


def test_adapters_that_peft_made_elsewhere_are_read(tmp_path: Path) -> None:
    base, stored = tmp_path / "base", tmp_path / "stored"
    base_model().save_pretrained(base)
    asked = LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False, use_rslora=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), asked)
    model.save_pretrained(str(stored))
    merged = read_causal_lm(str(stored), torch.float32)
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)


def test_other_adapters_than_the_model_s_are_refused(tmp_path: Path) -> None:
    model, other = adapted(base_model(), "lora"), adapted(base_model(), "lora", targets=("q_proj",))
    save_adapters(tmp_path, other)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: wanted the model's adapters, got"):
        load_adapters(tmp_path, model)
    save_adapters(tmp_path, model)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: wanted the model's adapters, got"):
        load_adapters(tmp_path, other)


def test_targets_that_no_module_has_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"adapter\.targets: wanted nonsense in a qwen3, got: ") as caught:
        adapted(base_model(), "lora", targets=("nonsense",))
    assert "\n" not in str(caught.value)
    model = adapted(base_model(), "lora", targets=("q_proj", "v_proj"))
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad
    }
    assert names == {"q_proj", "v_proj"}


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_are_autocasts_to_the_bit(kind: Kind) -> None:
    """Frozen weights are rounded once, with those of the adapters, and get no gradient."""
    model = adapted(base_model(), kind)
    select_tree_attention(model)
    (plan,) = plan_trees(exact_batches(rollouts(), advantages(), TOKENS)[0].sequences, whole=True)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with rounded_weights(model, dtype), torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                hidden_SD = tree_hidden(model, plan).hidden_SD
                hidden_SD.mul(torch.arange(hidden_SD.numel()).view(hidden_SD.shape).sin()).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) == (2 if kind == "lora" else 3) * 14
    assert all(".lora_" in name for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, wanted in found[0].items():
        assert bool(wanted.any()), name
        assert torch.equal(found[1][name], wanted), name


def test_a_frozen_head_costs_two_products() -> None:
    """Logits and d hidden of each trained edge; d head is left out."""
    counted = []
    for model in (adapted(base_model(), "lora"), base_model()):
        given = learner(model, TOKENS, budget=8192)
        with Work(dimension=model.config.vocab_size) as work:
            given.update(batches(rollouts(), advantages(), TOKENS), lr=0.0)
        counted.append(work.products)
    assert counted[0] * 3 == counted[1] * 2 > 0


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "phimoe", "granitemoe"])
def test_mixtures_have_adapters_on_their_linear_maps_alone(family: str) -> None:
    """PEFT would adapt the stacks of experts and the routers of some, which then no export has."""
    model = tiny_model(family)
    plain = dict(model.named_parameters())
    adapted(model, "lora")
    assert {name for name, _ in whole_parameters(model)} == plain.keys()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("q_proj" in name for name in trained)
    assert not any(".experts." in name or ".gate." in name or "router" in name for name in trained)


def test_experts_are_no_targets() -> None:
    with pytest.raises(ValueError, match=r"adapter\.targets: wanted linear maps of a mixtral, got .*experts"):
        adapted(tiny_model("mixtral"), "lora", targets=("w1", "w2", "w3"))
