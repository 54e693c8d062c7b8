"""The loss that balances experts, added by an update, against transformers' own of the unshared, padded rows.

In float64 throughout; gradients are what SGD steps of rate 1 move.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from causal_types import CAUSAL_TYPES
from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.backbone import backbone_of
from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.objective.terms import Kl
from g2rpo_fast.pieces import Scored, Term, Ties, Tokens
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Rollout
from scored import CLOCK, rewards_of
from textbook_updates import model_of, moved, sgd_learner, textbook_gradients
from true_double import TrueDouble
from updates import PLAIN, advantages, batches, rollouts

COEFFICIENT = 0.7
BOUND = 1e-7
"""Of the largest gradient: advantages are float32."""
SHARED = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "jetmoe"]
UNSHARED = ["gpt_oss", "granitemoe_swa"]
FAMILIES = [(name, name in SHARED) for name in (*SHARED, *UNSHARED) if name in CAUSAL_TYPES]
MICRO = 60
"""Positions of a micro-batch, where there are several."""


@dataclass(frozen=True, kw_only=True)
class Likely(Term):
    """Of one's own: minus the log-probability, squared over the batch or token by token."""

    use = "likely"
    whole: bool = False

    @property
    def ties(self) -> Ties:
        return "batch" if self.whole else "token"

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        part_N = tokens.weight_N * tokens.advantage_N * logp_N
        return part_N.sum().square() if self.whole else -part_N.sum()


class DoubleZeros(TorchDispatchMode):
    """transformers counts choices in tensors that it makes in float32, whatever the model's dtype is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.zeros.default and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def model_with(family: str, *, asks: bool = True) -> Any:
    """Its routers prefer some experts; otherwise the loss is the same for all weights."""
    name = "aux_loss_coef" if family == "jetmoe" else "router_aux_loss_coef"
    model = model_of(family, output_router_logits=asks, **{name: COEFFICIENT})
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if ".gate." in path or "router" in path:
                parameter.mul_(4)
    return model


def aux_loss(model: Any, made: list[Rollout]) -> Tensor:
    """transformers' own, of rows without their last tokens, which nothing is predicted from."""
    rows = [(*row.training_prompt_ids, *row.response_ids)[:-1] for row in made]
    ids, mask = torch.zeros(2, len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    double = DoubleZeros() if model.dtype == torch.float64 else nullcontext()
    with double:
        return model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss


def micro_batches(ours: Learner) -> list[list[Rollout]]:
    """The rows of each."""
    (batch,), made = batches(rollouts(), advantages(), PLAIN), rollouts()
    budget, min_saved = ours.tree.token_budget, ours.tree.min_saved
    plans = plan_trees(batch.sequences, token_budget=budget, min_saved=min_saved)
    return [[made[row] for row in batch.rollout_R[plan.row_B]] for plan in plans]


def share(made: list[Rollout]) -> float:
    tokens = [sum(len(row.training_prompt_ids) + len(row.response_ids) - 1 for row in rows)
              for rows in (made, rollouts())]  # fmt: skip
    return tokens[0] / tokens[1]


def wanted_of(start: Any, ours: Learner) -> tuple[float, dict[str, Tensor]]:
    """The mean over the rows of a micro-batch, and its gradient."""
    model, value = copy.deepcopy(start), 0.0
    for made in micro_batches(ours):
        part = share(made) * aux_loss(model, made)
        part.backward()
        value += float(part.detach())
    return value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def updated(ours: Learner) -> dict[str, float]:
    made, given = rollouts(), batches(rollouts(), advantages(), PLAIN)
    scored = Scored(rollouts=tuple(made), rewards=rewards_of(np.ones((len(made), 1))), clock=CLOCK)
    return ours.update(given, lr=1.0, scored=scored)


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert largest > 1e-3
    for name, grad in wanted.items():
        assert float((got[name] - grad).abs().max()) < BOUND * largest, name


@pytest.mark.parametrize(
    ("family", "shares", "checkpointing"),
    [(*each, on) for each in FAMILIES for on in (False, True) if each[0] != "jetmoe" or not on],
)  # transformers cannot checkpoint JetMoe
def test_update_adds_the_loss_of_unshared_rows(family: str, shares: bool, checkpointing: bool) -> None:
    start = model_with(family)
    compute = ModelConfig(gradient_checkpointing=checkpointing)
    with TrueDouble():
        plain = copy.deepcopy(start)
        plain.config.output_router_logits = False
        of_policy = textbook_gradients(plain)
        for budget in (8192, MICRO) if not checkpointing else (8192,):
            ours = sgd_learner(copy.deepcopy(start), budget, compute, shares=shares)
            stats = updated(ours)
            value, of_experts = wanted_of(start, ours)
            assert (stats["update/micro_batches"] > 1) == (budget == MICRO)
            assert stats["update/router_aux"] == pytest.approx(value, rel=1e-9)
            routers = [grad for name, grad in of_experts.items() if ".gate." in name or "router" in name]
            assert max(float(grad.abs().max()) for grad in routers) > 1e-3
            both = {
                name: grad + COEFFICIENT * of_experts.get(name, torch.zeros_like(grad))
                for name, grad in of_policy.items()
            }
            assert_close(moved(ours.model, start), both)


@pytest.mark.parametrize(
    "terms", [PLAIN.terms, (Likely(),), (Likely(whole=True),)], ids=["fused", "own", "tied"]
)
def test_every_kind_of_loss_adds_it(terms: tuple[Term, ...]) -> None:
    start, found = model_with("mixtral"), []
    with TrueDouble():
        for router_aux in (0.0, None):
            compute = ModelConfig(router_aux=router_aux)
            ours = replace(sgd_learner(copy.deepcopy(start), MICRO, compute, shares=True), terms=terms)
            found.append((updated(ours), moved(ours.model, start)))
        value, of_experts = wanted_of(start, ours)
    (without, apart), (stats, both) = found
    assert "update/router_aux" not in without
    assert stats["update/router_aux"] == pytest.approx(value, rel=1e-9)
    assert stats["loss"] == pytest.approx(without["loss"] + COEFFICIENT * value, rel=1e-9)
    assert stats["update/micro_batches"] > 1
    assert_close(
        {name: grad - apart[name] for name, grad in both.items()},
        {name: COEFFICIENT * grad for name, grad in of_experts.items()},
    )


def test_adapters_get_its_gradient() -> None:
    start = model_with("qwen3_moe").float()
    add_adapters(start, AdapterConfig(kind="lora", rank=2), base="", seed=0)
    start.double()
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    found = []
    with TrueDouble():
        for router_aux in (0.0, None):
            compute = ModelConfig(router_aux=router_aux)
            ours = sgd_learner(copy.deepcopy(start), 8192, compute, shares=True)
            updated(ours)
            found.append(moved(ours.model, start))
        _, of_experts = wanted_of(start, ours)
    assert of_experts
    assert all("lora_" in name for name in of_experts)
    assert_close(
        {name: found[1][name] - found[0][name] for name in of_experts},
        {name: COEFFICIENT * grad for name, grad in of_experts.items()},
    )


def test_a_factor_of_the_run_stands_before_that_of_the_model() -> None:
    start, found = model_with("olmoe", asks=False), []
    with TrueDouble():
        for router_aux in (None, 0.2):
            ours = sgd_learner(copy.deepcopy(start), 8192, ModelConfig(router_aux=router_aux), shares=True)
            found.append((updated(ours), moved(ours.model, start)))
        value, of_experts = wanted_of(start, ours)
    (without, apart), (stats, both) = found
    assert "update/router_aux" not in without
    assert stats["update/router_aux"] == pytest.approx(value, rel=1e-9)
    assert_close(
        {name: grad - apart[name] for name, grad in both.items()},
        {name: 0.2 * grad for name, grad in of_experts.items()},
    )


def test_only_the_pass_with_a_gradient_collects_what_routers_say() -> None:
    start, asked = model_with("mixtral"), []
    ours = sgd_learner(copy.deepcopy(start), 8192, shares=True)
    reference = sgd_learner(copy.deepcopy(start), 8192, shares=True).model.requires_grad_(False)
    learner = replace(ours, terms=(*PLAIN.terms, Kl(coef=0.1), Likely(whole=True)), reference=reference)

    def note(who: str) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            asked.append((who, kwargs["output_router_logits"], torch.is_grad_enabled()))

        return hook

    for who, model in (("policy", learner.model), ("reference", reference)):
        backbone_of(model).register_forward_pre_hook(note(who), with_kwargs=True)
    learner = replace(learner, tree=replace(learner.tree, token_budget=MICRO))
    updated(learner)
    assert set(asked) == {("reference", False, False), ("policy", False, False), ("policy", True, True)}


def test_bfloat16_compute_adds_it_in_float32() -> None:
    start = model_with("mixtral").float()
    ours = sgd_learner(copy.deepcopy(start), 8192, ModelConfig(precision="bfloat16"), shares=True)
    stats = updated(ours)
    value, _ = wanted_of(start, ours)
    assert stats["update/router_aux"] == pytest.approx(value, rel=0.02)
