"""What an update computes, counted: forwards of the backbone, products with the head; and token credit.

Dimension key: N trained tokens of a step's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.objective.batch import TrainBatch, make_batch, split_groups
from g2rpo_fast.objective.terms import Clip, Disco, Kl, Reinforce
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.pieces import RowTokens, Scored, TokenCredit, Weight
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import Doubles, Rollout
from objectives import Loss
from products import Work
from scored import CLOCK, rewards_of
from updates import TEMPERATURE, advantages, assert_same_weights, base_model, padded, rollouts

VOCAB = 34
REWARD_R = np.array([1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0], np.float64)


@dataclass(frozen=True, kw_only=True)
class Sure(TokenCredit):
    """Tokens that the old policy was sure of count less."""

    use = "sure"
    needs = frozenset({"entropy", "old_logp"})

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.entropy_N is not None
        assert tokens.old_logp_N is not None
        return a_N * tokens.entropy_N * (1 - np.exp(tokens.old_logp_N))


@dataclass(frozen=True, kw_only=True)
class Twice(TokenCredit):
    use = "twice"

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        return 2 * a_N


@dataclass(frozen=True, kw_only=True)
class Late(TokenCredit):
    """Needs no look: more credit for later places; none for the rows of group 1."""

    use = "late"

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        return a_N * (1 + tokens.place_N) * (scored.group_R[tokens.row_N] != 1)


@dataclass(frozen=True, kw_only=True)
class Hot(Weight):
    """The probability at twice the temperature, over that at it."""

    use = "hot"
    needs = frozenset({"old_logp", "hot_logp"})

    def hot_temperature(self) -> float:
        return 2.0

    def __call__(self, tokens: RowTokens, scored: Scored) -> Doubles:
        assert tokens.old_logp_N is not None
        assert tokens.hot_logp_N is not None
        return np.exp(tokens.hot_logp_N - tokens.old_logp_N)


@contextmanager
def counted(learner: Learner) -> Iterator[dict[str, int]]:
    """Forwards by model while it is entered, and multiply-adds with the head."""
    counts = {"policy": 0, "reference": 0, "head": 0}
    hooks = []
    for name, model in (("policy", learner.model), ("reference", learner.reference)):
        if model is not None:

            def count(*_: Any, name: str = name) -> None:
                counts[name] += 1

            hooks.append(model.model.register_forward_pre_hook(count))
    with Work(dimension=VOCAB) as work:
        yield counts
    counts["head"] = work.products
    for hook in hooks:
        hook.remove()


def learner(*, budget: int = 8192, passes: int = 1, kl: bool = False, **given: Any) -> Learner:
    objective = given.pop("objective", Loss())
    model, reference = base_model(), base_model()
    for m in (model, reference):
        select_tree_attention(m)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        reference=reference.requires_grad_(False) if kl or objective.kl_coef else None,
        **(objective.learnt | given),
        optim=OptimConfig(max_grad_norm=1e9, updates_per_batch=passes),
        tree=TreeConfig(token_budget=budget),
        compute=ModelConfig(),
        temperature=TEMPERATURE,
    )


def scored() -> Scored:
    return Scored(rollouts=tuple(rollouts()), rewards=rewards_of(REWARD_R[:, None]), clock=CLOCK)


OPEN = Loss(clip_low=1.0, clip_high=math.inf)
"""Nothing is clipped: rows without a gradient would be left out of products."""
OPEN_CLIP: dict[str, Any] = {"objective": OPEN}
COUNTS: dict[str, tuple[dict[str, Any], int, tuple[int, int, int]]] = {
    # settings, minibatches, (forwards of the policy a stream, of the reference, head products a stream)
    "plain": (OPEN_CLIP, 1, (1, 0, 3)),
    "plain, three passes": (OPEN_CLIP | {"passes": 3}, 1, (3, 0, 9)),
    "minibatches": (OPEN_CLIP, 2, (2, 0, 4)),
    "minibatches without ratios": ({"objective": Loss(surrogate="reinforce")}, 2, (1, 0, 3)),
    "the engine as old policy": ({"objective": replace(OPEN, old_logp="rollout")}, 2, (1, 0, 3)),
    "kl": ({"objective": Loss(kl_coef=0.1)}, 1, (1, 1, 4)),
    "importance of tokens": ({"objective": Loss(importance="token_mask")}, 1, (1, 0, 3)),
    "importance of rows": ({"objective": Loss(importance="sequence_mask")}, 1, (2, 0, 4)),
    "credit without a look": ({"token_credit": (Twice(),)}, 1, (1, 0, 3)),
    "credit by entropy": (OPEN_CLIP | {"token_credit": (Sure(),), "passes": 3}, 1, (4, 0, 10)),
    "credit by entropy, minibatches": ({"token_credit": (Sure(), Twice())}, 2, (2, 0, 4)),
    "two temperatures": ({"weights": (Hot(),)}, 1, (2, 0, 5)),
    "own terms": ({"terms": (Clip(), Reinforce()), "passes": 2}, 1, (2, 0, 6)),
    "own terms tied in one stream": ({"terms": (Disco(),), "passes": 2}, 1, (2, 0, 6)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_is_computed_that_no_piece_asked_for(name: str) -> None:
    settings, minibatches, wanted = COUNTS[name]
    ours = learner(**settings)
    made = all_rows(minibatches)
    with counted(ours) as counts:
        stats = ours.update(made, lr=1e-3, scored=scored())
    assert stats["update/micro_batches"] == minibatches
    head = counts["head"] / one_product(made, ours)
    assert (counts["policy"] / minibatches, counts["reference"] / minibatches, head) == wanted


def test_terms_tied_over_split_trees_look_once_a_step_and_the_first_look_serves_both() -> None:
    """The look before the update is also that of its first optimiser step."""
    for credit in ((), (Sure(),)):
        ours = learner(budget=22, passes=2, terms=(Disco(),), token_credit=credit)
        made = all_rows(1)
        with counted(ours) as counts:
            stats = ours.update(made, lr=1e-3, scored=scored())
        streams = stats["update/micro_batches"]
        assert streams > 3
        assert counts["policy"] == (2 + 2) * streams
    ours = learner(budget=22, passes=2, terms=(Clip(), Reinforce()))  # nothing is tied
    with counted(ours) as counts:
        assert ours.update(made, lr=1e-3, scored=scored())["update/micro_batches"] == streams
    assert counts["policy"] == 2 * streams


def all_rows(minibatches: int) -> list[TrainBatch]:
    return [
        make_batch(
            rollouts(), indices, advantages(), aggregation="sequence_mean", constant_length=20, keep_all=True
        )
        for indices in split_groups(rollouts(), minibatches)
    ]


def one_product(made: list[TrainBatch], ours: Learner) -> int:
    """Multiply-adds of all edges with the head."""
    edges = sum(len(plan.target_T) for batch in made for plan in plan_trees(batch.sequences))
    return edges * ours.model.config.hidden_size * VOCAB


def hot_logp(model, made: list[Rollout]) -> Tensor:
    """[R, L] at twice the temperature."""
    width = max(len(r.training_prompt_ids + r.response_ids) for r in made)
    ids = torch.zeros(len(made), width, dtype=torch.long)
    for row, r in enumerate(made):
        whole = r.training_prompt_ids + r.response_ids
        ids[row, : len(whole)] = torch.tensor(whole)
    logits = model(input_ids=ids).logits[:, :-1] / (2 * TEMPERATURE)
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def by_hand(made: list[Rollout], pieces: str) -> tuple[Tensor, Tensor]:
    """[R, L] factors of advantages and weights on padded rows, by formulas written out."""
    model = base_model()
    with torch.no_grad():
        logp, entropy, mask, _ = padded(model, made)
        hot = hot_logp(model, made)
    place = torch.cumsum(mask, 1) - 1
    credit = torch.ones_like(logp)
    if "sure" in pieces:
        credit = credit * entropy * (1 - logp.exp())
    if "late" in pieces:
        group_1 = torch.tensor([[r.group == 1] for r in made])
        credit = credit * (1 + place) * ~group_1
    weight = (hot - logp).exp() if "hot" in pieces else torch.ones_like(logp)
    return credit, weight


PIECES: dict[str, dict[str, Any]] = {
    "late": {"token_credit": (Late(),)},
    "sure late": {"token_credit": (Sure(), Late())},
    "hot": {"weights": (Hot(),)},
    "sure late hot": {"token_credit": (Sure(), Late()), "weights": (Hot(),)},
}


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize("pieces", PIECES)
def test_token_credit_and_weights_equal_padded_rows(pieces: str, minibatches: int) -> None:
    """Members of an edge have one old policy but several advantages; guided tokens get credit too."""
    made, optim = rollouts(), OptimConfig(max_grad_norm=1e9, minibatches=minibatches)
    ours = replace(learner(**PIECES[pieces]), optim=optim)
    plain, start = base_model(), base_model()
    stats = ours.update(all_rows(minibatches), lr=0.3, scored=scored())
    assert stats["update/token_ratio"] > 1.2
    credit, weight = by_hand(made, pieces)
    with torch.no_grad():
        old = padded(plain, made)[0]
    a = torch.tensor(advantages(), dtype=torch.float32)[:, None] * credit
    for part in split_groups(made, minibatches):
        logp, _, mask, _ = padded(plain, made)
        ratio = (logp - old).exp()
        per_token = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) * weight * mask
        loss = -(per_token.sum(1) / mask.sum(1))[part].mean()
        loss.backward()
        with torch.no_grad():
            for p in plain.parameters():
                p.sub_(0.3 * p.grad)
                p.grad = None
    assert_same_weights(ours.model, plain, start, rounding=1e-3)


KL = (Clip(), Kl(coef=1e-6))


def test_rows_left_without_advantage_are_left_out_of_the_update() -> None:
    """Also after a look; the look at their tokens stays with the others'."""
    for pieces in ("late", "sure late"):
        stats = learner(**PIECES[pieces]).update(all_rows(1), lr=0.0, scored=scored())
        everything = learner(terms=(Clip(), Kl(coef=1e-6)), **PIECES[pieces], kl=True)
        assert (
            stats["update/positions"]
            < 0.8 * everything.update(all_rows(1), lr=0.0, scored=scored())["update/positions"]
        )


@dataclass(frozen=True, kw_only=True)
class Broken(TokenCredit):
    use = "broken"

    def __call__(self, a_N: Doubles, tokens: RowTokens, scored: Scored) -> Doubles:
        return np.full(len(a_N), np.inf)


def test_what_pieces_return_is_checked_by_name() -> None:
    with pytest.raises(ValueError, match=r"token_credit.broken: wanted finite numbers, got -?inf at token 0"):
        learner(token_credit=(Broken(),)).update(all_rows(1), lr=0.0, scored=scored())
    with pytest.raises(ValueError, match="reference: wanted a policy for a term that reads ref_logp"):
        learner(terms=(Clip(), Kl(coef=0.1)))
