"""`Learner.passes` says what `Learner.update` does: positions through backbone, tokens through head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from g2rpo_fast.learner import Passes
from g2rpo_fast.objective.terms import Clip, Kl
from g2rpo_fast.objective.terms.own import Own
from g2rpo_fast.pieces import Scored, Term, Tokens
from g2rpo_fast.tree import plan_trees
from padded_terms import ONE_EACH, PASSES, REWARD_R, SPLIT, WHOLE, batches, learner, rollouts
from products import Work
from scored import CLOCK, rewards_of


def of_groups(logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
    return -(tokens.advantage_N * logp_N).sum() + (logp_N * tokens.weight_N).sum() ** 2


setattr(of_groups, "ties", "group")  # noqa: B010


@contextmanager
def counted(layer: nn.Module) -> Iterator[dict[str, int]]:
    """Positions that go forward and back through a layer."""
    seen = {"forward": 0, "backward": 0}

    def forward(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["forward"] += inputs[0].shape[1]

    def backward(module: nn.Module, inputs: Any, outputs: Any) -> None:
        seen["backward"] += outputs[0].shape[1]

    hooks = [layer.register_forward_hook(forward), layer.register_full_backward_hook(backward)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


CLIP, KL, TIED = (Clip(),), (Clip(), Kl(coef=0.1)), (Own(function=of_groups),)


@pytest.mark.parametrize(
    ("terms", "budget", "minibatches", "wanted"),
    [
        (CLIP, WHOLE, 1, Passes(looks=0, forwards=3, backwards=3, head_products=9)),
        (CLIP, SPLIT, 1, Passes(looks=0, forwards=3, backwards=3, head_products=9)),
        (CLIP, WHOLE, 3, Passes(looks=1, forwards=3, backwards=3, head_products=10)),
        (KL, WHOLE, 1, Passes(looks=1, forwards=3, backwards=3, head_products=10)),
        (KL, ONE_EACH, 3, Passes(looks=2, forwards=3, backwards=3, head_products=11)),
        (TIED, WHOLE, 1, Passes(looks=0, forwards=3, backwards=3, head_products=9)),
        (TIED, ONE_EACH, 1, Passes(looks=0, forwards=3, backwards=3, head_products=9)),
        (TIED, SPLIT, 1, Passes(looks=0, forwards=6, backwards=3, head_products=12)),
    ],
)
def test_passes_are_those_of_the_update(
    terms: tuple[Term, ...], budget: int, minibatches: int, wanted: Passes
):
    assert PASSES == 3
    made = rollouts()
    scored = Scored(rollouts=tuple(made), rewards=rewards_of(REWARD_R[:, None]), clock=CLOCK)
    ours, given = learner(terms, budget, minibatches), batches(made, minibatches)
    assert ours.passes(given) == wanted
    assert ours.reference is not None
    plans = [plan for batch in given for plan in plan_trees(batch.sequences, token_budget=budget)]
    positions = sum(len(plan.token_S) for plan in plans)
    edges = sum(len(plan.target_T) for plan in plans)
    embeddings: Any = ours.model.get_input_embeddings()
    vocabulary, width = embeddings.weight.shape
    with (
        counted(ours.model.model.layers[1]) as policy,
        counted(ours.reference.model.layers[1]) as reference,
        Work(dimension=vocabulary) as work,
    ):
        ours.update(given, lr=1e-3, scored=scored)
    assert policy["forward"] + reference["forward"] == (wanted.looks + wanted.forwards) * positions
    assert policy["backward"] == wanted.backwards * positions
    assert work.products == wanted.head_products * edges * vocabulary * width
