"""Policy losses against plain padded textbook forms in float64: TRL's formulas, written out row by row.

The textbook knows B sequences of L tokens, each with its own hidden states, a mask and one advantage per
sequence. The op sees the same as edges; shared edges are compared with the replicated form.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from g2rpo_kernels import (
    Cispo,
    Clip,
    Edges,
    Objective,
    Sapo,
    Surrogate,
    Vespo,
    linear_policy_loss,
    policy_loss,
)
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.policy_loss.surrogates import RatioName
from torch import Tensor

from budget import assert_within_budget, draws
from drawn import normal
from logit_rows import LargestTensor
from policy_cases import EPS, PENALTIES, SURROGATES, B, D, L, Soft, V, shared_case


@dataclass(frozen=True)
class Batch:
    """A padded batch: B sequences of up to L trained tokens."""

    hidden_BLD: Tensor
    head_VD: Tensor
    target_BL: Tensor
    mask_BL: Tensor
    advantage_B: Tensor
    old_BL: Tensor
    ref_BL: Tensor
    rollout_BL: Tensor


def make_batch() -> Batch:
    hidden, head = normal(B, L, D, seed=0), normal(V, D, seed=1)
    target = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([5, 1, 3, 5, 2, 4])
    logp = torch.log_softmax(hidden @ head.T, -1).gather(-1, target[..., None])[..., 0]
    rollout = logp + 0.4 * normal(B, L, seed=5)
    rollout[0, :2] = torch.nan  # guidance: nothing was sampled
    return Batch(
        hidden_BLD=hidden,
        head_VD=head,
        target_BL=target,
        mask_BL=torch.arange(L)[None] < lengths[:, None],
        advantage_B=torch.tensor([1.3, -0.7, 0.4, -1.9, 0.8, -0.2], dtype=torch.float64),
        old_BL=logp + 0.4 * normal(B, L, seed=3),
        ref_BL=logp + 0.4 * normal(B, L, seed=4),
        rollout_BL=rollout,
    )


def normalised(per_token_BL: Tensor, mask_BL: Tensor, aggregation: str) -> Tensor:
    """TRL's loss_type grpo, dapo and dr_grpo."""
    masked = torch.where(mask_BL, per_token_BL, 0.0)
    if aggregation == "grpo":
        return (masked.sum(1) / mask_BL.sum(1)).mean()
    if aggregation == "dapo":
        return masked.sum() / mask_BL.sum()
    return masked.sum() / (B * L)


def textbook(
    batch: Batch, hidden: Tensor, head: Tensor, o: Objective, aggregation: str, on_policy: bool
) -> Tensor:
    """The published formulas, with a stop-gradient ratio when on-policy."""
    mask, advantage = batch.mask_BL, batch.advantage_B[:, None]
    logp_BLV = torch.log_softmax(hidden @ head.T, -1)
    logp = logp_BLV.gather(-1, batch.target_BL[..., None])[..., 0]
    entropy = -(logp_BLV.exp() * logp_BLV).sum(-1)
    old = logp.detach() if on_policy else batch.old_BL
    log_ratio = logp - old
    if o.ratio == "sequence":
        log_ratio = (torch.where(mask, log_ratio, 0.0).sum(1) / mask.sum(1))[:, None].expand(B, L)
    ratio = log_ratio.exp()
    s = o.surrogate
    if isinstance(s, Soft):
        loss = -torch.tanh(s.slope * (ratio - 1)) / s.slope * advantage
    elif isinstance(s, Clip):
        dual = None if s.dual is None else torch.tensor(s.dual, dtype=torch.float64)
        unclipped = ratio if dual is None else torch.minimum(ratio, dual)
        clipped = ratio.clamp(1 - s.low, 1 + s.high)
        loss = -torch.minimum(unclipped * advantage, clipped * advantage)
    elif isinstance(s, Cispo):
        loss = -ratio.clamp(1 - s.low, 1 + s.high).detach() * advantage * logp
    elif isinstance(s, Sapo):
        tau = torch.full_like(advantage, s.tau_neg).masked_fill(advantage > 0, s.tau_pos)
        loss = -(4 / tau) * torch.sigmoid(tau * (ratio - 1)) * advantage
    else:
        loss = -advantage * logp
    if o.importance_cap is not None:
        raw = (old - batch.rollout_BL).exp().detach()
        kept = ((raw >= o.importance_low) & (raw <= o.importance_cap)).double()
        weight = raw * kept if o.importance_mask else raw.clamp(o.importance_low, o.importance_cap)
        loss = loss * torch.where(batch.rollout_BL.isnan(), 1.0, weight)
    if o.kl_coef:
        d = logp - batch.ref_BL
        loss = loss + o.kl_coef * {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}[o.kl]
    return normalised(loss - o.entropy_coef * entropy, mask, aggregation)


def weights_of(mask_BL: Tensor, aggregation: str) -> Tensor:
    """[T] float64 weight of each trained token, rows end to end."""
    per_row = {
        "grpo": 1 / (B * mask_BL.sum(1, keepdim=True).double()),
        "dapo": torch.full((B, 1), 1 / int(mask_BL.sum()), dtype=torch.float64),
        "dr_grpo": torch.full((B, 1), 1 / (B * L), dtype=torch.float64),
    }[aggregation]
    return per_row.expand(B, L)[mask_BL]


def edges_of(batch: Batch, aggregation: str, on_policy: bool) -> Edges:
    """One member per edge: the rows end to end."""
    mask = batch.mask_BL
    weight = weights_of(mask, aggregation)
    advantage = batch.advantage_B[:, None].expand(B, L)[mask]
    return Edges(
        a_pos_T=weight * advantage.clamp(min=0),
        a_neg_T=weight * advantage.clamp(max=0),
        weight_T=weight,
        old_logp_T=None if on_policy else batch.old_BL[mask],
        ref_logp_T=batch.ref_BL[mask],
        rollout_logp_T=batch.rollout_BL[mask],
        member_ptr_T1=torch.arange(len(weight) + 1),
        member_row_M=torch.arange(B)[:, None].expand(B, L)[mask],
        member_advantage_M=advantage,
        member_weight_M=weight,
        num_rows=B,
    )


def value_and_gradients(batch: Batch, loss_of) -> tuple[Tensor, ...]:
    hidden = batch.hidden_BLD.clone().requires_grad_()
    head = batch.head_VD.clone().requires_grad_()
    loss = loss_of(hidden, head)
    return loss.detach(), *torch.autograd.grad(3 * loss, (hidden, head))


@pytest.mark.parametrize("surrogate", [*SURROGATES, Soft(slope=2.0)], ids=str)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_policy_losses_equal_the_padded_textbook(
    surrogate: Surrogate, ratio: RatioName, on_policy: bool
) -> None:
    batch = make_batch()
    target = batch.target_BL[batch.mask_BL]
    for penalty, aggregation in itertools.product(PENALTIES, ("grpo", "dapo", "dr_grpo")):
        o = Objective(surrogate=surrogate, ratio=ratio, **penalty)
        edges = edges_of(batch, aggregation, on_policy)

        def plain(hidden: Tensor, head: Tensor) -> Tensor:
            return textbook(batch, hidden, head, o, aggregation, on_policy)  # noqa: B023

        def logits_level(hidden: Tensor, head: Tensor) -> Tensor:
            return policy_loss(hidden[batch.mask_BL] @ head.T, target, edges, o, impl="cpu").loss  # noqa: B023

        def linear(impl: Impl, chunk_bytes: int):
            def loss(hidden: Tensor, head: Tensor) -> Tensor:
                return linear_policy_loss(
                    hidden[batch.mask_BL],
                    head,
                    target,
                    edges,  # noqa: B023
                    o,  # noqa: B023
                    chunk_bytes=chunk_bytes,
                    impl=impl,
                ).loss

            return loss

        want = value_and_gradients(batch, plain)
        assert want[2].abs().max() > 1e-3
        for op in (logits_level, linear("reference", 1), linear("cpu", 1 << 30), linear("cpu", 3 * V * 8)):
            for got, true in zip(value_and_gradients(batch, op), want, strict=True):
                torch.testing.assert_close(got, true, **EPS)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_loss_is_minus_the_weighted_advantage(ratio: RatioName, impl: Impl) -> None:
    """r = 1: the loss is -sum w A, whatever the model; the gradient is that of REINFORCE."""
    batch = make_batch()
    edges = edges_of(batch, "grpo", on_policy=True)
    for surrogate, value in (("clip", 0.05), ("sapo", 0.05476190476190476)):
        out = linear_policy_loss(
            batch.hidden_BLD[batch.mask_BL],
            batch.head_VD,
            batch.target_BL[batch.mask_BL],
            edges,
            Objective(surrogate=surrogate, ratio=ratio),
            impl=impl,
        )
        # advantages 1.3 - 0.7 + 0.4 - 1.9 + 0.8 - 0.2 = -0.3 over 6 rows; sapo: 2/tau by sign.
        expected = value if surrogate == "clip" else -(2.5 * 2 - 2.8 * 2 / 1.05) / 6
        assert float(out.loss) == pytest.approx(expected, abs=1e-14)
        ratio_sum, count = out.stats["ratio"]
        assert float(ratio_sum) == float(count) == 20


def test_clip_values_by_hand() -> None:
    """An edge at r = 1.5, A = 2 and one at r = 0.5, A = -1: -(1.2 * 2 - 0.8), both gradients clipped."""
    logits = torch.log(torch.tensor([[0.6, 0.4], [0.2, 0.8]], dtype=torch.float64)).requires_grad_()
    edges = Edges(
        a_pos_T=torch.tensor([2.0, 0.0]),
        a_neg_T=torch.tensor([0.0, -1.0]),
        weight_T=torch.ones(2),
        old_logp_T=torch.log(torch.tensor([0.4, 0.4], dtype=torch.float64)),
    )
    out = policy_loss(logits, torch.tensor([0, 0]), edges, Objective())
    assert float(out.loss.detach()) == pytest.approx(-1.6, abs=1e-14)
    out.loss.backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0.0
    assert [float(x) for x in out.stats["clipped"]] == [2.0, 2.0]
    assert float(out.stats["ratio"][0]) == pytest.approx(2.0, abs=1e-14)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("surrogate", [*SURROGATES, Soft(slope=2.0)], ids=str)
def test_shared_edges_equal_replicated_edges(surrogate: Surrogate, ratio: RatioName) -> None:
    shared, source, target, edge_M, replicated, hidden = shared_case()
    o = Objective(surrogate=surrogate, ratio=ratio, kl_coef=0.1, entropy_coef=0.03, importance_cap=1.1)
    head = normal(V, D, seed=17)
    results = []
    for edges, rows in ((shared, torch.arange(len(target))), (replicated, edge_M)):
        for impl in ("reference", "cpu"):
            leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
            out = linear_policy_loss(
                *leaves, target[rows], edges, o, source_T=source[rows], chunk_bytes=4 * V * 8, impl=impl
            )
            results.append((out.loss.detach(), *torch.autograd.grad(out.loss, leaves)))
    for other in results[1:]:
        for got, true in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, true, **EPS)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_linear_policy_loss_cpu_float32_within_budget(ratio: RatioName) -> None:
    shared, source, target, _, _, hidden = shared_case()
    o = Objective(ratio=ratio, kl_coef=0.1, entropy_coef=0.03, importance_cap=1.1)
    head = normal(V, D, seed=17)

    def run(impl: Impl, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = hidden.float().to(dtype).requires_grad_(), head.float().to(dtype).requires_grad_()
        out = linear_policy_loss(
            *leaves, target, shared, o, source_T=source, chunk_bytes=4 * V * 4, impl=impl
        )
        return out.loss.detach(), *torch.autograd.grad(out.loss, leaves)

    got, eagers = run("cpu", torch.float32), draws(lambda: run("reference", torch.float32))
    assert all(x.dtype == torch.float32 for x in got)
    assert_within_budget(got, eagers, run("reference", torch.float64))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_edges_of_zero_weight_contribute_nothing_even_from_nan(impl: Impl) -> None:
    hidden, head = torch.randn(4, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    on = torch.tensor([1.0, 0.0, 1.0, 0.0])
    nan = torch.tensor([-2.0, torch.nan, -2.0, torch.nan])
    edges = Edges(0.5 * on, -0.25 * on, on, nan, nan, nan)
    o = Objective(kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0)
    out = linear_policy_loss(hidden, head, torch.tensor([0, 1, 2, 3]), edges, o, impl=impl)
    out.loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert torch.isfinite(out.loss)
    assert torch.isfinite(head.grad).all()
    assert (hidden.grad[[1, 3]] == 0).all()
    assert (hidden.grad[[0, 2]] != 0).any()
    assert all(torch.isfinite(total) for total, _ in out.stats.values())
    assert float(out.stats["entropy"][1]) == 2


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "reinforce"])
def test_huge_ratios_stay_finite(surrogate: str) -> None:
    hidden, head = torch.randn(2, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    edges = Edges(
        torch.ones(2),
        -torch.ones(2),
        torch.ones(2),
        torch.tensor([-500.0, 400.0]),
        torch.tensor([-500.0, 400.0]),
        torch.tensor([-900.0, 900.0]),
    )
    o = Objective(surrogate=surrogate, kl_coef=0.1, importance_cap=2.0)
    out = linear_policy_loss(hidden, head, torch.tensor([0, 1]), edges, o)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert head.grad is not None
    assert torch.isfinite(head.grad).all()


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_frozen_parts_and_no_grad(impl: Impl) -> None:
    batch = make_batch()
    edges, target = edges_of(batch, "grpo", on_policy=False), batch.target_BL[batch.mask_BL]
    rows = batch.hidden_BLD[batch.mask_BL]
    full = rows.clone().requires_grad_(), batch.head_VD.clone().requires_grad_()
    want = torch.autograd.grad(linear_policy_loss(*full, target, edges, Objective(), impl=impl).loss, full)
    for moving in (0, 1):
        leaves = rows.clone(), batch.head_VD.clone()
        leaves[moving].requires_grad_()
        loss = linear_policy_loss(*leaves, target, edges, Objective(), impl=impl).loss
        torch.testing.assert_close(torch.autograd.grad(loss, leaves[moving])[0], want[moving], **EPS)
    with torch.no_grad(), LargestTensor(rows, batch.head_VD) as largest:
        loss = linear_policy_loss(*full, target, edges, Objective(), impl=impl).loss
    assert not loss.requires_grad
    assert largest.bytes > 0


def test_linear_policy_loss_never_holds_the_logits() -> None:
    num_rows, width, vocab = 200, 4, 3001
    hidden = torch.randn(num_rows, width, requires_grad=True)
    head = torch.randn(vocab, width, requires_grad=True)
    target = torch.randint(vocab, (num_rows,))
    ones = torch.ones(num_rows)
    ones[::3] = 0  # rows to be compacted away
    chunk_bytes = 20 * vocab * 4
    with LargestTensor(hidden, head) as largest:
        edges = Edges(ones, -0.5 * ones, ones)
        o = Objective(entropy_coef=0.01)
        linear_policy_loss(hidden, head, target, edges, o, chunk_bytes=chunk_bytes).loss.backward()
    assert vocab * width * 4 <= largest.bytes <= chunk_bytes


def test_cpu_gradients_are_handed_over_once() -> None:
    hidden, head = torch.randn(3, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    edges = Edges(torch.ones(3), torch.zeros(3), torch.ones(3))
    loss = linear_policy_loss(hidden, head, torch.tensor([0, 1, 2]), edges, Objective()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran already"):
        loss.backward()


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_no_edges_is_a_zero_loss(ratio: RatioName, impl: Impl) -> None:
    hidden, head = torch.randn(3, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    none, ids = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    edges = Edges(none, none, none, None, none, none, torch.zeros(1, dtype=torch.int64), ids, none, none, 0)
    o = Objective(ratio=ratio, kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0)
    out = linear_policy_loss(hidden, head, ids, edges, o, source_T=ids, impl=impl)
    out.loss.backward()
    assert float(out.loss.detach()) == 0.0
    assert head.grad is not None
    assert float(head.grad.abs().sum()) == 0.0


@pytest.mark.parametrize(("mask", "used"), [(False, [4.5, 4.0]), (True, [2.0, 4.0])])
def test_importance_stats_before_and_after_the_bounds(mask: bool, used: list[float]) -> None:
    """Raw weights 1, 4, 1/4, none, 1 within [1/2, 2]."""
    one = torch.ones(5)
    four = torch.tensor(4.0).log()
    rollout = torch.tensor([-1.0, -1.0 - four, -1.0 + four, torch.nan, -1.0])
    edges = Edges(one, 0 * one, one, -one, None, rollout)
    o = Objective(importance_cap=2.0, importance_low=0.5, importance_mask=mask)
    stats = policy_loss(torch.zeros(5, 4), torch.arange(5) % 4, edges, o).stats
    values = {k: [float(x) for x in v] for k, v in stats.items() if k.startswith("importance")}
    assert values["importance_raw"] == pytest.approx([6.25, 4.0], rel=1e-6)
    assert values["importance"] == pytest.approx(used, rel=1e-6)
    assert values["importance_outside"] == [2.0, 4.0]


@pytest.mark.parametrize("ratio", ["token", "sequence", "product"])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_edges_without_old_log_probability_are_on_policy(ratio: RatioName, impl: Impl) -> None:
    """NaN there = this policy's own, detached."""
    batch = make_batch()
    edges, target = edges_of(batch, "grpo", on_policy=False), batch.target_BL[batch.mask_BL]
    hidden = batch.hidden_BLD[batch.mask_BL]
    logp = torch.log_softmax(hidden @ batch.head_VD.T, -1).gather(1, target[:, None])[:, 0]
    assert edges.old_logp_T is not None
    some = torch.arange(len(logp)) % 3 == 0
    results = []
    for old_T in (torch.where(some, torch.nan, edges.old_logp_T), torch.where(some, logp, edges.old_logp_T)):
        leaves = hidden.clone().requires_grad_(), batch.head_VD.clone().requires_grad_()
        o = Objective(ratio=ratio, importance_cap=1.2)
        out = linear_policy_loss(
            *leaves, target, edges._replace(old_logp_T=old_T), o, chunk_bytes=3 * V * 8, impl=impl
        )
        results.append((out.loss.detach(), *torch.autograd.grad(out.loss, leaves)))
        results[-1] += tuple(value for _, value in sorted(out.stats.items()) for value in value)
    assert results[0][2].abs().max() > 1e-3
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **EPS)


@pytest.mark.parametrize(
    ("objective", "edges", "message"),
    [
        ({"kl_coef": 0.1}, {}, "edges.ref_logp_T: wanted with kl_coef=0.1, got None"),
        ({"importance_cap": 2.0}, {}, "edges.rollout_logp_T: wanted with importance_cap=2.0"),
        ({"ratio": "sequence"}, {}, "edges.member_\\*: wanted with ratio='sequence', got None"),
        ({}, {"weight_T": torch.ones(2)}, r"edges.weight_T: wanted \[3\] floating, got \[2\]"),
    ],
)
def test_edges_that_do_not_fit_are_refused(objective: dict, edges: dict, message: str) -> None:
    given = Edges(torch.ones(3), torch.ones(3), torch.ones(3))._replace(**edges)
    with pytest.raises(ValueError, match=message):
        policy_loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]), given, Objective(**objective))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surrogate": "ppo"}, "surrogate: wanted one of .* got 'ppo'"),
        ({"surrogate": Vespo()}, "ratio: wanted 'product' with surrogate='vespo', got 'token'"),
        ({"importance_cap": 0.5}, "importance_cap: wanted >= 1"),
        ({"importance_low": 1.5}, "importance_low: wanted in"),
    ],
)
def test_objective_names_what_is_wrong(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**fields)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Clip, {"low": -0.1}, "clip.low: wanted >= 0, got -0.1"),
        (Clip, {"high": float("nan")}, "clip.high: wanted >= 0, got nan"),
        (Clip, {"dual": 0.5}, "clip.dual: wanted > 1 or None, got 0.5"),
        (Cispo, {"high": -1.0}, "cispo.high: wanted > -1, got -1.0"),
        (Sapo, {"tau_neg": 0.0}, "sapo.tau_neg: wanted > 0, got 0.0"),
        (Vespo, {"k_neg": 0.0}, "vespo.k_neg: wanted > 0, got 0.0"),
    ],
)
def test_surrogates_name_what_is_wrong(kind: type[Surrogate], fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_a_record_that_no_operator_can_find_is_refused() -> None:
    class Hidden(Soft):
        pass

    edges, source, target, _, _, hidden = shared_case()
    given = (hidden[source], normal(V, D, seed=1), target, edges, Objective(surrogate=Hidden()))
    with pytest.raises(ValueError, match=r"wanted a class at the top of its module, got .*<locals>\.Hidden"):
        linear_policy_loss(*given, impl="cpu")
