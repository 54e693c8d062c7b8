"""Terms by hand, and against the kernels' named losses on the same edges.

Dimension key: N trained tokens of all rows, R rows, T edges.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from g2rpo_kernels import policy_loss_of_logps

from g2rpo_fast.objective import ObjectiveConfig, fused_objective
from g2rpo_fast.objective.batch import TrainBatch, make_batch
from g2rpo_fast.objective.edges import edges_of
from g2rpo_fast.objective.terms import (
    TERMS,
    Cispo,
    Clip,
    Disco,
    Entropy,
    Kl,
    Reinforce,
    Sapo,
    Shaped,
    Vespo,
)
from g2rpo_fast.objective.tokens import rows_of, with_old
from g2rpo_fast.pieces import Term, Tokens
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import SOURCES, TreePlan
from updates import advantages, rollouts

F64 = torch.float64


def tokens(lengths: list[int], **changes: Any) -> Tokens:
    """One group of rows with these numbers of tokens, all on-policy, advantages and weights 1."""
    num = sum(lengths)
    given = {
        "row_N": torch.repeat_interleave(torch.tensor(lengths)),
        "group_R": torch.zeros(len(lengths), dtype=torch.int64),
        "num_groups": 1,
        "advantage_N": torch.ones(num, dtype=F64),
        "weight_N": torch.ones(num, dtype=F64),
        "reward_R": torch.zeros(len(lengths), dtype=F64),
        "batch_rows": len(lengths),
        "batch_groups": 1,
        "source_R": torch.zeros(len(lengths), dtype=torch.int64),
        "old_logp_N": torch.full((num,), torch.nan, dtype=F64),
        "rollout_logp_N": torch.full((num,), torch.nan, dtype=F64),
    }
    return Tokens(**given | changes)


def value_and_gradient(term: Term, logp: list[float], given: Tokens) -> tuple[float, list[float]]:
    logp_N = torch.tensor(logp, dtype=F64, requires_grad=True)
    loss = term(logp_N, torch.zeros_like(logp_N), given)
    return float(loss.detach()), torch.autograd.grad(loss, logp_N)[0].tolist()


@pytest.mark.parametrize(
    ("tau", "weights"), [(1.0, [0.7310586, 0.2689414]), (1e9, [0.5, 0.5]), (math.inf, [0.5, 0.5])]
)
def test_disco_weighs_wrong_answers_by_their_scores(tau: float, weights: list[float]) -> None:
    """One right answer of two tokens, wrong ones with scores -1 and -2."""
    given = tokens([2, 1, 2], reward_R=torch.tensor([1.0, 0.0, 0.0], dtype=F64))
    loss, gradient = value_and_gradient(Disco(tau=tau, beta=0.0), [-0.5, -0.3, -1.0, -1.0, -3.0], given)
    assert gradient == pytest.approx(
        [-0.5, -0.5, weights[0], weights[1] / 2, weights[1] / 2], rel=1e-6, abs=1e-9
    )
    soft = math.log((math.exp(-1) + math.exp(-2)) / 2) if tau == 1 else -1.5
    assert loss == pytest.approx(-(-0.4 - soft), rel=1e-6)


def test_disco_has_nothing_to_say_where_a_group_lacks_a_kind() -> None:
    for rewards in ([1.0, 1.0], [0.0, 0.0]):
        given = tokens([1, 1], reward_R=torch.tensor(rewards, dtype=F64))
        for tau in (1.0, math.inf):
            assert value_and_gradient(Disco(tau=tau, beta=0.0), [-1.0, -2.0], given) == (0.0, [0.0, 0.0])


def test_disco_penalises_leaving_the_old_policy_beyond_delta() -> None:
    """K = .25: the penalty is 4 (.25 - .05) sg K = .2, its gradient .8 dK."""
    old_N = torch.tensor([-1.0, -1.0], dtype=F64)
    given = tokens([1, 1], reward_R=torch.ones(2, dtype=F64), old_logp_N=old_N)
    loss, gradient = value_and_gradient(Disco(beta=4.0, delta=0.05), [-1.2, -1.3], given)
    assert (loss, gradient) == (pytest.approx(0.2), pytest.approx([-0.4, -0.4]))
    assert value_and_gradient(Disco(beta=4.0, delta=0.25), [-1.2, -1.3], given)[0] == pytest.approx(0.0)


def test_disco_scores_ratios() -> None:
    given = tokens(
        [1, 1],
        reward_R=torch.tensor([1.0, 0.0], dtype=F64),
        old_logp_N=torch.tensor([-1.0, -1.0], dtype=F64),
    )
    loss, gradient = value_and_gradient(Disco(score="ratio", tau=1.0, beta=0.0), [-0.9, -1.1], given)
    assert loss == pytest.approx(-(math.exp(0.1) - math.exp(-0.1)))
    assert gradient == pytest.approx([-math.exp(0.1), math.exp(-0.1)])


def off_policy(logp: list[float], rollout: list[float], **changes: Any) -> Tokens:
    source = torch.full((len(logp),), SOURCES.index("off_policy"))
    return tokens(
        [1] * len(logp), source_R=source, rollout_logp_N=torch.tensor(rollout, dtype=F64), **changes
    )


def test_shaped_by_hand() -> None:
    """f(.1) = .5, f(1) = .9091, f(.9) = .9; and rho = exp(-.5) of a row read without its hint."""
    logp = [math.log(0.1), 0.0, math.log(0.9), -1.0]
    given = off_policy(logp, [0.0, 0.0, 0.0, -0.5])
    for place, wanted in enumerate([0.5, 0.9090909, 0.9, math.exp(-0.5) / (math.exp(-0.5) + 0.1)]):
        one = replace(given, advantage_N=torch.eye(4, dtype=F64)[place])
        assert value_and_gradient(Shaped(gamma=0.1), logp, one)[0] == pytest.approx(-wanted, rel=1e-6)
    negative = replace(given, advantage_N=-torch.ones(4, dtype=F64))
    loss, gradient = value_and_gradient(Shaped(gamma=0.1), logp, negative)
    assert loss == pytest.approx(0.5 + 0.9090909 + 0.9 + math.exp(-0.5) / (math.exp(-0.5) + 0.1), rel=1e-6)
    assert gradient[:2] == pytest.approx([0.25, 0.1 / 1.1**2])  # rho gamma / (rho + gamma)^2, never clipped


def test_shaped_takes_gamma_from_the_off_policy_ratios_alone() -> None:
    logp = [math.log(x) for x in (0.2, 0.4, 0.6, 0.8, 1.0)] + [3.0]
    source_R = torch.tensor([SOURCES.index("off_policy")] * 5 + [0])
    given = replace(off_policy(logp, [0.0] * 6), source_R=source_R)
    loss, _ = value_and_gradient(Shaped(), logp, given)
    shaped = sum(x / (x + 0.92) for x in (0.2, 0.4, 0.6, 0.8, 1.0))
    assert loss == pytest.approx(-shaped - 1)  # the on-policy token's ratio is 1
    tiny = off_policy([-15.0], [0.0])
    rho = math.exp(-15)
    assert value_and_gradient(Shaped(), [-15.0], tiny)[0] == pytest.approx(-rho / (rho + 1e-4))


def test_target_rows_are_on_policy_and_off_policy_rows_are_compared_with_the_engine() -> None:
    batch, plan = packed()
    source_R = np.arange(len(batch.source_R)) % 3
    rows = rows_of(
        replace(batch, source_R=source_R), plan, np.zeros(12), dtype=F64, device=torch.device("cpu")
    )
    known_T = -1 - torch.arange(len(plan.target_T), dtype=F64)
    for engine in (False, True):
        given = with_old(rows, known_T, engine=engine)
        source_N = given.source_R[given.row_N]
        sampled = ~given.rollout_logp_N.isnan()
        assert bool(given.old_logp_N[source_N == 2].isnan().all())
        by_engine = sampled & ((source_N == 1) | (engine & (source_N == 0)))
        own = ~by_engine & (source_N != 2)
        assert torch.equal(given.old_logp_N[by_engine], given.rollout_logp_N[by_engine])
        assert torch.equal(given.old_logp_N[own], known_T[rows.edge_N][own])
        assert min(int(by_engine.sum()), int(own.sum())) > 5


def packed() -> tuple[TrainBatch, TreePlan]:
    made = rollouts()
    batch = make_batch(
        made, range(12), advantages(), aggregation="sequence_mean", constant_length=20, keep_all=True
    )
    (plan,) = plan_trees(batch.sequences)
    return batch, plan


NAMED = {
    "clip": (Clip(low=0.1, high=0.15, dual=1.4),),
    "clip of sequences": (Clip(low=0.02, high=0.03, ratio="sequence"),),
    "cispo": (Cispo(low=1.0, high=0.1), Entropy(coef=0.1)),
    "cispo of sequences": (Cispo(low=0.02, high=0.03, ratio="sequence"),),
    "sapo": (Sapo(tau_pos=0.7), Kl(coef=0.3, estimator="k2")),
    "reinforce": (Reinforce(), Kl(coef=0.3)),
    "vespo": (Vespo(k_pos=1.5),),
    "kl times ratio": (Clip(), Kl(coef=0.3, estimator="k1", times="token")),
    "kl times the sequence's ratio": (Sapo(ratio="sequence"), Kl(coef=0.3, times="sequence")),
}


@pytest.mark.parametrize("name", NAMED)
def test_terms_equal_the_kernels_loss_in_value_gradient_and_metrics(name: str) -> None:
    """On shared edges, whose members have one old policy."""
    terms: tuple[Term, ...] = NAMED[name]
    objective = fused_objective(terms, ObjectiveConfig())
    assert objective is not None
    batch, plan = packed()
    generator = torch.Generator().manual_seed(1)
    old_T, change_T, ref_T = torch.randn(3, len(plan.target_T), generator=generator, dtype=F64)
    given_T = [(old_T + 0.2 * change_T).requires_grad_(), change_T.exp().requires_grad_()]
    edges = edges_of(plan, batch.sequences, batch.advantage_N, batch.weight_N)
    edges = edges._replace(old_logp_T=old_T, ref_logp_T=ref_T)
    fused = policy_loss_of_logps(given_T[0], edges, objective, entropy_T=given_T[1])

    rows = rows_of(batch, plan, np.zeros(12), dtype=F64, device=torch.device("cpu"))
    own = replace(with_old(rows, old_T, engine=False), ref_logp_N=ref_T[rows.edge_N])
    logp_N, entropy_N = (value_T[rows.edge_N] for value_T in given_T)
    loss = torch.stack([term(logp_N, entropy_N, own) for term in terms]).sum()
    assert float(loss.detach()) == pytest.approx(float(fused.loss.detach()), rel=1e-12)
    wanted, got = (torch.autograd.grad(x, given_T, allow_unused=True) for x in (fused.loss, loss))
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None or not b.any())
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)
    assert float(wanted[0].abs().max()) > 1e-3
    stats = terms[0].stats(logp_N.detach(), own)
    if "clipped" in stats:
        assert 0.1 < float(stats["clipped"][0] / stats["clipped"][1]) < 0.9
    if name.endswith("of sequences"):  # else the kernels count edges
        for key, (total, count) in stats.items():
            assert float(total / count) == pytest.approx(float(fused.stats[key][0] / fused.stats[key][1]))


def test_what_the_kernels_cannot_add_up_is_left_to_the_terms() -> None:
    config = ObjectiveConfig()
    assert fused_objective((Clip(), Kl(coef=0.1), Entropy(coef=0.1)), config) is not None
    for terms in (
        (Clip(), Cispo()),
        (Clip(), Kl(coef=0.1), Kl(coef=0.1)),
        (Clip(), Entropy(coef=0.1), Entropy(coef=0.1)),
        (Clip(ratio="sequence"), Kl(coef=0.1, times="token")),
        (Kl(coef=0.1),),
        (Clip(), Disco()),
        (Shaped(gamma=0.1),),
    ):
        assert fused_objective(terms, config) is None


@pytest.mark.parametrize(
    ("use", "fields", "message"),
    [
        ("clip", {"low": -0.1}, "terms.clip.low: wanted at least 0, got -0.1"),
        ("clip", {"dual": 1.0}, "terms.clip.dual: wanted above 1, got 1.0"),
        ("clip", {"ratio": "row"}, "terms.clip.ratio: wanted 'token', 'sequence', 'unit' or 'product'"),
        ("trace_clip", {"ratio": "sequence"}, "terms.trace_clip.ratio: wanted 'token', got 'sequence'"),
        ("kl", {"coef": 0.0}, "terms.kl.coef: wanted above 0, got 0.0"),
        ("disco", {"tau": 0.0}, "terms.disco.tau: wanted above 0, got 0.0"),
        ("shaped", {"quantile": 1.0}, "terms.shaped.quantile: wanted below 1, got 1.0"),
    ],
)
def test_terms_name_what_is_wrong(use: str, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TERMS[use](**fields)


def test_every_term_says_what_it_computes_and_where_it_is_from() -> None:
    assert len(TERMS) > 10
    for use, term in TERMS.items():
        assert term.use == use
        assert use == "own" or "Evidence:" in (term.__doc__ or "")
