"""`token_loss`: any loss on log-probabilities and entropies, against the same on materialised logits.

Dimension key: S positions, D width, V vocabulary, T edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from g2rpo_kernels import (
    Cispo,
    Clip,
    Edges,
    Objective,
    Reinforce,
    Sapo,
    Surrogate,
    linear_logprob,
    linear_policy_loss,
    token_loss,
)
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.token_loss import LossFn, Ties
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from budget import Tolerance, WorstErrors, draws
from drawn import normal
from logit_rows import LargestTensor
from products import Work
from random_losses import NAMES, Draw, Problem, outcome
from token_losses import (
    BATCH,
    ROW_T,
    ROWS,
    D,
    T,
    Tied,
    V,
    example,
    of_batch,
    of_rows,
    of_tokens,
    with_entropy,
)

NUM_CASES = 204
EPS = Tolerance(rtol=1e-9, atol=1e-11)


def fused(p: Problem, dtype: torch.dtype, **more: Any) -> tuple[Tensor, ...]:
    hidden, head, bias, learnt = leaves = p.leaves(dtype)
    options = p.options(bias_V=bias, **more)
    out = token_loss(hidden, head, p.target, p.closing_over(learnt), **options)
    assert out.loss.dtype == torch.promote_types(dtype, torch.float32)
    return outcome(out.loss, leaves)


def test_random_losses_equal_the_book_in_float64() -> None:
    """Value and every gradient, what the loss closes over included, however the chunks cut the rows."""
    moved = dict.fromkeys(NAMES, 0)
    masked = confident = 0
    for seed in range(NUM_CASES):
        p = Problem(seed)
        want = p.by_the_book(torch.float64)
        chunk_bytes = p.chunk_rows * len(p.values[1]) * 8
        impls: list[dict[str, Any]] = [{"impl": "cpu", "chunk_bytes": chunk_bytes}]
        for options in impls if seed % 4 else [*impls, {"impl": "reference"}]:
            for name, got, true in zip(NAMES, fused(p, torch.float64, **options), want, strict=True):
                torch.testing.assert_close(got, true, **EPS, msg=lambda m: f"{name}, {seed}: {m}")  # noqa: B023
        for name, true in zip(NAMES, want, strict=True):
            moved[name] += bool(true.abs().max() > 1e-3)
        masked += int(p.masked_T.sum())
        confident += int((p.vectors(*(v.double() for v in p.values))[0] > -1e-3).sum())
    assert min(moved.values()) > NUM_CASES // 2, moved
    assert masked > 100
    assert confident > 10


def test_random_losses_within_budget_in_float32() -> None:
    errors = WorstErrors(torch.float32)
    for seed in range(NUM_CASES, NUM_CASES + 60):
        p = Problem(seed)
        got = fused(p, torch.float32, impl="cpu", chunk_bytes=p.chunk_rows * len(p.values[1]) * 4)
        eagers, truth = draws(lambda: p.by_the_book(torch.float32)), p.by_the_book(torch.float64)  # noqa: B023
        p.compare(errors, got, eagers, truth)
    errors.check()


@pytest.mark.parametrize(
    ("loss", "options", "rows_of_a_chunk", "number"),
    [
        (of_tokens, {}, 5, 3),
        (with_entropy, {}, 5, 3),
        (of_rows, ROWS, 24, 3),
        (of_rows, ROWS, 6, 3),
        (of_rows, ROWS, 13, 3),
        (of_rows, ROWS, 5, 4),
        (of_rows, {"ties": "row", "row_cuts": (12, 24)}, 12, 3),
        (of_rows, {"ties": "row", "row_cuts": (12, 24)}, 6, 4),
        (of_batch, BATCH, 24, 3),
        (of_batch, {"ties": "group"}, 24, 3),
        (of_batch, BATCH, 23, 4),
    ],
)
def test_number_of_products(loss: LossFn, options: Tied, rows_of_a_chunk: int, number: int) -> None:
    hidden, head, target = example()
    chunk_bytes = rows_of_a_chunk * V * 8
    with Work() as work:
        out = token_loss(hidden, head, target, loss, **options, chunk_bytes=chunk_bytes, impl="cpu")
        got = outcome(out.loss, [hidden, head])
    assert work.products == number * T * V * D
    want = outcome(token_loss(hidden, head, target, loss, **options, impl="reference").loss, [hidden, head])
    assert want[2].abs().max() > 1e-3
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value, true, **EPS)


def test_look_saves_the_fourth_product_and_must_be_of_these_inputs() -> None:
    hidden, head, target = example()
    known = linear_logprob(hidden.detach(), head.detach(), target)
    given: dict[str, Any] = {"ties": "batch", "impl": "cpu", "chunk_bytes": 5 * V * 8}
    want = outcome(token_loss(hidden, head, target, of_batch, **given).loss, [hidden, head])
    with Work() as work:
        look = (known.logp_T, known.entropy_T)
        got = outcome(token_loss(hidden, head, target, of_batch, look=look, **given).loss, [hidden, head])
    assert work.products == 3 * T * V * D
    for value, true in zip(got, want, strict=True):
        torch.testing.assert_close(value, true, **EPS)
    stale = known.logp_T.clone()
    stale[7] += 0.1
    with pytest.raises(ValueError, match=r"look: wanted the logp_T of these inputs, got .* at edge 7"):
        token_loss(hidden, head, target, of_batch, look=(stale, known.entropy_T), **given)
    with pytest.raises(ValueError, match=r"look: wanted entropy_T of \[24\], got \[3\]"):
        token_loss(hidden, head, target, of_batch, look=(stale, stale[:3]), **given)


@pytest.mark.parametrize(
    ("moving", "number"), [((0, 1, 2), 3), ((0, 1), 3), ((0, 2), 2), ((1,), 2), ((2,), 1), ((), 1)]
)
def test_frozen_parts_cost_no_product(moving: tuple[int, ...], number: int) -> None:
    """Hidden states, head, and a number that only the loss knows."""
    hidden, head, target = example()
    leaves = [hidden, head, torch.tensor(1.3, dtype=torch.float64, requires_grad=True)]

    def run(impl: Impl, used: list[Tensor]) -> Tensor:
        hidden, head, scale = used

        def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
            return (with_entropy(scale * logp_T, entropy_T)) * scale

        return token_loss(hidden, head, target, loss, impl=impl, chunk_bytes=5 * V * 8).loss

    want = torch.autograd.grad(run("reference", leaves), leaves)
    used = [leaf if n in moving else leaf.detach() for n, leaf in enumerate(leaves)]
    with Work() as work:
        value = run("cpu", used)
        assert value.requires_grad == bool(moving)
        got = torch.autograd.grad(value, [leaves[n] for n in moving]) if moving else ()
    assert work.products == number * T * V * D
    for n, gradient in zip(moving, got, strict=True):
        torch.testing.assert_close(gradient, want[n], **EPS)


@pytest.mark.parametrize("ties", ["token", "batch"])
def test_what_the_loss_closes_over_may_have_a_graph_of_its_own(ties: Ties) -> None:
    """A critic on the same hidden states: its gradient adds to that of the log-probabilities."""
    hidden, head, target = example()
    critic = normal(D, seed=8).requires_grad_()
    leaves = [hidden, head, critic]

    def run(**options: Any) -> tuple[Tensor, ...]:
        value_T = torch.tanh(hidden @ critic)

        def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
            return of_tokens(logp_T + value_T.square(), entropy_T) + (value_T * logp_T).mean()

        return outcome(token_loss(hidden, head, target, loss, ties=ties, **options).loss, leaves)

    want = run(impl="reference")
    for got, true in zip(run(impl="cpu", chunk_bytes=5 * V * 8), want, strict=True):
        assert true.abs().max() > 1e-3
        torch.testing.assert_close(got, true, **EPS)


def test_no_grad_computes_no_gradient() -> None:
    hidden, head, target = example()
    with torch.no_grad(), Work() as work:
        out = token_loss(hidden, head, target, of_tokens, impl="cpu")
    assert work.products == T * V * D
    assert not out.loss.requires_grad
    want = token_loss(hidden, head, target, of_tokens, impl="reference")
    for value, true in zip(out, want, strict=True):
        torch.testing.assert_close(value, true.detach(), **EPS)


@pytest.mark.parametrize(
    ("loss", "ties", "message"),
    [
        (of_rows, {}, "ties='token': wanted a loss that ties no more together"),
        (of_batch, {}, "ties='token'.* the gradient at edge 0 depends on others"),
        (of_batch, ROWS, "ties='row'"),
        (of_rows, {"ties": "row", "row_cuts": (3, 24)}, "ties='row'"),
        (lambda logp, h: (logp * torch.rand(T)).sum(), {}, "the same at every call"),
        (lambda logp, h: logp, {}, r"loss: wanted a 0-dim floating tensor, got \[24\] torch.float64"),
        (lambda logp, h: float(logp.detach().sum()), {}, "loss: wanted a 0-dim floating tensor, got float"),
        (lambda logp, h: (logp < 0).sum(), {}, r"wanted a 0-dim floating tensor, got \[\] torch.int64"),
        (lambda logp, h: logp.detach().sum(), {}, "wanted a value that depends on logp_T or entropy_T"),
        (lambda logp, h: (logp * torch.nan).sum(), {}, "loss: wanted a finite value, got nan"),
        (lambda logp, h: (logp + torch.inf).sum(), {}, "loss: wanted a finite value, got inf"),
        (lambda logp, h: torch.where(h < 0, logp.sqrt(), logp).sum(), {}, "finite gradients, got nan by"),
        (of_tokens, {"ties": "rows"}, "ties: wanted one of .* got 'rows'"),
        (of_tokens, {"ties": "row"}, "row_T, row_cuts: wanted one of them with ties='row', got 0"),
        (of_tokens, {"row_T": ROW_T}, "row_T, row_cuts: wanted neither with ties='token', got 1"),
        (of_tokens, {"ties": "row", "row_T": ROW_T[:3]}, r"row_T: wanted \[24\] integers, got \[3\]"),
        (of_tokens, {"ties": "row", "row_cuts": (6, 23)}, "row_cuts: wanted ascending positions up to 24"),
        (of_tokens, {"ties": "row", "row_cuts": (6, 6, 24)}, "row_cuts: wanted ascending"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(loss: Callable, ties: dict, message: str) -> None:
    hidden, head, target = example()
    with pytest.raises(ValueError, match=message) as refused:
        token_loss(hidden, head, target, loss, impl="cpu", chunk_bytes=5 * V * 8, **ties)
    assert "\n" not in str(refused.value)
    needs_a_pass = "ties='" in message or "every call" in message or "depends on others" in message
    if not needs_a_pass:
        with pytest.raises(ValueError, match=message):
            token_loss(hidden, head, target, loss, impl="reference", **ties)


def test_a_tie_of_one_ten_thousandth_is_refused() -> None:
    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        return logp_T.mean() + 1e-4 * logp_T.mean().square()

    hidden, head, target = example(torch.float32)
    with pytest.raises(ValueError, match="ties='token'"):
        token_loss(hidden, head, target, loss, chunk_bytes=5 * V * 4)
    assert token_loss(hidden, head, target, loss, ties="batch", chunk_bytes=5 * V * 4).loss.isfinite()


def test_entropy_that_matters_at_some_values_only() -> None:
    """Not at the placeholders, where the loss is first looked at."""

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        total = of_tokens(logp_T, entropy_T)
        return total if bool((logp_T == -1).all()) else total - 0.3 * entropy_T.mean()

    hidden, head, target = example()
    want = outcome(token_loss(hidden, head, target, loss, impl="reference").loss, [hidden, head])
    ties: tuple[Tied, ...] = ({}, BATCH)
    for options in ties:
        out = token_loss(hidden, head, target, loss, impl="cpu", chunk_bytes=5 * V * 8, **options)
        for value, true in zip(outcome(out.loss, [hidden, head]), want, strict=True):
            torch.testing.assert_close(value, true, **EPS)


def test_nan_that_the_loss_leaves_out_does_not_leak() -> None:
    hidden, head, target = example(torch.float32)
    mask_T = torch.arange(T) % 3 > 0
    old_T = torch.where(mask_T, -2.5, torch.nan)

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        log_ratio_T = torch.where(mask_T, logp_T - old_T, 0.0)
        return (log_ratio_T.exp() + torch.where(mask_T, entropy_T, 0.0)).sum()

    token_loss(hidden, head, target, loss, chunk_bytes=5 * V * 4).loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert head.grad.isfinite().all()
    assert (hidden.grad[~mask_T] == 0).all()
    assert (hidden.grad[mask_T] != 0).any(1).all()


def clip_edges() -> tuple[Edges, Tensor, Tensor]:
    """Rows of six edges with an advantage each, some of them outside every row; old and reference."""
    advantage_T, weight_T = normal(4, seed=7)[ROW_T], torch.full((T,), 1 / T, dtype=torch.float64)
    old_T, ref_T = (-2.5 + 0.5 * normal(T, seed=seed) for seed in (8, 9))
    scaled_T = weight_T * advantage_T
    edges = Edges(
        scaled_T.clamp(min=0), scaled_T.clamp(max=0), weight_T, old_T, ref_T,
        member_ptr_T1=torch.arange(T + 1), member_row_M=ROW_T, member_advantage_M=advantage_T,
        member_weight_M=weight_T, num_rows=4,
    )  # fmt: skip
    return edges, advantage_T, ref_T


def by_name(o: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """The named objectives as anybody would write them."""
    edges, advantage_T, ref_T = clip_edges()
    old_T = edges.old_logp_T
    assert old_T is not None

    def loss(logp_T: Tensor, entropy_T: Tensor) -> Tensor:
        a, log_ratio_T = advantage_T.to(logp_T), logp_T - old_T.to(logp_T)
        if o.ratio == "sequence":
            log_ratio_T = (logp_T.new_zeros(4).index_add(0, ROW_T, log_ratio_T) / 6)[ROW_T]
        r = log_ratio_T.exp()
        tau = torch.full_like(a, 1.05).masked_fill(a > 0, 1.0)
        value_T = {
            Clip(high=0.28): lambda: torch.minimum(r * a, r.clamp(0.8, 1.28) * a),
            Cispo(high=0.28): lambda: r.clamp(0.8, 1.28).detach() * a * logp_T,
            Sapo(): lambda: 4 / tau * torch.sigmoid(tau * (r - 1)) * a,
            Reinforce(): lambda: a * logp_T,
        }[o.surrogate]()
        d = logp_T - ref_T.to(logp_T)
        kl_T = {"k1": d, "k2": d.square() / 2, "k3": torch.expm1(-d) + d}[o.kl]
        return (o.kl_coef * kl_T - value_T - o.entropy_coef * entropy_T).mean()

    return loss


@pytest.mark.parametrize("surrogate", [Clip(high=0.28), Cispo(high=0.28), Sapo(), Reinforce()], ids=str)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(
    "penalty", [{}, {"kl_coef": 0.1}, {"kl": "k2", "kl_coef": 0.1, "entropy_coef": 0.03}], ids=str
)
def test_named_objectives_written_by_hand(surrogate: Surrogate, ratio: Any, penalty: dict) -> None:
    o = Objective(surrogate=surrogate, ratio=ratio, **penalty)
    hidden, head, target = example()
    given: dict[str, Any] = {"chunk_bytes": 7 * V * 8, "impl": "cpu"}
    named = linear_policy_loss(hidden, head, target, clip_edges()[0], o, **given)
    own = token_loss(hidden, head, target, by_name(o), **(ROWS if ratio == "sequence" else {}), **given)
    want, got = (outcome(out.loss, [hidden, head]) for out in (named, own))
    assert want[2].abs().max() > 1e-3
    for value, true in zip((*got, own.logp_T), (*want, named.logp_T), strict=True):
        torch.testing.assert_close(value, true, **EPS)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_absolute_value(impl: Impl) -> None:
    """Logits 0 and log 3: p = 1/4, 3/4. L = logp + 2 H; dL/dz = (1[target] - p) - 2 p (log p + H)."""
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    head = torch.tensor([[0.0, 0.0], [torch.tensor(3.0).log(), 0.0]], requires_grad=True)
    out = token_loss(hidden, head, torch.tensor([1]), lambda logp, h: logp.sum() + 2 * h.sum(), impl=impl)
    assert float(out.loss.detach()) == pytest.approx(-0.2876820724517809 + 2 * 0.5623351446188083, abs=1e-6)
    out.loss.backward()
    assert head.grad is not None
    log_p = -0.2876820724517809
    expected = 0.25 - 2 * 0.75 * (log_p + 0.5623351446188083)
    assert [float(x) for x in head.grad[:, 0]] == pytest.approx([-expected, expected], abs=1e-6)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("ties", [{}, {"ties": "batch"}, {"ties": "row", "row_cuts": ()}], ids=str)
def test_no_edges(impl: Impl, ties: dict) -> None:
    hidden, head, _ = example(torch.float32)
    none = torch.zeros(0, dtype=torch.int64)
    given: dict[str, Any] = {"source_T": none, "impl": impl} | ties
    if ties.get("row_cuts") == ():
        given = given | {"row_cuts": None, "row_T": none}
    token_loss(hidden, head, none, lambda logp, h: (logp + h).sum(), **given).loss.backward()
    assert head.grad is not None
    assert not head.grad.any()


def test_never_holds_the_logits() -> None:
    num_rows, width, vocab = 200, 4, 3001
    hidden, head = (torch.randn(n, width, requires_grad=True) for n in (num_rows, vocab))
    target, weight_T = torch.randint(vocab, (num_rows,)), (torch.arange(num_rows) % 3 > 0).float()
    chunk_bytes = 20 * vocab * 4
    for ties in ("token", "batch"):
        with LargestTensor(hidden, head) as largest:
            token_loss(
                hidden, head, target, lambda logp, h: (weight_T * (logp.exp() - 0.1 * h)).sum(),
                ties=ties, chunk_bytes=chunk_bytes,
            ).loss.backward()  # fmt: skip
        assert vocab * width * 4 <= largest.bytes <= chunk_bytes


def test_gradients_are_handed_over_once() -> None:
    hidden, head, target = example(torch.float32)
    loss = token_loss(hidden, head, target, of_tokens).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran already"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_works_under_activation_checkpointing(reentrant: bool) -> None:
    hidden, head, target = example(torch.float32)

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return token_loss(hidden.tanh(), head, target, with_entropy).loss

    want = torch.autograd.grad(loss(hidden, head), (hidden, head))
    checkpoint(loss, hidden, head, use_reentrant=reentrant).backward()
    for leaf, true in zip((hidden, head), want, strict=True):
        assert true.any()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, true)


def test_autocast_does_not_reach_it() -> None:
    hidden, head, target = example(torch.float32)

    def run() -> tuple[Tensor, ...]:
        return outcome(token_loss(hidden, head, target, with_entropy).loss, [hidden, head])

    want = run()
    with torch.autocast("cpu", torch.bfloat16):
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_compiles_to_one_graph() -> None:
    hidden, head, target = example(torch.float32)

    def run(hidden: Tensor, head: Tensor) -> Tensor:
        return token_loss(hidden.tanh(), head, target, with_entropy, chunk_bytes=5 * V * 4).loss

    want = outcome(run(hidden, head), [hidden, head])
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    got = outcome(compiled(hidden, head), [hidden, head])
    for value, true in zip(got, want, strict=True):
        assert true.abs().max() > 1e-3
        torch.testing.assert_close(value, true, rtol=1e-5, atol=1e-6)


def test_bfloat16_leaves_get_gradients_of_their_dtype() -> None:
    draw = Draw(0)
    hidden, head = (draw.normal(n, D).bfloat16().requires_grad_() for n in (T, V))
    target = torch.arange(T) % V
    got = outcome(token_loss(hidden, head, target, with_entropy).loss, [hidden, head])
    wide = [leaf.detach().double().requires_grad_() for leaf in (hidden, head)]
    exact = token_loss(wide[0], wide[1], target, with_entropy)
    want = outcome(exact.loss, wide)
    assert [value.dtype for value in got] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for value, true in zip(got, want, strict=True):
        eps = torch.finfo(value.dtype).eps
        torch.testing.assert_close(value.double(), true, rtol=eps, atol=eps * float(true.abs().max()))
