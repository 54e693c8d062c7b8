"""linear_logprob and linear_policy_loss with Triton's row kernels, interpreted: float32 and float16.

Same-precision eager (see `budget`) has logits of the operands' dtype, as in a plain model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import Edges, Objective, edge_coefficients, linear_logprob, linear_policy_loss, logprob
from g2rpo_kernels import policy_loss as policy_loss_of_logits
from g2rpo_kernels.linear_logprob import triton as linear_logprob_triton
from g2rpo_kernels.linear_logprob import triton_exponentials
from g2rpo_kernels.linear_policy_loss import triton as linear_policy_loss_triton
from g2rpo_kernels.linear_policy_loss.bins import row_cuts
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from budget import assert_within_budget, draws
from drawn import normal
from launched import kernel_names
from policy_cases import Soft
from products import Work

S, D, V, T, NUM_ROWS = 9, 8, 101, 26, 6
FEW_ROWS = 6 * 4 * V * 2
"""chunk_bytes: float16 in parts of 2 rows and chunks of 20; float32 in chunks of 12."""


BODIES = {
    "g2rpo::linear_logprob": linear_logprob_triton.forward_triton,
    "g2rpo::linear_logprob_backward": linear_logprob_triton.backward_triton,
    "g2rpo::linear_policy_gradients": linear_policy_loss_triton.gradients_triton,
}


class Case:
    """Two trees of three rows; siblings share their prompt's last position, and some edges are shared."""

    def __init__(self, weight: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(3)
        self.hidden, self.head, self.bias = (
            0.3 * normal(S, D, seed=0),
            normal(V, D, seed=1),
            0.1 * normal(V, seed=2),
        )
        self.target = torch.randint(V, (T,), generator=generator)
        self.source = torch.randint(S, (T,), generator=generator)
        counts = torch.ones(T, dtype=torch.int64)
        counts[[0, 1, 13]] = 3  # the trunk of each tree
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        edge = torch.repeat_interleave(counts)
        tree = (edge >= 13).long()
        row = tree * 3 + torch.cat(
            [torch.arange(int(n)) if n == 3 else torch.tensor([t % 3]) for t, n in enumerate(counts)]
        )
        advantage, weights = normal(len(edge), seed=4), weight * torch.ones(len(edge), dtype=torch.float64)
        weights[edge == 20] = 0
        coefficients = edge_coefficients(advantage, weights, ptr)
        logits = self.hidden[self.source] @ self.head.T
        logp = logprob(logits, self.target, impl="reference").logp_T
        self.edges = Edges(
            *coefficients,
            old_logp_T=logp + 0.3 * normal(T, seed=5),
            ref_logp_T=logp + 0.3 * normal(T, seed=6),
            rollout_logp_T=logp + 0.3 * normal(T, seed=7),
            member_ptr_T1=ptr,
            member_row_M=row,
            member_advantage_M=advantage,
            member_weight_M=weights,
            num_rows=NUM_ROWS,
        )

    def leaves(self, dtype: torch.dtype, bias: bool = True) -> list[Tensor]:
        """In `dtype`, of values that float16 holds."""
        values = (self.hidden, self.head, self.bias) if bias else (self.hidden, self.head)
        return [value.half().to(dtype).requires_grad_() for value in values]


def gradients(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


def fused(case: Case, leaves: list[Tensor], objective: Objective, **options: Any) -> Tensor:
    hidden, head, *bias = leaves
    return linear_policy_loss(
        hidden, head, case.target, options.pop("edges", case.edges), objective, source_T=case.source,
        bias_V=bias[0] if bias else None, impl="triton", **options,
    ).loss  # fmt: skip


def eager(case: Case, leaves: list[Tensor], objective: Objective, **options: Any) -> Tensor:
    logits = leaves[0][case.source] @ leaves[1].T
    if len(leaves) > 2:
        logits = logits + leaves[2]
    return policy_loss_of_logits(logits, case.target, case.edges, objective, impl="reference", **options).loss


def check(
    case: Case, objective: Objective, dtype: torch.dtype, chunk_bytes: int | None, **options: Any
) -> None:
    """Loss and all gradients of one objective."""
    edges, bias = options.pop("edges", case.edges), options.pop("bias", True)

    def run(op: Callable, kind: torch.dtype, **more: Any) -> tuple[Tensor, ...]:
        leaves = case.leaves(kind, bias)
        return gradients(op(case, leaves, objective, **options, **more), leaves)

    got = run(fused, dtype, chunk_bytes=chunk_bytes, edges=edges)
    assert got[1].dtype == got[2].dtype == dtype
    terms = float(edges.a_pos_T.sum() - edges.a_neg_T.sum())
    assert_within_budget(got, draws(lambda: run(eager, dtype)), run(eager, torch.float64), terms)


TOKEN = [
    Objective(),
    Objective(kl_coef=0.1, entropy_coef=0.03, importance_cap=1.1),
    Objective(importance_cap=2.0, importance_low=0.3, importance_mask=True),
    Objective(surrogate="cispo", kl="k2", kl_coef=0.1, kl_times_ratio=True),
    Objective(surrogate="sapo", entropy_coef=0.1),
    Objective(surrogate="reinforce"),
]
SEQUENCE = [
    Objective(ratio="sequence"),
    Objective(ratio="sequence", kl_coef=0.1, importance_cap=1.1),
    Objective(ratio="sequence", surrogate="sapo", entropy_coef=0.1),
    Objective(ratio="product", surrogate="vespo", kl_coef=0.1, kl_times_ratio=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("objective", TOKEN, ids=lambda o: o.surrogate.name)
def test_token_ratios_within_budget(objective: Objective, dtype: torch.dtype) -> None:
    for chunk_bytes, (temperature, softcap) in zip((None, FEW_ROWS), ((1.0, None), (0.7, 5.0)), strict=True):
        check(Case(), objective, dtype, chunk_bytes, temperature=temperature, softcap=softcap)


def test_a_surrogate_of_one_s_own_within_budget() -> None:
    check(Case(), Objective(surrogate=Soft(), entropy_coef=0.1), torch.float32, FEW_ROWS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("objective", SEQUENCE, ids=lambda o: o.surrogate.name)
def test_sequence_ratios_within_budget(objective: Objective, dtype: torch.dtype) -> None:
    case = Case()
    assert row_cuts(case.edges) == (13, 26)
    for chunk_bytes, softcap in ((None, None), (FEW_ROWS, 5.0), (FEW_ROWS // 2, None)):
        check(case, objective, dtype, chunk_bytes, softcap=softcap)


@pytest.fixture
def on_the_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a vocabulary as small as this one stay there, too."""
    monkeypatch.setattr(triton_exponentials, "LEAST_COLUMNS", 1)


@pytest.mark.usefixtures("on_the_chip")
@pytest.mark.parametrize("objective", [*TOKEN, *SEQUENCE], ids=lambda o: f"{o.ratio}-{o.surrogate.name}")
def test_ratios_from_exponentials_within_budget(objective: Objective) -> None:
    """In chunks of whole trees, and too small for one."""
    for chunk_bytes in (FEW_ROWS, FEW_ROWS // 4):
        check(Case(), objective, torch.float16, chunk_bytes, temperature=0.7, bias=False)


@pytest.mark.usefixtures("on_the_chip")
def test_a_surrogate_of_one_s_own_from_exponentials_within_budget() -> None:
    check(Case(), Objective(surrogate=Soft(), entropy_coef=0.1), torch.float16, FEW_ROWS, bias=False)


@pytest.mark.usefixtures("on_the_chip")
def test_sequence_ratios_with_entropy_take_three_products_from_exponentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four where the logits of a chunk are there in parts."""
    names, case = kernel_names(monkeypatch), Case()
    leaves = case.leaves(torch.float16, bias=False)
    objective = Objective(ratio="sequence", entropy_coef=0.1)
    gradients(fused(case, leaves, objective, chunk_bytes=FEW_ROWS), leaves)
    assert names.count("exponential_kernel") == names.count("tile_gradient_kernel") == 2  # a tree each


def test_weights_too_small_for_float16_keep_their_gradients() -> None:
    for objective in (Objective(kl_coef=0.1), Objective(ratio="sequence")):
        check(Case(weight=1e-7), objective, torch.float16, FEW_ROWS)


@pytest.mark.parametrize(
    ("moving", "objective", "chunk_bytes", "number"),
    [
        ((0, 1), Objective(), FEW_ROWS, 3),
        ((1,), Objective(), FEW_ROWS, 2),
        ((0,), Objective(), FEW_ROWS, 2),
        ((), Objective(), FEW_ROWS, 1),
        ((0, 1), Objective(ratio="sequence"), FEW_ROWS, 3),  # both trees fit a chunk
        ((0, 1), Objective(ratio="sequence"), FEW_ROWS // 2, 4),  # neither does
        ((0, 1), Objective(ratio="sequence", entropy_coef=0.1), FEW_ROWS, 4),
    ],
)
def test_number_of_products(
    moving: tuple[int, ...], objective: Objective, chunk_bytes: int, number: int
) -> None:
    case = Case()
    leaves = case.leaves(torch.float16, bias=False)
    want = gradients(eager(case, leaves, objective), leaves)
    used = [leaf if n in moving else leaf.detach() for n, leaf in enumerate(leaves)]
    with Work(BODIES) as work:
        loss = fused(case, used, objective, chunk_bytes=chunk_bytes)
        got = torch.autograd.grad(3 * loss, [leaves[n] for n in moving]) if moving else ()
    assert work.products == number * T * V * D
    assert loss.requires_grad == bool(moving)
    for n, value in zip(moving, got, strict=True):
        torch.testing.assert_close(value, want[1 + n], rtol=0.02, atol=0.02)


def test_memory_stays_within_chunk_bytes() -> None:
    vocab, rows = 4099, 60
    hidden, head = normal(rows, 2, seed=1).half(), normal(vocab, 2, seed=2).half()
    target, ones = torch.arange(rows), torch.ones(rows)
    for chunk_bytes, at_once in ((20 * 6 * vocab, 20 * 2 * vocab), (6 * 4 * vocab, 10 * 2 * vocab)):
        leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        with Work(BODIES) as work:
            edges = Edges(ones, -0.5 * ones, ones)
            out = linear_policy_loss(
                *leaves, target, edges, Objective(), chunk_bytes=chunk_bytes, impl="triton"
            )
            out.loss.backward()
        assert vocab * 2 * 4 < at_once <= work.largest_bytes <= chunk_bytes


def test_backward_runs_again_with_another_gradient() -> None:
    case = Case()
    leaves = case.leaves(torch.float32)
    loss = fused(case, leaves, Objective())
    one = torch.autograd.grad(loss, leaves, retain_graph=True)
    three = torch.autograd.grad(3 * loss, leaves)
    for a, b in zip(one, three, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(3 * a, b)


def test_tied_head_gets_both_gradients() -> None:
    case = Case()
    ids = torch.arange(S)

    def run(op: Callable, dtype: torch.dtype) -> tuple[Tensor, ...]:
        head = case.head.half().to(dtype).requires_grad_()
        return gradients(op(case, [head[ids].tanh(), head], Objective(kl_coef=0.1)), [head])

    eagers = draws(lambda: run(eager, torch.float32))
    assert_within_budget(run(fused, torch.float32), eagers, run(eager, torch.float64))


@pytest.mark.parametrize("reentrant", [False, True])
def test_works_under_activation_checkpointing(reentrant: bool) -> None:
    case = Case()

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return fused(case, [hidden.tanh(), head], Objective(entropy_coef=0.1))

    leaves = case.leaves(torch.float32, bias=False)
    want = torch.autograd.grad(loss(*leaves), leaves)
    value = checkpoint(loss, *leaves, use_reentrant=reentrant)
    if reentrant:  # takes .backward() only
        value.backward()
        got = [leaf.grad for leaf in leaves]
    else:
        got = torch.autograd.grad(value, leaves)
    for a, b in zip(got, want, strict=True):
        assert a is not None
        assert torch.equal(a, b)


def test_works_inside_a_compiled_caller() -> None:
    case = Case()

    def plain(hidden: Tensor, head: Tensor) -> Tensor:
        return 2 * fused(case, [hidden.tanh(), head], Objective()) + head.square().sum()

    leaves = case.leaves(torch.float32, bias=False)
    want = torch.autograd.grad(plain(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(plain, backend="aot_eager")(*leaves), leaves)
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_edges_of_zero_weight_contribute_nothing_even_from_nan() -> None:
    on = torch.tensor([1.0, 0.0, 1.0, 0.0])
    nan = torch.tensor([-2.0, torch.nan, -2.0, torch.nan])
    members = (torch.arange(5), torch.tensor([0, 0, 1, 1]), torch.ones(4), on, 2)
    for ratio in ("token", "sequence"):
        hidden, head = (
            normal(4, D, seed=1).float().requires_grad_(),
            normal(V, D, seed=2).float().requires_grad_(),
        )
        edges = Edges(0.5 * on, -0.25 * on, on, nan, nan, nan, *members)
        objective = Objective(ratio=ratio, kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0)
        out = linear_policy_loss(hidden, head, torch.tensor([0, 1, 2, 3]), edges, objective, impl="triton")
        out.loss.backward()
        assert hidden.grad is not None
        assert torch.isfinite(out.loss)
        assert (hidden.grad[[1, 3]] == 0).all()
        assert (hidden.grad[[0, 2]] != 0).any()


def test_no_edges_is_a_zero_loss() -> None:
    none, ids = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for dtype, ratio in itertools.product((torch.float32, torch.float16), ("token", "sequence")):
        hidden, head = (
            torch.randn(3, D).to(dtype).requires_grad_(),
            torch.randn(V, D).to(dtype).requires_grad_(),
        )
        edges = Edges(
            none, none, none, none, none, none, torch.zeros(1, dtype=torch.int64), ids, none, none, 0
        )
        out = linear_policy_loss(
            hidden, head, ids, edges, Objective(ratio=ratio), source_T=ids, impl="triton"
        )
        out.loss.backward()
        assert float(out.loss.detach()) == 0.0
        assert head.grad is not None
        assert float(head.grad.abs().sum()) == 0.0


def weighted(out: tuple[Tensor, ...]) -> Tensor:
    weights = normal(3, T, seed=9)
    return sum(((w.to(x) * x).sum() for w, x in zip(weights, out, strict=True)), out[0].new_zeros(()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 5.0)])
def test_linear_logprob_within_budget(dtype: torch.dtype, temperature: float, softcap: float | None) -> None:
    check_logprob(dtype, True, temperature=temperature, softcap=softcap)


@pytest.mark.usefixtures("on_the_chip")
def test_linear_logprob_from_exponentials_within_budget() -> None:
    check_logprob(torch.float16, False, temperature=0.7)


def check_logprob(dtype: torch.dtype, biased: bool, **scaling: Any) -> None:
    case = Case()

    def run(kind: torch.dtype, chunk_bytes: int | None = None, plain: bool = True) -> tuple[Tensor, ...]:
        hidden, head, *bias = leaves = case.leaves(kind, biased)
        if plain:
            logits = hidden[case.source] @ head.T + (bias[0] if biased else 0)
            out = logprob(logits, case.target, **scaling, impl="reference")
        else:
            out = linear_logprob(
                hidden, head, case.target, source_T=case.source, bias_V=bias[0] if biased else None,
                chunk_bytes=chunk_bytes, impl="triton", **scaling,
            )  # fmt: skip
        return *(x.detach() for x in out), *torch.autograd.grad(weighted(out), leaves)

    eagers, truth = draws(lambda: run(dtype)), run(torch.float64)
    for chunk_bytes in (None, FEW_ROWS):
        assert_within_budget(run(dtype, chunk_bytes, plain=False), eagers, truth)


def test_linear_logprob_absolute_value() -> None:
    """Logits 0 and log 3: p = 1/4, 3/4."""
    hidden = torch.tensor([[1.0, 0.0]])
    head = torch.tensor([[0.0, 0.0], [torch.tensor(3.0).log(), 0.0]])
    out = linear_logprob(hidden, head, torch.tensor([1]), impl="triton")
    assert float(out.logp_T[0]) == pytest.approx(-0.2876820724517809, abs=1e-7)
    assert float(out.entropy_T[0]) == pytest.approx(0.5623351446188083, abs=1e-7)
    assert float(out.lse_T[0]) == pytest.approx(1.3862943611198906, abs=1e-7)


def test_what_does_not_fit_is_refused() -> None:
    hidden, head, target = torch.zeros(2, D), torch.zeros(V, D), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="chunk_bytes: wanted >= 1, got 0"):
        linear_logprob(hidden, head, target, chunk_bytes=0, impl="triton")
    with pytest.raises(ValueError, match="impl='triton'"):
        linear_logprob(hidden.double(), head, target, impl="triton")


def test_float32_leaves_multiply_in_float16_and_get_float32_gradients() -> None:
    """`product_dtype`: the numbers of float16 leaves, and gradients that are not rounded to float16."""
    case = Case()
    given = (case.target, case.edges, Objective())
    wide = case.hidden.float().requires_grad_(), case.head.float().requires_grad_()
    narrow = case.hidden.half().requires_grad_(), case.head.half().requires_grad_()
    options: dict[str, Any] = {"source_T": case.source, "chunk_bytes": FEW_ROWS, "impl": "triton"}
    loss = linear_policy_loss(*wide, *given, product_dtype=torch.float16, **options).loss
    wanted = linear_policy_loss(*narrow, *given, **options).loss
    assert torch.equal(loss, wanted)
    found = zip(torch.autograd.grad(loss, wide), torch.autograd.grad(wanted, narrow), strict=True)
    for gradient, rounded in found:
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient.half(), rounded)
        assert not torch.equal(gradient, rounded.float())
    with torch.no_grad():
        logp_T = linear_logprob(*wide, case.target, product_dtype=torch.float16, **options).logp_T
        assert torch.equal(logp_T, linear_logprob(*narrow, case.target, **options).logp_T)
