"""The ops on padded batches inside torch.compile: one graph, the eager numbers, reused for other batches.

Whatever stands at masked positions, NaN included, has no part in either.
Dimension key: B sequences, L positions of each, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from g2rpo_kernels import (
    FusedLinearGRPOLoss,
    GRPOOptions,
    group_advantage,
    grpo_loss,
    grpo_loss_of_logps,
    token_logprobs,
)
from g2rpo_kernels.group_advantage.reference import reference_op
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from drawn import normal

D, V = 6, 37
EPS: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
SHAPES = [(4, 5), (6, 7), (3, 9)]
PADDING = [torch.nan, torch.inf, -torch.inf]


class Batch(NamedTuple):
    ids: Tensor
    mask: Tensor
    advantages: Tensor
    old: Tensor
    ref: Tensor
    ratio: Tensor | None
    num_items: Tensor


def make_batch(rows: int, length: int, *, ratio: bool, padding: float) -> Batch:
    """A mask with holes and one row outside it, where log-probabilities are `padding` and ids are -100."""
    generator = torch.Generator().manual_seed(rows)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    mask[0], mask[1, 0], mask[1, 1], mask[2] = True, False, True, False
    ids = torch.randint(V, (rows, length), generator=generator)
    old, ref = (normal(rows, length, seed=seed) * 0.4 - 3.6 for seed in (4, 5))
    weights = (0.5 * normal(rows, length, seed=6)).exp()
    return Batch(
        ids=ids.masked_fill(~mask, -100),
        mask=mask.long(),
        advantages=normal(rows, length, seed=7).masked_fill(~mask, padding),
        old=old.masked_fill(~mask, padding),
        ref=ref.masked_fill(~mask, padding),
        ratio=weights if ratio else None,
        num_items=torch.tensor(31.0),
    )


def leaves_of(mask: Tensor, padding: float) -> tuple[Tensor, ...]:
    hidden = normal(*mask.shape, D, seed=1).masked_fill((mask == 0)[..., None], padding)
    return tuple(leaf.requires_grad_() for leaf in (hidden, normal(V, D, seed=2), normal(V, seed=3)))


def check_one_graph(function: Callable[..., tuple[Tensor, ...]], cases: list[tuple[Any, ...]]) -> None:
    """Of (leaves, *others): compiled for the first, and once more for any. Gradients are not 0, nor NaN."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for leaves, *others in cases:
        results = []
        for called in (function, compiled):
            loss, *seen = called(*leaves, *others)
            results.append((loss.detach(), *seen, *torch.autograd.grad(3 * loss, leaves)))
        for true, value in zip(*results, strict=True):
            assert value.isfinite().all()
            torch.testing.assert_close(value, true, **EPS)
        assert all(gradient.abs().max() > 1e-4 for gradient in results[0][-len(leaves) :])
    assert counter.frame_count == 2


def fused_loss(
    hidden: Tensor, head: Tensor, bias: Tensor, batch: Batch, *, op: FusedLinearGRPOLoss, on_policy: bool
) -> tuple[Tensor, ...]:
    loss, metrics = op(
        hidden,
        head,
        batch.ids,
        batch.mask,
        batch.advantages,
        bias=bias,
        ref_per_token_logps=batch.ref,
        old_per_token_logps=None if on_policy else batch.old,
        vllm_is_ratio=batch.ratio,
        num_items_in_batch=batch.num_items,
    )
    return loss, *metrics


FUSED = [
    ({"loss_type": "dapo", "beta": 0.0}, "cpu"),
    ({"importance_sampling_level": "sequence", "use_bias_correction_kl": True}, "cpu"),
    pytest.param({"loss_type": "grpo", "delta": 1.4}, "reference", marks=pytest.mark.deep),
    pytest.param({"loss_type": "bnpo", "entropy_coef": 0.03}, "cpu", marks=pytest.mark.deep),
    pytest.param({"loss_type": "cispo", "beta": 0.0, "entropy_coef": 0.03}, "cpu", marks=pytest.mark.deep),
    pytest.param({"loss_type": "vespo"}, "cpu", marks=pytest.mark.deep),
]


@pytest.mark.parametrize(("settings", "impl"), FUSED)
def test_fused_linear_loss_is_one_graph(settings: dict[str, Any], impl: Any) -> None:
    op = FusedLinearGRPOLoss(epsilon_high=0.9, impl=impl, **settings)
    for on_policy in (False, True) if op.options.loss_type == "vespo" else (False,):
        cases = []
        for shape, padding in zip(SHAPES, PADDING, strict=True):
            batch = make_batch(*shape, ratio=op.options.loss_type != "dapo", padding=padding)
            cases.append((leaves_of(batch.mask, padding), batch))
        check_one_graph(partial(fused_loss, op=op, on_policy=on_policy), cases)


def test_fused_linear_loss_over_padding_is_one_graph() -> None:
    """Liger's luspo, with a reference by its hidden states, and metrics with the entropy.

    There masked positions of a row with counted ones count, so they are finite: under sequence ratios all but
    old_logp.
    """

    def loss(hidden: Tensor, head: Tensor, bias: Tensor, batch: Batch, op: FusedLinearGRPOLoss) -> Any:
        ids = batch.ids.clamp(min=0)
        given = {"old_per_token_logps": batch.old, "ref_input": hidden.detach() * 0.9, "ref_weight": head}
        value, metrics = op(hidden, head, ids, batch.mask, batch.advantages[:, 0], bias=bias, **given)
        return value, *metrics

    batches = [make_batch(*shape, ratio=False, padding=-3.0) for shape in SHAPES]
    for level in ("token", "sequence"):
        op = FusedLinearGRPOLoss(loss_type="luspo", importance_sampling_level=level, entropy_coef=0.0)
        assert op.options.spreads_over_padding
        old = -3.0 if level == "token" else torch.inf
        cases = [
            (leaves_of(batch.mask, 0.5), batch._replace(old=batch.old.masked_fill(batch.mask == 0, old)))
            for batch in batches
        ]
        check_one_graph(partial(loss, op=op), cases)


def padded_losses(hidden: Tensor, head: Tensor, batch: Batch, *, options: GRPOOptions) -> tuple[Tensor, ...]:
    """From logits, with rewards; and from log-probabilities, with advantages."""
    logits = hidden @ head.T
    given: dict[str, Any] = {
        "old_logp": batch.old,
        "ref_logp": batch.ref if options.beta else None,
        "importance_ratio": batch.ratio,
        "options": options,
    }
    rewards = batch.advantages[:, 0].nan_to_num(0.25, 0.25, 0.25)
    first = grpo_loss(logits, batch.ids, batch.mask, rewards=rewards, group_size=len(rewards), **given)
    ids, shown = batch.ids.clamp(min=0)[..., None], torch.log_softmax(logits, -1)
    logps = shown.gather(-1, ids)[..., 0]
    entropies = -(shown.exp() * shown).sum(-1)
    second = grpo_loss_of_logps(logps, batch.mask, advantages=batch.advantages, entropies=entropies, **given)
    stats = (value for pair in (*first.stats.values(), *second.stats.values()) for value in pair)
    return first.loss + 2 * second.loss, first.logp_BL, second.entropy_BL, *stats


PADDED: list[Any] = [
    {"loss_type": "cispo", "beta": 0.1, "epsilon_high": 0.9, "entropy_coef": 0.03},
    pytest.param(
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1}, marks=pytest.mark.deep
    ),
]


@pytest.mark.parametrize("settings", PADDED)
def test_padded_losses_are_one_graph(settings: dict[str, Any]) -> None:
    """Finite logits at masked positions: rows of NaN have gradients of NaN."""
    batches = [make_batch(*shape, ratio=True, padding=p) for shape, p in zip(SHAPES, PADDING, strict=True)]
    cases = [(leaves_of(batch.mask, 50.0)[:2], batch) for batch in batches]
    check_one_graph(partial(padded_losses, options=GRPOOptions(**settings)), cases)


@pytest.mark.parametrize("tokens", [(), (2,)])
def test_token_logprobs_with_a_row_mask_are_one_graph(tokens: tuple[int, ...]) -> None:
    def loss(logits: Tensor, ids: Tensor, mask: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        logps = token_logprobs(logits, ids, 0.7, row_mask=mask, impl="cpu")
        return (logps * upstream).sum(), logps.detach()

    cases = []
    for shape, padding in zip(SHAPES, PADDING, strict=True):
        batch = make_batch(*shape, ratio=False, padding=padding)
        logits = normal(*shape, V, seed=1).masked_fill((batch.mask == 0)[..., None], padding)
        ids = batch.ids.reshape(*shape, *(1 for _ in tokens)).expand(*shape, *tokens)
        cases.append(((logits.requires_grad_(),), ids, batch.mask, normal(*ids.shape, seed=2)))
    check_one_graph(loss, cases)


@pytest.mark.parametrize(
    ("scale", "aggregation"),
    [("group", "sum_then_normalize"), ("group", "normalize_then_sum"), ("batch", "sum_then_normalize")],
)
def test_group_advantage_is_one_graph(scale: Any, aggregation: Any) -> None:
    def loss(leaf: Tensor, rewards: Tensor, group: Tensor) -> tuple[Tensor, ...]:
        advantage = group_advantage(rewards + 1, group, scale=scale, aggregation=aggregation)
        return (advantage * leaf).sum(), advantage

    sizes = [[4, 1, 3], [2, 2, 2, 5], [1, 3]]
    cases = []
    for lengths in sizes:
        group = torch.arange(len(lengths)).mul(-7).repeat_interleave(torch.tensor(lengths)).flip(0)
        leaf = normal(len(group), seed=1).requires_grad_()
        # Rewards that need a gradient get none.
        cases.append(((leaf,), normal(len(group), 2, seed=2).requires_grad_(), group))
    check_one_graph(loss, cases)


def test_compiled_group_advantage_by_hand() -> None:
    """Rewards 1, 0, 0, 1 have the mean 1/2 and the standard deviation sqrt(1/3)."""
    compiled = torch.compile(group_advantage, backend="aot_eager", fullgraph=True)
    got = compiled(torch.tensor([[1.0], [0.0], [0.0], [1.0], [5.0]]), torch.tensor([2, 2, 2, 2, 1]))
    assert got.tolist() == pytest.approx([0.8658754297, -0.8658754297, -0.8658754297, 0.8658754297, 0.0])


def test_group_advantage_passes_opcheck() -> None:
    group, weight = torch.tensor([5, 1, 5, 1]), torch.tensor([1.0, 0.5])
    for weight_K, aggregation in ((None, "sum_then_normalize"), (weight, "normalize_then_sum")):
        arguments = (normal(4, 2, seed=1).float(), group, weight_K, "group", aggregation, 1e-4)
        results = torch.library.opcheck(reference_op, arguments)
        assert len(results) == 4
        assert set(results.values()) == {"SUCCESS"}
    nothing = (torch.zeros(0, 1), torch.zeros(0).long(), None, "none", "sum_then_normalize", 1.0)
    assert reference_op(*nothing).shape == (0,)
