"""What the grids of the other files leave out: float16 rows, logits of a policy loss past 2^31 elements, and
linear ops on rows that are easy to get wrong."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from g2rpo_kernels import (
    Edges,
    Objective,
    linear_logprob,
    linear_policy_loss,
    logprob,
    policy_loss,
)
from g2rpo_kernels.logprob.checks import Impl
from torch import Tensor

from budget import draws
from logit_rows import KINDS, rows, weighted
from random_policies import Errors, moved, random_case

DTYPES = [torch.float32, torch.float16]
OBJECTIVE = Objective(kl_coef=0.1, entropy_coef=0.05, importance_cap=1.2)


def near(logits: Tensor, target: Tensor, edges: Edges) -> Edges:
    """`edges` with log-probabilities near those of `logits`."""
    logp = torch.log_softmax(logits.double(), -1).gather(1, target[:, None])[:, 0]
    noise = 0.3 * torch.randn(3, len(target), generator=torch.Generator().manual_seed(4))
    old, ref, rollout = (logp + row for row in noise)
    return edges._replace(old_logp_T=old, ref_logp_T=ref, rollout_logp_T=rollout)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_rows_within_budget(kind: str) -> None:
    logits, target = rows(kind, 4, 2 * 2048 + 37)
    logits = logits.half()
    case = random_case(3, 4, logits.shape[1], (1.0, None))
    case = replace(case, logits=logits, target=target, edges=near(logits, target, case.edges))
    errors = Errors(torch.float16)
    errors.compare(case, OBJECTIVE)
    errors.compare(case, OBJECTIVE, overwrite=True)

    def run(impl: Impl, dtype: torch.dtype) -> list[Tensor]:
        leaf = logits.to(dtype, copy=True).requires_grad_()
        out = logprob(leaf, target, impl=impl)
        return [*(x.detach() for x in out), *torch.autograd.grad(weighted(out), leaf)]

    names = "logp", "entropy", "lse", "gradient of logprob"
    eagers = draws(lambda: run("reference", torch.float16))
    errors.add_all(names, run("triton", torch.float16), eagers, run("reference", torch.float64))
    errors.check()


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("stride", [(1 << 30, 1), (1, 1 << 29)], ids=["rows", "columns"])
def test_policy_loss_past_two_to_the_31_elements(ratio: str, stride: tuple[int, int]) -> None:
    """Over a storage whose pages are never touched between what is used."""
    case = random_case(1, 3, 5, (1.0, None))
    storage = torch.empty(2 * stride[0] + 4 * stride[1] + 1, dtype=torch.float16)
    logits = storage.as_strided((3, 5), stride).copy_(case.logits)
    assert len(storage) > 1 << 31
    o = replace(OBJECTIVE, ratio=ratio)

    def run(logits: Tensor) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        out = policy_loss(leaf, case.target, case.edges, o, overwrite_logits=True, impl="triton")
        return out.loss.detach(), torch.autograd.grad(out.loss, leaf)[0]

    want = run(case.logits.half())
    got = run(logits)
    assert got[1].data_ptr() == logits.data_ptr()
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert want[1].abs().max() > 0.1


class AwkwardHead:
    """Hidden states, head and bias whose logits are of one kind."""

    def __init__(self, kind: str, seed: int, vocab: int = 601) -> None:
        generator = torch.Generator().manual_seed(seed)
        hidden, head, bias = (
            torch.randn(*shape, generator=generator) for shape in ((4, 6), (vocab, 6), (vocab,))
        )
        self.target = torch.tensor([100, 4, 100, 301])
        if kind == "up":
            bias += 50
        if kind == "down":
            bias -= 50
        if kind == "confident":  # p(target) = 0.999 where the hidden state is near zero
            hidden *= 1e-3
            bias = torch.zeros(vocab)
            bias[100] = math.log(999 * (vocab - 1))
        if kind == "equal":
            hidden[:], bias[:] = 0, 2.5
        if kind == "impossible":
            bias[::3] = -torch.inf
        self.values = [value.half() for value in (hidden, head, bias)]
        edges = random_case(seed, 4, 5).edges
        self.edges = near(self.logits([value.double() for value in self.values]), self.target, edges)

    def logits(self, leaves: list[Tensor]) -> Tensor:
        return leaves[0] @ leaves[1].T + leaves[2]

    def run(self, dtype: torch.dtype, fused: bool) -> dict[str, Tensor]:
        """Results of both ops, and what their gradients are."""
        leaves = hidden, head, bias = [value.to(dtype).requires_grad_() for value in self.values]
        if fused:
            out = linear_logprob(hidden, head, self.target, bias_V=bias, impl="triton")
            policy = linear_policy_loss(
                hidden, head, self.target, self.edges, OBJECTIVE, bias_V=bias, impl="triton"
            )
        else:
            out = logprob(self.logits(leaves), self.target, impl="reference")
            policy = policy_loss(self.logits(leaves), self.target, self.edges, OBJECTIVE, impl="reference")
        found = {name: value.detach() for name, value in out._asdict().items()}
        found["loss"] = moved(policy.loss, self.edges.weight_T)
        for name, loss in (("logprob", weighted(out)), ("loss", policy.loss)):
            gradients = torch.autograd.grad(loss, leaves)
            found |= {
                f"gradient of {name} of {leaf}": value
                for leaf, value in zip(("hidden", "head", "bias"), gradients, strict=True)
            }
        return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_ops_within_budget_on_awkward_rows(dtype: torch.dtype) -> None:
    errors = Errors(dtype)
    for kind, seed in itertools.product(KINDS, range(4)):
        case = AwkwardHead(kind, seed)
        fused, truth = case.run(dtype, True), case.run(torch.float64, False)
        eagers = draws(lambda: list(case.run(dtype, False).values()))  # noqa: B023
        for (name, got), *same in zip(fused.items(), *eagers, strict=True):
            shifted = " shifted" * (kind in ("up", "down"))
            errors.add(name + shifted, got, same, truth[name])
            if kind == "equal" and name.endswith("of head"):  # the hidden states are zero
                assert not got.any()
            if kind == "impossible" and name.endswith("of bias"):
                assert not got[::3].any()
    errors.check()
