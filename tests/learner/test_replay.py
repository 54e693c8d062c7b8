"""Updates that go through recorded experts, against plain transformers whose routers are told to choose them.

In float64; gradients are what an SGD step of rate 1 moves.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from causal_types import CAUSAL_TYPES, tiny_model
from g2rpo_fast.learner.policy import Stream
from g2rpo_fast.learner.routes import forced_of, routes_of
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.load import select_attention
from g2rpo_fast.model.probe import small_tree
from g2rpo_fast.model.replay import Forced, replay_of
from g2rpo_fast.model.routing import stacks_of
from g2rpo_fast.objective.terms import Clip
from g2rpo_fast.pieces import Scored
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Rollout
from scored import CLOCK, rewards_of
from textbook_updates import model_of, moved, sgd_learner
from true_double import TrueDouble
from updates import PLAIN, advantages, batches, rollouts, textbook_loss

KNOWN = [
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "granitemoe", "ernie4_5_moe", "glm4_moe",
    "deepseek_v3", "minimax_m2",
]  # fmt: skip
NORMALISED = {"mixtral": True, "qwen2_moe": False}
"""Whether the weights of a token's experts sum to 1."""
EXPERTS = 4
LAYERS = 4


def expert_LK(path: tuple[int, ...]) -> np.ndarray:
    """Of each layer two, which the tokens so far decide: rows that share them share their experts."""
    rng = np.random.default_rng([7, *path])
    return np.stack([rng.permutation(EXPERTS)[:2] for _ in range(LAYERS)]).astype(np.int16)


def paths_of(row: Rollout) -> list[tuple[int, ...]]:
    """What has been read where each token but the first is predicted."""
    ids = row.training_prompt_ids + row.response_ids
    return [ids[:end] for end in range(1, len(ids))]


def recorded() -> list[Rollout]:
    """As an engine of another mind would have sampled them."""
    return [
        replace(row, experts=np.stack([expert_LK(path) for path in paths_of(row)[-row.sampled_len :]]))
        for row in rollouts()
    ]


def scored_of(made: list[Rollout]) -> Scored:
    return Scored(rollouts=tuple(made), rewards=rewards_of(np.ones((len(made), 1))), clock=CLOCK)


def updated(start: Any, made: list[Rollout], budget: int, *, replays: bool = True, **changes: Any) -> Any:
    ours = sgd_learner(copy.deepcopy(start), budget, changes.pop("compute", ModelConfig()), shares=True)
    ours = replace(ours, replay=replay_of(ours.model) if replays else None, **changes)
    stats = ours.update(batches(made, advantages(), PLAIN), lr=1.0, scored=scored_of(made))
    return ours.model, stats


def textbook_gradients(model: Any, made: list[Rollout], *, normalised: bool) -> dict[str, Tensor]:
    """Row by row: the routers of its blocks answer with the experts recorded, and weights by the book.

    What one row has a record of holds for the rows of its group that begin alike, guided past it or not.
    """
    known = {(row.group, path) for row in made for path in paths_of(row)[-row.sampled_len :]}
    current: dict[str, Any] = {}

    def told(layer: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> Any:
            logits, weight, index = output
            index, forced = index.clone(), torch.zeros_like(weight)
            for place, path in enumerate(paths_of(current["row"])):
                if (current["row"].group, path) in known:
                    index[place] = torch.from_numpy(expert_LK(path)[layer]).long()
                    forced[place] = 1
            probability = logits.softmax(-1).gather(-1, index)
            if normalised:
                probability = probability / probability.sum(-1, keepdim=True)
            return logits, torch.where(forced.bool(), probability, weight), index

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(told(number))
    for row, advantage in zip(made, advantages(), strict=True):
        current["row"] = row
        (textbook_loss(model, [row], [np.float32(advantage)], None, None, PLAIN) / len(made)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", NORMALISED)
def test_update_goes_through_the_recorded_experts(family: str, checkpointing: bool) -> None:
    start, made = model_of(family), recorded()
    with TrueDouble():
        wanted = textbook_gradients(copy.deepcopy(start), made, normalised=NORMALISED[family])
        plain, _ = updated(start, made, 8192, replays=False)
        largest = max(float(grad.abs().max()) for grad in wanted.values())
        for budget in (8192, 60):
            compute = ModelConfig(gradient_checkpointing=checkpointing)
            model, stats = updated(start, made, budget, compute=compute)
            assert stats["mismatch/routing"] > 0.3
            got = moved(model, start)
            for name, grad in wanted.items():
                assert float((got[name] - grad).abs().max()) < 1e-7 * largest, (name, budget)
        routers = [name for name in wanted if ".gate.weight" in name and "expert" not in name]
        assert all(float(wanted[name].abs().max()) > 1e-4 * largest for name in routers)
        other = moved(plain, start)
        assert max(float((other[n] - g).abs().max()) for n, g in wanted.items()) > 0.01 * largest
        assert not any(m._forward_pre_hooks for m in stacks_of(model))


def test_later_passes_have_ratios_to_the_same_experts() -> None:
    """The old policy is looked at through them too: a second pass without a step has ratios of 1."""
    start, made = model_of("mixtral"), recorded()
    ours = sgd_learner(copy.deepcopy(start), 60, shares=True)
    optim = replace(ours.optim, updates_per_batch=2)
    still = torch.optim.SGD(ours.model.parameters(), lr=0.0)
    for minibatches in (1, 2):
        learner = replace(
            ours, optim=optim, optimizer=still, replay=replay_of(ours.model), terms=(Clip(low=0.2, high=0.2),)
        )
        stats = learner.update(
            batches(made, advantages(), PLAIN, minibatches), lr=0.0, scored=scored_of(made)
        )
        assert stats["update/ratio"] == pytest.approx(1, abs=1e-6)
        assert stats["update/approx_kl"] == pytest.approx(0, abs=1e-9)


def test_the_first_row_of_a_position_gives_its_experts() -> None:
    made = recorded()
    twin = replace(made[2], member=9, experts=np.zeros_like(made[2].experts))
    both = [made[2], twin]
    (batch,) = batches(both, np.ones(2), PLAIN)
    (plan,) = plan_trees(batch.sequences)
    stream = Stream.of(plan, torch.device("cpu"))
    routes = routes_of(batch, stream, both)
    forced = forced_of(routes)
    assert routes is not None
    assert forced is not None
    assert len(routes.source_P) == 2 * len(forced.position_U) == 2 * len(made[2].response_ids)
    assert torch.equal(forced.expert_ULK, torch.from_numpy(made[2].experts).long())


@pytest.mark.parametrize("family", [name for name in KNOWN if name in CAUSAL_TYPES])
def test_own_experts_given_change_nothing(family: str) -> None:
    model = tiny_model(family)
    select_attention(model)
    replay = replay_of(model)
    plan, _ = small_tree(5, 61)
    with torch.no_grad():
        own = tree_hidden(model, plan, chosen=True)
        expert_SLK = torch.stack(own.chosen, 1)
        with replay.forced(Forced(torch.arange(len(expert_SLK)), expert_SLK)):
            again = tree_hidden(model, plan).hidden_SD
        with replay.forced(Forced(torch.arange(len(expert_SLK)), (expert_SLK + 1) % 4)):
            other = tree_hidden(model, plan, chosen=True)
    assert torch.allclose(again, own.hidden_SD, rtol=0, atol=1e-5)
    assert not torch.allclose(other.hidden_SD, own.hidden_SD, rtol=0, atol=1e-2)
    assert torch.equal(other.chosen[0], own.chosen[0])  # its own choice, not what it was given


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt_oss", "wanted a model that follows prefix trees"),
        ("qwen3", "wanted a router for each stack of experts, got 0 routers, 0 stacks"),
        ("phimoe", "wanted weights that are a softmax or sigmoid of the routers' logits"),
    ],
)
def test_what_is_not_known_is_refused_by_name(family: str, reason: str) -> None:
    model = tiny_model(family)
    select_attention(model)
    with pytest.raises(ValueError, match=rf"objective\.replay_routing: {family}: {reason}"):
        replay_of(model)
