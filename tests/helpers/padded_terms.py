"""Updates on padded rows in float64, as textbooks write them: nothing shared, SGD steps, three passes.

Rows of a group share their prompt, four of six a guidance prefix, two of these a part of what they sampled:
members of one edge differ in advantage, clip bounds, old policy and source.

Dimension key: N trained tokens, R rows, L padded length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from g2rpo_fast.learner import Learner
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.objective import ObjectiveConfig
from g2rpo_fast.objective.batch import make_batch, split_groups
from g2rpo_fast.objective.terms import Entropy, Kl
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.pieces import Scored, Term
from g2rpo_fast.tree import TreeConfig
from g2rpo_fast.types import SOURCES, Longs, Prompt, Rollout, Source
from scored import CLOCK, rewards_of
from updates import TEMPERATURE, assert_moved_alike, model64, padded

PASSES = 3
WHOLE, ONE_EACH, SPLIT = 8192, 26, 22
"""Positions of a micro-batch: all in one; a group in each; trees cut in two."""
ADVANTAGE_R = 0.4 * np.random.default_rng(5).standard_normal(18)
REWARD_R = np.array([1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0], np.float64)
"""The second group has no right answer."""


def rollouts(sources: tuple[Source, ...] = ("on_policy",)) -> list[Rollout]:
    """Three groups of six. The engine's log-probabilities of shared tokens differ from row to row."""
    rng = np.random.default_rng(2)
    made = []
    for group in range(3):
        prompt_ids, trace, part = (tuple(rng.integers(3, 14, n).tolist()) for n in (4 + group, 4, 3))
        prompt = Prompt(id=f"t:{group}", text="", token_ids=prompt_ids, answer="", trace_ids=trace)
        for member in range(6):
            given = trace if member < 4 else ()
            sampled = (part if member < 2 else ()) + tuple(rng.integers(3, 14, 2 + member % 3).tolist())
            ids = given + sampled
            logp = rng.normal(-2.5, 0.4, len(ids)).astype(np.float32)
            logp[: len(given)] = np.nan
            made.append(
                Rollout(
                    prompt=prompt, group=group, member=member, training_prompt_ids=prompt_ids,
                    sampling_prompt_ids=prompt_ids, response_ids=ids, guidance_len=len(given),
                    loss_mask=np.ones(len(ids), np.bool_), rollout_logp=logp, text="",
                    finish_reason="stop", weight_version=0, source=sources[member % len(sources)],
                )
            )  # fmt: skip
    return made


def unit_of(length: int) -> Longs:
    """Pairs of tokens; the last token of a response is of none."""
    return np.append(np.arange(length - 1) // 2, -1)


def batches(made: list[Rollout], minibatches: int = 1, *, cut: bool = False):
    return [
        make_batch(
            made,
            indices,
            ADVANTAGE_R,
            aggregation="sequence_mean",
            constant_length=20,
            keep_all=True,
            units=[unit_of(len(r.response_ids)) for r in made] if cut else None,
        )
        for indices in split_groups(made, minibatches)
    ]


def learner(terms: tuple[Term, ...], budget: int, minibatches: int = 1) -> Learner:
    model, reference = model64(), model64(0.95)
    for m in (model, reference):
        select_tree_attention(m)
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        reference=reference.requires_grad_(False),
        objective=ObjectiveConfig(),
        optim=OptimConfig(max_grad_norm=1e9, updates_per_batch=PASSES, minibatches=minibatches),
        tree=TreeConfig(token_budget=budget),
        compute=ModelConfig(),
        temperature=TEMPERATURE,
        terms=terms,
    )


@dataclass(frozen=True)
class Padded:
    """What a textbook loss reads: [R, L], or [R]."""

    logp: Tensor
    entropy: Tensor
    mask: Tensor
    old: Tensor
    ref: Tensor
    engine: Tensor
    """NaN where nothing was sampled."""
    advantage: Tensor
    """[R, 1]"""
    weight: Tensor
    reward_R: Tensor
    group_R: Tensor
    off: Tensor
    """[R, 1] bool"""

    def log_ratio(self, to: Tensor) -> Tensor:
        return torch.where(self.mask, self.logp - torch.where(to.isnan(), self.logp.detach(), to), 0.0)

    def sum(self, value: Tensor) -> Tensor:
        return torch.where(self.mask, self.weight * value, 0.0).sum()

    def row_mean(self, value: Tensor) -> Tensor:
        return torch.where(self.mask, value, 0.0).sum(1) / self.mask.sum(1)

    def penalties(self) -> Tensor:
        """0.1 of k3, 0.05 of the entropy."""
        d = torch.where(self.mask, self.ref - self.logp, 0.0)
        return 0.1 * self.sum(d.exp() - d - 1) - 0.05 * self.sum(self.entropy)


def minimum(ratio: Tensor, a: Tensor, low: Any, high: Any) -> Tensor:
    return torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


@dataclass(frozen=True)
class Case:
    terms: tuple[Term, ...]
    textbook: Callable[[Padded], Tensor]
    sources: tuple[Source, ...] = ("on_policy",)
    lr: float = 0.05
    penalised: bool = True
    """With KL and entropy beside."""
    cut: bool = False
    """Responses are cut into units (`unit_of`)."""

    @property
    def all_terms(self) -> tuple[Term, ...]:
        return (*self.terms, Kl(coef=0.1), Entropy(coef=0.05)) if self.penalised else self.terms

    def loss(self, x: Padded) -> Tensor:
        return self.textbook(x) + x.penalties() if self.penalised else self.textbook(x)


def read(model, reference, made: list[Rollout], old: Tensor | None) -> Padded:
    logp, entropy, mask, engine = padded(model, made)
    with torch.no_grad():
        ref = padded(reference, made)[0]
    index = [r.group * 6 + r.member for r in made]
    return Padded(
        logp=logp,
        entropy=entropy,
        mask=mask,
        old=logp.detach() if old is None else old,
        ref=ref,
        engine=engine.double(),
        advantage=torch.from_numpy(ADVANTAGE_R.astype(np.float32)).double()[index, None],
        weight=(1 / (len(made) * mask.sum(1, keepdim=True).double())).float().double().expand_as(logp),
        reward_R=torch.from_numpy(REWARD_R)[index],
        group_R=torch.tensor([r.group for r in made]),
        off=torch.tensor([[r.source == "off_policy"] for r in made]),
    )


def textbook_update(case: Case, parts: list[list[Rollout]]) -> tuple[Any, float]:
    """SGD steps on padded rows; the model, and the mean of the steps' losses."""
    model, reference, losses = model64(), model64(0.95), []
    with torch.no_grad():
        olds = [padded(model, part)[0] for part in parts]
    for _ in range(PASSES):
        for part, old in zip(parts, olds, strict=True):
            loss = case.loss(read(model, reference, part, old))
            loss.backward()
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(case.lr * p.grad)
                    p.grad = None
    return model, float(np.mean(losses))


def assert_updates_equal(case: Case) -> None:
    """Whole trees, a group in each micro-batch, and trees cut in two move the weights as padded rows do."""
    made = rollouts(case.sources)
    assert {r.source for r in made} == set(case.sources) <= set(SOURCES)
    scored = Scored(rollouts=tuple(made), rewards=rewards_of(REWARD_R[:, None]), clock=CLOCK)
    wanted, loss = textbook_update(case, [made])
    for budget, num_micros in ((WHOLE, 1), (ONE_EACH, 3), (SPLIT, 5)):
        ours = learner(case.all_terms, budget)
        assert ours.fused is None or case.sources != ("on_policy",)
        stats = ours.update(batches(made, cut=case.cut), lr=case.lr, scored=scored)
        assert stats["update/micro_batches"] == num_micros
        assert stats["loss"] == pytest.approx(loss, rel=1e-9)
        if "update/clipped" in stats:
            assert 0.05 < stats["update/clipped"] < 0.95
        assert_moved_alike(ours.model, wanted)
