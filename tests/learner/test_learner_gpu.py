"""The update and the tree forward in bfloat16, against padded rows in float64; on a GPU, and small on a CPU.

Error budget: see `budget`; eager is the padded side in bfloat16, and errors are Euclidean norms.
Dimension key: S packed tree positions, N tokens of all rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from budget import draws
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.objective.terms import Clip, Entropy, Kl
from g2rpo_fast.pieces import Scored, Term
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences
from objectives import Loss
from scored import CLOCK, rewards_of
from tree_models import FAMILIES, SHAPE, on_trees, rows
from updates import advantages, base_model, batches, learner, rollouts, textbook_loss

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
UPDATES = [
    ("cpu", "cascade"),
    pytest.param("cuda", "cascade", marks=ON_GPU),
    pytest.param("cuda", "triton", marks=ON_GPU),
]
FORWARDS = [
    ("cpu", "cascade", "qwen3"),
    ("cpu", "reference", "gemma2"),
    pytest.param("cuda", "cascade", "qwen3", marks=ON_GPU),
    pytest.param("cuda", "triton", "qwen3", marks=ON_GPU),
    pytest.param("cuda", "triton", "gemma2", marks=ON_GPU),
    pytest.param("cuda", "triton", "gemma3", marks=ON_GPU),
]
OBJECTIVE = Loss(kl_coef=0.1, entropy_coef=0.05)
TEXTBOOK_LOSS = -0.1109798


def worst_excess(got: Sequence[Tensor], eagers: Sequence[Sequence[Tensor]], truth: Sequence[Tensor]) -> float:
    """The greatest error of a value, or of all of them together, over its budget."""

    def error(value: Tensor, true: Tensor) -> float:
        assert value.isfinite().all()
        return float((value.detach().double() - true).norm())

    def excess(value: Tensor, same: Sequence[Tensor], true: Tensor) -> float:
        size = float(true.norm())
        assert size > 0
        allowed = 2 * max(error(x, true) for x in same) + torch.finfo(torch.bfloat16).eps * size
        return error(value, true) / allowed

    def flat(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.detach().double().flatten() for x in values])

    each = [excess(*values) for values in zip(got, zip(*eagers, strict=True), truth, strict=True)]
    return max(excess(flat(got), [flat(x) for x in eagers], flat(truth)), *each)


def gradients_of(loss: Tensor, model: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


class OwnClip(Clip):
    """No kernel knows it: its loss and those beside it run as they are written."""

    def kernel(self) -> None:
        return None


OWN: tuple[Term, ...] = (OwnClip(), Kl(coef=0.1), Entropy(coef=0.05))


def updated(
    device: str, attention: str, budget: int, terms: tuple[Term, ...]
) -> tuple[list[Tensor], dict[str, float]]:
    """(loss, norm of the gradient, every gradient) of one update in bfloat16, and its metrics."""
    compute = ModelConfig(precision="bfloat16", attention=attention)  # pyright: ignore[reportArgumentType]
    ours = learner(OBJECTIVE, budget=budget, compute=compute, device=device, terms=terms)
    scored = Scored(rollouts=tuple(rollouts()), rewards=rewards_of(np.ones((12, 1))), clock=CLOCK)
    stats = ours.update(batches(rollouts(), advantages(), OBJECTIVE), lr=1.0, scored=scored)
    start = base_model().to(device)
    pairs = zip(start.parameters(), ours.model.parameters(), strict=True)
    grads = [(a - b).detach() for a, b in pairs]  # the rate is 1
    told = [torch.tensor(stats[key], device=device) for key in ("loss", "optim/grad_norm")]
    return [*told, *grads], stats


def textbook(device: str, dtype: torch.dtype) -> list[Tensor]:
    """The same by padded rows: in float64, or in float32 with bfloat16 products."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    plain, reference = (base_model().to(device, working) for _ in range(2))
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.9)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = textbook_loss(plain, rollouts(), advantages(), None, reference, OBJECTIVE)
    grads = gradients_of(loss, plain)
    return [loss.detach(), torch.stack([g.double().square().sum() for g in grads]).sum().sqrt(), *grads]


@pytest.mark.parametrize("terms", [(), OWN], ids=["kernels", "own"])
@pytest.mark.parametrize("budget", [8192, 40])
@pytest.mark.parametrize(("device", "attention"), UPDATES)
def test_update_in_bfloat16_keeps_the_budget(
    device: str, attention: str, budget: int, terms: tuple[Term, ...]
) -> None:
    got, stats = updated(device, attention, budget, terms)
    truth = textbook(device, torch.float64)
    eagers = draws(lambda: textbook(device, torch.bfloat16))
    assert stats["update/micro_batches"] == (1 if budget == 8192 else 3)
    assert worst_excess(got, eagers, truth) <= 1.0
    assert float(truth[0]) == pytest.approx(TEXTBOOK_LOSS, rel=1e-5)
    again, _ = updated(device, attention, budget, terms)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def tiny(family: str) -> Any:
    """A causal model. Wide enough, and its weights small enough, that rounding is not amplified."""
    kind, extra = FAMILIES[family]
    size = SHAPE | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = AutoModelForCausalLM.from_config(kind(**size, **extra), attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            noise = 0.1 * torch.randn(p.shape, generator=generator)
            p.copy_(noise + p if p.dim() == 1 else noise)
    return model.float().eval()


def states_of(
    hidden: Callable[[], Tensor], model: Any, device: str, dtype: torch.dtype | None
) -> list[Tensor]:
    """[N, D] of all rows' tokens end to end, and gradients of a weighted sum of them."""
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden_ND = hidden()
    weight_ND = torch.linspace(-40, 40, hidden_ND.numel(), dtype=torch.float64).sin().view(hidden_ND.shape)
    used = [p for name, p in model.named_parameters() if not name.startswith("lm_head")]
    grads = torch.autograd.grad((hidden_ND * weight_ND.to(hidden_ND)).sum(), used)
    return [hidden_ND.detach(), *grads]


def by_rows(model: Any, sequences: Sequences) -> Tensor:
    """Every row by itself, in plain transformers."""
    ids_N = torch.from_numpy(sequences.ids_N).long().to(model.device)
    each = [ids_N[None, a:b] for a, b in pairwise(sequences.ptr_R1.tolist())]
    return torch.cat([model.model(input_ids=x, use_cache=False).last_hidden_state[0] for x in each])


def by_tree(model: Any, sequences: Sequences, attention: Any) -> Tensor:
    (plan,) = plan_trees(sequences, whole=True, impl="python")
    paths = {
        int(row): np.flatnonzero((np.arange(len(plan.end_S)) <= last) & (plan.end_S > last))
        for row, last in zip(plan.row_B, plan.last_B, strict=True)
    }
    index_N = torch.from_numpy(np.concatenate([paths[row] for row in range(len(paths))]))
    return tree_hidden(model, plan, attention=attention).hidden_SD[index_N.to(model.device)]


@pytest.mark.parametrize(("device", "attention", "family"), FORWARDS)
def test_tree_forward_in_bfloat16_keeps_the_budget(device: str, attention: str, family: str) -> None:
    sequences, *_ = rows(True)
    exact, stock = tiny(family).double().to(device), tiny(family).to(device)
    model, half = on_trees(stock), torch.bfloat16
    truth = states_of(lambda: by_rows(exact, sequences), exact, device, None)
    eagers = draws(lambda: states_of(lambda: by_rows(stock, sequences), stock, device, half))
    got = states_of(lambda: by_tree(model, sequences, attention), model, device, half)
    assert len(got) > 30
    assert worst_excess(got, eagers, truth) <= 1.0
