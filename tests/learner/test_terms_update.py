"""Updates by any terms against padded rows in float64: nothing shared, formulas written out, SGD steps.

Rows of a group share their prompt, four of six a guidance prefix, two of these a part of what they sampled:
members of one edge differ in advantage, clip bounds, old policy and source. Three passes, so ratios leave 1.

Dimension key: N trained tokens, R rows, L padded length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from g2rpo_fast.objective.batch import split_groups
from g2rpo_fast.objective.terms import Cispo, Clip, Disco, Shaped
from g2rpo_fast.pieces import Scored, Term, Ties, Tokens
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Source
from padded_terms import (
    ONE_EACH,
    REWARD_R,
    SPLIT,
    Case,
    Padded,
    assert_updates_equal,
    batches,
    learner,
    minimum,
    rollouts,
    textbook_update,
)
from scored import CLOCK, rewards_of
from updates import assert_moved_alike


def test_rows_share_prompts_prefixes_and_partial_responses() -> None:
    """Down the first row: six rows share the prompt, four the guidance, two the beginning, one the rest."""
    batch = batches(rollouts())[0]
    (plan,) = plan_trees(batch.sequences)
    sizes = np.diff(plan.member_ptr_T1)
    edge_M = np.repeat(np.arange(len(sizes)), sizes)
    first_row = np.sort(plan.member_M)[: len(rollouts()[0].response_ids)]
    shared = [int(sizes[edge_M[plan.member_M == token][0]]) for token in first_row]
    assert shared == [4] * 4 + [2] * 3 + [1] * 2
    assert plan.unshared_tokens > 1.8 * len(plan.token_S)
    assert [len(plan_trees(batch.sequences, token_budget=budget)) for budget in (ONE_EACH, SPLIT)] == [3, 5]


@dataclass(frozen=True, kw_only=True)
class Elastic(Term):
    """Of one's own: bounds grow with the row's |A|."""

    use = "elastic"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_logp"})

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        old_N = torch.where(tokens.old_logp_N.isnan(), logp_N.detach(), tokens.old_logp_N)
        ratio_N, a_N = (logp_N - old_N).exp(), tokens.advantage_N
        bound_N = 0.02 + 0.1 * a_N.abs()
        return -(tokens.weight_N * minimum(ratio_N, a_N, bound_N, bound_N)).sum()


def elastic(x: Padded) -> Tensor:
    bound = 0.02 + 0.1 * x.advantage.abs()
    return -x.sum(minimum(x.log_ratio(x.old).exp(), x.advantage, bound, bound))


@dataclass(frozen=True, kw_only=True)
class Regressed(Term):
    """Of one's own, tied over groups: the squared distance of standardised sequence log-ratios from A."""

    use = "regressed"

    @property
    def ties(self) -> Ties:
        return "group"

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        rows = len(tokens.group_R)
        sum_R = logp_N.new_zeros(rows).index_add(0, tokens.row_N, logp_N)
        a_R = logp_N.new_zeros(rows).scatter(0, tokens.row_N, tokens.advantage_N)
        groups = [tokens.group_R == group for group in range(tokens.num_groups)]
        return 0.01 * torch.stack([distance(sum_R[g], a_R[g]) for g in groups]).sum() / tokens.batch_rows


def distance(sum_R: Tensor, a_R: Tensor) -> Tensor:
    return ((sum_R - sum_R.mean()) / sum_R.std() - a_R).square().sum()


def regressed(x: Padded) -> Tensor:
    sum_R = torch.where(x.mask, x.logp, 0.0).sum(1)
    groups = [x.group_R == group for group in x.group_R.unique()]
    return 0.01 * torch.stack([distance(sum_R[g], x.advantage[g, 0]) for g in groups]).sum() / 18


def of_the_engine(x: Padded) -> Tensor:
    """Every row has its own old policy where it was sampled."""
    old = torch.where(x.engine.isnan(), x.old, x.engine)
    return -x.sum(minimum(x.log_ratio(old).exp(), x.advantage, 0.3, 0.4))


def shaped(x: Padded, gamma: float | None) -> Tensor:
    rho = x.log_ratio(x.engine).exp()
    if gamma is None:
        gamma = max(float(np.quantile(rho.detach()[x.mask & x.off].numpy(), 0.9)), 1e-4)
    on_policy = minimum(x.log_ratio(x.old).exp(), x.advantage, 0.02, 0.03)
    return -x.sum(torch.where(x.off, x.advantage * rho / (rho + gamma), on_policy))


def two_surrogates(x: Padded) -> Tensor:
    ratio = x.row_mean(x.log_ratio(x.old)).exp()[:, None]
    factor = x.log_ratio(x.old).exp().detach().clamp(0.97, 1.02)
    return -x.sum(minimum(ratio, x.advantage, 0.01, 0.02)) - x.sum(factor * x.advantage * x.logp)


def disco(x: Padded, tau: float, beta: float, delta: float) -> Tensor:
    score, loss = x.row_mean(x.logp), torch.zeros((), dtype=torch.float64)
    for group in x.group_R.unique():
        right, wrong = (score[(x.group_R == group) & (x.reward_R == r)] for r in (1, 0))
        if len(right) and len(wrong):
            loss = loss - (right.mean() - tau * (wrong / tau).exp().mean().log()) / 3
    k = (-x.log_ratio(x.old))[x.mask].mean()
    return loss + beta * max(float(k.detach()) - delta, 0.0) * k


MIXED: tuple[Source, ...] = ("on_policy", "off_policy", "off_policy", "on_policy", "off_policy")
BETA, DELTA = 20.0, 1e-4
CASES = {
    "bounds of each row": Case((Elastic(),), elastic),
    "old policy of each row": Case((Clip(low=0.3, high=0.4),), of_the_engine, ("off_policy",)),
    "mixed sources": Case((Shaped(low=0.02, high=0.03, gamma=0.1),), lambda x: shaped(x, 0.1), MIXED),
    "gamma of the batch": Case((Shaped(low=0.02, high=0.03),), lambda x: shaped(x, None), MIXED),
    "two surrogates": Case(
        (Clip(low=0.01, high=0.02, ratio="sequence"), Cispo(low=0.03, high=0.02)), two_surrogates
    ),
    "tied over groups": Case((Regressed(),), regressed),
    "scores of groups": Case((Disco(tau=2.0, beta=0.0),), lambda x: disco(x, 2.0, 0.0, 0.0), penalised=False),
    "scores and the batch": Case(
        (Disco(tau=2.0, beta=BETA, delta=DELTA),), lambda x: disco(x, 2.0, BETA, DELTA), lr=0.01
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_updates_by_any_terms_equal_padded_rows(name: str) -> None:
    assert_updates_equal(CASES[name])


@pytest.mark.parametrize("name", ["bounds of each row", "gamma of the batch", "scores of groups"])
def test_minibatches_compare_with_the_weights_that_sampled_by_any_terms(name: str) -> None:
    case = CASES[name]
    made = rollouts(case.sources)
    if name == "scores of groups":
        case = replace(case, textbook=lambda x: 3 * CASES[name].textbook(x))  # a mean over one group
    scored = Scored(rollouts=tuple(made), rewards=rewards_of(REWARD_R[:, None]), clock=CLOCK)
    parts = [[made[index] for index in part] for part in split_groups(made, 3)]
    wanted, loss = textbook_update(case, parts)
    ours = learner(case.all_terms, SPLIT, minibatches=3)
    stats = ours.update(batches(made, 3), lr=case.lr, scored=scored)
    assert stats["update/micro_batches"] == 6
    assert stats["loss"] == pytest.approx(loss, rel=1e-9)
    assert_moved_alike(ours.model, wanted)
