"""The objective stage: weights, edges of a plan, and that micro-batches add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from g2rpo_kernels import linear_policy_loss

from g2rpo_fast.objective import ObjectiveConfig, token_weights
from g2rpo_fast.objective.edges import edges_of
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences, TreePlan
from objectives import Loss

TRAINED = np.array([0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0], dtype=np.bool_)
PTR = np.array([0, 4, 7, 11, 13], dtype=np.int64)  # 2, 1, 3 and 0 trained tokens


@pytest.mark.parametrize(
    ("aggregation", "per_row"),
    [
        ("sequence_mean", [1 / 8, 1 / 4, 1 / 12, 0.0]),
        ("token_mean", [1 / 6, 1 / 6, 1 / 6, 0.0]),
        ("sequence_sum", [1 / 4, 1 / 4, 1 / 4, 0.0]),
        ("constant", [1 / 40, 1 / 40, 1 / 40, 0.0]),
    ],
)
def test_token_weights_by_hand(aggregation: str, per_row: list[float]) -> None:
    weight_N = token_weights(TRAINED, PTR, aggregation, num_rollouts=4, constant_length=10)
    want = np.where(TRAINED, np.repeat(per_row, np.diff(PTR)), 0.0)
    np.testing.assert_allclose(weight_N, want, rtol=1e-15, atol=0)
    assert weight_N.dtype == np.float64
    if aggregation == "sequence_mean":
        assert weight_N.sum() == pytest.approx(3 / 4)  # one of four rows has nothing to train
    if aggregation == "token_mean":
        assert weight_N.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregation": "mean"}, "aggregation: wanted one of"),
        ({"constant_length": 0}, "constant_length: wanted >= 1, got 0"),
        ({"num_rollouts": 3}, "num_rollouts: wanted at least the 4 rows, got 3"),
    ],
)
def test_token_weights_name_what_is_wrong(change: dict, message: str) -> None:
    arguments = {"aggregation": "constant", "num_rollouts": 4, "constant_length": 1} | change
    with pytest.raises(ValueError, match=message):
        token_weights(TRAINED, PTR, arguments.pop("aggregation"), **arguments)


def sequences() -> Sequences:
    """Two groups; members share a prompt, and two of them a guidance token."""
    rows = [
        (0, [1, 2, 3, 4, 5]),
        (0, [1, 2, 3, 6]),
        (0, [1, 2, 3, 4, 7, 8]),
        (1, [1, 9, 2]),
        (1, [1, 9, 2, 2]),
        (1, [1, 9, 5, 5, 3]),
    ]
    ids = [i for _, row in rows for i in row]
    trained = [t >= 2 for _, row in rows for t in range(len(row))]
    return Sequences(
        ids_N=np.array(ids, dtype=np.int32),
        ptr_R1=np.cumsum([0] + [len(row) for _, row in rows]).astype(np.int64),
        trained_N=np.array(trained, dtype=np.bool_),
        group_R=np.array([group for group, _ in rows], dtype=np.int32),
    )


def per_token() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(advantage, weight, rollout_logp) along the tokens of `sequences()`."""
    given = sequences()
    random = np.random.default_rng(0)
    advantage_N = np.repeat([1.0, -0.5, -2.0, 0.7, -0.7, 0.3], np.diff(given.ptr_R1))
    weight_N = token_weights(
        given.trained_N, given.ptr_R1, "sequence_mean", num_rollouts=6, constant_length=1
    )
    rollout_N = -1 - random.random(len(given.ids_N))
    return advantage_N, weight_N, rollout_N


def plans_of(token_budget: int | None) -> list[TreePlan]:
    return plan_trees(sequences(), token_budget=token_budget, min_saved=1)


def test_edges_sum_over_the_members_of_an_edge() -> None:
    (plan,) = plans_of(None)
    advantage_N, weight_N, rollout_N = per_token()
    edges = edges_of(plan, sequences(), advantage_N, weight_N, rollout_logp_N=rollout_N)
    # Token 3 of group 0 is an edge of three members, advantages 1, -0.5, -2 and weights 1/18, 1/12, 1/24.
    sizes = np.diff(plan.member_ptr_T1)
    edge = int(np.flatnonzero(sizes == 3)[0])
    assert int(plan.target_T[edge]) == 3
    assert float(edges.a_pos_T[edge]) == pytest.approx(1 / 18, rel=1e-12)
    assert float(edges.a_neg_T[edge]) == pytest.approx(-0.5 / 12 - 2 / 24, rel=1e-12)
    assert float(edges.weight_T[edge]) == pytest.approx(1 / 18 + 1 / 12 + 1 / 24, rel=1e-12)
    assert float(edges.weight_T.sum()) == pytest.approx(1.0, rel=1e-12)
    assert edges.member_row_M is not None
    counts = torch.bincount(edges.member_row_M, minlength=edges.num_rows)
    trained_R = [int(t.sum()) for t in np.split(sequences().trained_N, sequences().ptr_R1[1:-1])]
    assert counts.tolist() == [trained_R[row] for row in plan.row_B]


def test_rollout_logp_is_the_mean_over_members_that_sampled() -> None:
    (plan,) = plans_of(None)
    advantage_N, weight_N, rollout_N = per_token()
    edge = int(np.flatnonzero(np.diff(plan.member_ptr_T1) == 3)[0])
    members = plan.member_M[plan.member_ptr_T1[edge] : plan.member_ptr_T1[edge + 1]]
    rollout_N[members] = [-1.0, np.nan, -3.0]
    other = int(np.flatnonzero(np.diff(plan.member_ptr_T1) == 1)[0])
    rollout_N[plan.member_M[plan.member_ptr_T1[other]]] = np.nan
    edges = edges_of(plan, sequences(), advantage_N, weight_N, rollout_logp_N=rollout_N)
    assert edges.rollout_logp_T is not None
    assert float(edges.rollout_logp_T[edge]) == -2.0
    assert bool(edges.rollout_logp_T[other].isnan())
    assert int(edges.rollout_logp_T.isnan().sum()) == 1


CONFIGS = [
    Loss(kl_coef=0.1, entropy_coef=0.01, importance="token_truncate", importance_cap=1.1),
    Loss(ratio="sequence", kl_coef=0.1),
    Loss(surrogate="cispo", ratio="sequence", importance="token_mask", importance_cap=1.5),
]


def row_vectors(vocab: int = 10, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    return table, torch.randn(vocab, width, generator=generator, dtype=torch.float64)


def prefix_hidden(table: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """A hidden state that depends on the whole prefix: what a causal model gives a tree position."""
    decay = torch.tensor([0.7**k for k in range(len(ids))], dtype=torch.float64)
    return torch.tanh((table[ids] * decay.flip(0)[:, None]).sum(0))


def tree_loss(config: Loss, token_budget: int | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(loss, head gradient, micro-batches) over the plans; old and ref logp are functions of the edge."""
    table, head = row_vectors()
    head.requires_grad_()
    given, (advantage_N, weight_N, rollout_N) = sequences(), per_token()
    plans = plans_of(token_budget)
    rollout_N = rollout_of(given)
    total = torch.zeros((), dtype=torch.float64)
    for plan in plans:
        hidden = torch.stack([prefix_hidden(table, path(plan, s)) for s in range(len(plan.token_S))])
        target = torch.from_numpy(plan.target_T).long()
        old = -1.5 - 0.1 * target.double()
        edges = edges_of(
            plan,
            given,
            advantage_N,
            weight_N,
            rollout_logp_N=rollout_N,
        )._replace(old_logp_T=old, ref_logp_T=old - 0.2)
        source = torch.from_numpy(plan.source_T).long()
        total = (
            total
            + linear_policy_loss(hidden, head, target, edges, config.kernel, source_T=source, impl="cpu").loss
        )
    return total.detach(), torch.autograd.grad(total, head)[0], len(plans)


def rollout_of(given: Sequences) -> np.ndarray:
    return -1.5 - 0.1 * given.ids_N - 0.3


def path(plan: TreePlan, position: int) -> list[int]:
    """Tokens from the root of its tree to a stream position."""
    seen = [j for j in range(position + 1) if position < plan.end_S[j]]
    return [int(plan.token_S[j]) for j in seen]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.surrogate}-{c.ratio}")
def test_tree_equals_rows_and_micro_batches_add(config: Loss) -> None:
    whole, whole_grad, number = tree_loss(config, None)
    split, split_grad, split_number = tree_loss(config, 4)
    assert (number, split_number >= 3) == (1, True)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(split_grad, whole_grad, rtol=1e-11, atol=1e-13)
    rows, rows_grad = row_by_row(config)
    torch.testing.assert_close(whole, rows, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(whole_grad, rows_grad, rtol=1e-11, atol=1e-13)
    assert whole_grad.abs().max() > 1e-3


def row_by_row(config: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """The same loss without a tree: each row alone, mean over its trained tokens, mean over rows."""
    table, head = row_vectors()
    head.requires_grad_()
    given = sequences()
    advantage = [1.0, -0.5, -2.0, 0.7, -0.7, 0.3]
    total = torch.zeros((), dtype=torch.float64)
    for row in range(given.num_rows):
        ids = [int(i) for i in given.ids_N[given.ptr_R1[row] : given.ptr_R1[row + 1]]]
        places = range(2, len(ids))
        hidden = torch.stack([prefix_hidden(table, ids[:t]) for t in places])
        logp_V = torch.log_softmax(hidden @ head.T, -1)
        target = torch.tensor([ids[t] for t in places])
        logp = logp_V.gather(1, target[:, None])[:, 0]
        old = -1.5 - 0.1 * target.double()
        log_ratio = logp - old
        if config.ratio == "sequence":
            log_ratio = log_ratio.mean().expand(len(target))
        ratio, a = log_ratio.exp(), advantage[row]
        if config.surrogate == "clip":
            loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        else:
            loss = -ratio.clamp(0.8, 1.2).detach() * a * logp
        if config.importance != "none":  # exp(0.3) = 1.35: over 1.1, within 1.5
            loss = loss * min(float(np.exp(0.3)), config.importance_bounds[1])
        if config.kl_coef:
            d = logp - (old - 0.2)
            loss = loss + config.kl_coef * (torch.exp(-d) + d - 1)
        loss = loss + config.entropy_coef * (logp_V.exp() * logp_V).sum(1)
        total = total + loss.mean() / given.num_rows
    return total.detach(), torch.autograd.grad(total, head)[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aggregation": "mean"}, "objective.aggregation: wanted .*'constant', got 'mean'"),
        ({"constant_length": 0}, "objective.constant_length: wanted at least 1, got 0"),
        ({"importance": "token"}, "objective.importance: wanted .*'token_mask'.* got 'token'"),
        ({"importance_low": 1.1}, "objective.importance_low: wanted at most 1, got 1.1"),
        (
            {"importance": "sequence_mask", "importance_cap": 0.9},
            "importance_cap: wanted at least 1, got 0.9",
        ),
        ({"old_logp": "engine"}, "objective.old_logp: wanted 'trainer' or 'rollout', got 'engine'"),
        ({"old_logp": "rollout", "importance": "token_mask"}, "objective.importance: wanted 'none' with old"),
    ],
)
def test_objective_config_names_what_is_wrong(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**fields)
