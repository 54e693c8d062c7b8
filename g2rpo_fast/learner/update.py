"""The update: packed prefix trees through the backbone, the loss, and optimiser steps.

Old log-probabilities cost no pass of their own when a batch gets one optimiser step per pass over it: the
first pass runs on the weights that the update starts from, so its log-probabilities are the old ones. A look
of its own, one for all, is taken where something must know them earlier: several minibatches with terms that
have a ratio, importance weights of sequences, token credit and weights that read the old policy.

Terms that the kernels know run there, summed over the members of an edge beforehand. All others see every
member (`losses.py`). Where terms tie rows together that lie in several micro-batches, the optimiser step
begins with a look at the present weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from g2rpo_kernels import Objective
from transformers import PreTrainedModel

from g2rpo_fast.learner.look import Look, hot_temperature, look
from g2rpo_fast.learner.losses import Loss, fused_loss, linear_loss, own_loss, strongest, tied_loss
from g2rpo_fast.learner.micro import MicroBatch, micro_batch
from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.learner.routes import ROUTING, forced_of, routes_of
from g2rpo_fast.learner.token_credit import credited, loud_rows
from g2rpo_fast.metrics import Means
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.model.replay import Replay
from g2rpo_fast.objective import ObjectiveConfig, fused_objective
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.objective.importance import Comparison, mismatch_metrics
from g2rpo_fast.optim import OptimConfig, apply_gradients
from g2rpo_fast.optim.in_backward import InBackward
from g2rpo_fast.pieces import Scored, Stats, Term, TokenCredit, TokenPiece, Weight
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import SOURCES, Bools, Report


@dataclass
class Tally:
    """What an update leaves besides its weights."""

    means: Means = field(default_factory=Means)
    compared: list[Comparison] = field(default_factory=list)
    report: Report | None = None
    """Is told of micro-batches done."""
    done: int = 0

    def tick(self) -> None:
        """A micro-batch has its gradient."""
        self.done += 1
        if self.report is not None:
            self.report(self.done)

    def add(self, loss: Loss, share: float) -> None:
        """Of a micro-batch that is `share` of its optimiser step."""
        self.means.add("loss", loss.loss.detach(), share)
        self.note(loss.stats)

    def note(self, stats: Stats) -> None:
        """Of a micro-batch."""
        for name, stat in stats.items():
            self.means.add(name if name == ROUTING else f"update/{name}", *stat)


@dataclass(frozen=True)
class Step:
    """The micro-batches of one optimiser step."""

    micros: list[MicroBatch]
    fused: bool
    """The kernels compute the loss."""
    tied: bool
    """Something that its terms tie together lies in several micro-batches."""


@dataclass(frozen=True)
class Passes:
    """How often an update takes every position through the backbone, and every trained token through the LM
    head. Averages over the optimiser steps of a pass."""

    looks: int
    """Forward passes before the first optimiser step: of the old policy, and of the reference."""
    forwards: float
    """Those with a gradient, and the looks that tied losses begin with."""
    backwards: float
    head_products: float
    """Matrix products with the head. Terms that tie rows or groups take one more where these do not fit a
    chunk of logits."""


@dataclass(frozen=True)
class Learner:
    """A policy in training: what an update reads, and the weights that it moves."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    reference: PreTrainedModel | None
    """The frozen policy of the KL term; `model` itself = without its adapters."""
    objective: ObjectiveConfig
    optim: OptimConfig
    tree: TreeConfig
    compute: ModelConfig
    temperature: float
    """Of sampling: training reads the distribution at it, the whole of it."""
    terms: tuple[Term, ...]
    """Of the loss."""
    comparable: bool = True
    """The engine's log-probabilities are of that distribution: no top-p, no top-k."""
    token_credit: tuple[TokenCredit, ...] = ()
    weights: tuple[Weight, ...] = ()
    replay: Replay | None = None
    """The policy's forwards go through the experts that the engine recorded."""

    def __post_init__(self) -> None:
        if self.reference is None and any("ref_logp" in term.needs for term in self.terms):
            raise ValueError("reference: wanted a policy for a term that reads ref_logp, got None")

    def using(
        self, token_credit: tuple[TokenCredit, ...], weights: tuple[Weight, ...], terms: tuple[Term, ...]
    ) -> Learner:
        """This learner with the pieces as they are in a step; itself where none has moved."""
        if (token_credit, weights, terms) == (self.token_credit, self.weights, self.terms):
            return self
        return replace(self, token_credit=token_credit, weights=weights, terms=terms)

    @property
    def policy(self) -> Policy:
        return Policy(self.model, self.compute, self.temperature, replay=self.replay)

    @cached_property
    def fused(self) -> Objective | None:
        """What the kernels compute, where they know all terms."""
        return fused_objective(self.terms, self.objective)

    @property
    def keeps_all(self) -> bool:
        """Whether rows without advantage may have a gradient, or get an advantage."""
        return bool(self.token_credit) or not self._by_advantage

    @property
    def _by_advantage(self) -> bool:
        return all(term.by_advantage for term in self.terms)

    def update(
        self,
        batches: Sequence[TrainBatch],
        *,
        lr: float,
        scored: Scored | None = None,
        report: Report | None = None,
    ) -> dict[str, float]:
        """Takes `optim.updates_per_batch` passes over `batches`, one optimiser step for each batch.

        Args:
            scored: the step's rows, which `TrainBatch.rollout_R` counts. Wanted with token credit, weights,
                terms that no kernel knows, and rows that are not on-policy.
            report: is told of micro-batches done, of all passes.

        Returns metrics: means over edges, or over the rows' tokens where terms see these; the last gradient
        norm; the number of steps that were skipped for a non-finite gradient, and of last passes in a row in
        which all were; the engine's mismatch (`objective/importance.py`); and `loss`, the mean of the
        optimiser steps' own losses. Each of these is normalised over its own batch and counts once, however
        many rows that has; steps without a row to learn from are left out (0 if all are).
        """
        tally, norm, skipped, bad_updates = Tally(report=report), 0.0, 0, 0
        steps = self._steps(batches, scored, tally)
        if report is not None:
            report(0, total=self.optim.updates_per_batch * sum(len(step.micros) for step in steps))
        moved = False
        for _ in range(self.optim.updates_per_batch):
            skipped_before = skipped
            for place, step in enumerate(steps):
                begun = InBackward(self.model, self.optimizer, lr) if self.optim.in_backward else None
                steps[place] = self._gradients(step, tally, moved=moved, begun=begun)
                norm = apply_gradients(
                    self.optimizer, lr=lr, max_grad_norm=self.optim.max_grad_norm, begun=begun
                )
                skipped += not math.isfinite(norm)
                moved = True
            all_bad = bool(steps) and skipped - skipped_before == len(steps)
            bad_updates = bad_updates + 1 if all_bad else 0
        plans = [micro.stream.plan for step in steps for micro in step.micros]
        num_positions = sum(len(p.token_S) for p in plans)
        return {
            "loss": 0.0,
            **tally.means.values(),
            **mismatch_metrics(tally.compared, self.objective),
            "optim/grad_norm": norm,
            "optim/skipped": skipped,
            "optim/bad_updates": bad_updates,
            "update/positions": num_positions,
            "update/micro_batches": len(plans),
            "update/token_ratio": sum(p.unshared_tokens for p in plans) / num_positions
            if plans
            else math.nan,
        }

    def _steps(self, batches: Sequence[TrainBatch], scored: Scored | None, tally: Tally) -> list[Step]:
        """Looks at the old policy if it must, credits tokens, and packs what there is to learn from."""
        pieces: tuple[TokenPiece, ...] = (*self.token_credit, *self.weights)
        reads_old = any(piece.needs for piece in pieces)
        looks: list[Look | None] = [None] * len(batches)
        if pieces and not reads_old:
            batches, looks = self._credited(batches, looks, scored)
        streams = [self._streams(batch, scored) for batch in batches]
        if reads_old or self._asks_first(batches):
            hot, moves = hot_temperature(pieces), any("influence" in piece.needs for piece in pieces)
            looks = [
                look(self.policy, of_batch, batch, hot=hot, right_B=_right(batch, scored) if moves else None)
                for batch, of_batch in zip(batches, streams, strict=True)
            ]
        if reads_old:
            batches, looks = self._credited(batches, looks, scored)
            streams = [self._streams(batch, scored) for batch in batches]
        return [self._step(*given, scored, tally) for given in zip(batches, streams, looks, strict=True)]

    def _asks_first(self, batches: Sequence[TrainBatch]) -> bool:
        """Whether ratios or importance weights need the old policy before the first step."""
        level = self.objective.importance_level
        if level in ("sequence", "geometric"):
            return True
        if level == "token" and not all(map(self._fuses, batches)):
            return True
        has_ratios = level == "token" or any("old_logp" in term.needs for term in self.terms)
        return len(batches) > 1 and self.objective.old_logp == "trainer" and has_ratios

    def _credited(
        self, batches: Sequence[TrainBatch], looks: Sequence[Look | None], scored: Scored | None
    ) -> tuple[list[TrainBatch], list[Look | None]]:
        """With their tokens' credit and weights; rows that are left without gradient are left out."""
        assert scored is not None, "token credit and weights want `scored`"
        made = credited(batches, looks, scored, self.token_credit, self.weights)
        if not self._by_advantage:
            return made, list(looks)
        rows = [loud_rows(batch) for batch in made]
        kept = [
            None if seen is None else seen.keep(batch.tokens_of(loud))
            for seen, batch, loud in zip(looks, made, rows, strict=True)
        ]
        return [batch.keep(loud) for batch, loud in zip(made, rows, strict=True)], kept

    def _streams(self, batch: TrainBatch, scored: Scored | None = None) -> list[Stream]:
        plans = plan_trees(
            batch.sequences, token_budget=self.tree.token_budget, min_saved=self.tree.min_saved
        )
        streams = [Stream.of(plan, self.model.device) for plan in plans]
        if self.replay is None or scored is None:
            return streams
        return [replace(s, forced=forced_of(routes_of(batch, s, scored.rollouts))) for s in streams]

    def _fuses(self, batch: TrainBatch) -> bool:
        on_policy = bool((batch.source_R == SOURCES.index("on_policy")).all())
        return self.fused is not None and on_policy

    def _ties(self, batch: TrainBatch, streams: Sequence[Stream]) -> bool:
        """Whether something that the terms tie together lies in several streams."""
        ties = strongest(self.terms)
        if self._fuses(batch) or len(streams) < 2 or ties in ("token", "row"):
            return False
        if ties == "batch":
            return True
        groups = [np.unique(batch.sequences.group_R[stream.plan.row_B]) for stream in streams]
        return len(np.unique(np.concatenate(groups))) < sum(map(len, groups))

    def passes(self, batches: Sequence[TrainBatch]) -> Passes:
        """What `update` will do with them, as far as it is known before token credit."""
        pieces: tuple[TokenPiece, ...] = (*self.token_credit, *self.weights)
        looked = any(piece.needs for piece in pieces) or self._asks_first(batches)
        hot = looked and hot_temperature(pieces) is not None
        referred = self.reference is not None and any("ref_logp" in term.needs for term in self.terms)
        updates = self.optim.updates_per_batch
        tied = [self._ties(batch, self._streams(batch)) for batch in batches]
        again = sum(tied) * updates - (looked and bool(tied) and tied[0])
        extra = again / max(len(batches), 1)
        return Passes(
            looks=looked + referred,
            forwards=updates + extra,
            backwards=updates,
            head_products=looked + hot + referred + 3 * updates + extra,
        )

    def _step(
        self,
        batch: TrainBatch,
        streams: Sequence[Stream],
        seen: Look | None,
        scored: Scored | None,
        tally: Tally,
    ) -> Step:
        fused, reward_R, reference = self._fuses(batch), None, None
        if not fused:
            assert scored is not None, "terms that no kernel knows want `scored`"
            reward_R = scored.rewards.total_R
        if self.reference is not None and any("ref_logp" in term.needs for term in self.terms):
            bare = self.reference is self.model
            reference = replace(self.policy, model=self.reference, bare=bare, replay=None)
        micros = []
        tokens = sum(stream.plan.unshared_tokens for stream in streams)
        with nullcontext() if reference is None else reference.rounded():
            for stream in streams:
                micro = micro_batch(
                    self.policy, reference, batch, stream, self.objective, seen=seen, reward_R=reward_R
                )
                routes = None if scored is None else routes_of(batch, stream, scored.rollouts)
                micro = replace(micro, share=stream.plan.unshared_tokens / tokens, routes=routes)
                if seen is not None:
                    micro = self._known(micro, stream.gather(seen.logp_N, self.model.device), tally)
                micros.append(micro)
        return Step(micros, fused, self._ties(batch, streams))

    def _known(self, micro: MicroBatch, logp_T: torch.Tensor, tally: Tally) -> MicroBatch:
        micro, comparison = micro.known(logp_T, self.objective)
        if self.comparable:
            tally.compared.append(comparison)
        return micro

    def _gradients(self, step: Step, tally: Tally, *, moved: bool, begun: InBackward | None) -> Step:
        """Adds an optimiser step's gradient; the step with what was seen on the way.

        Args:
            moved: the weights are no longer those that the update started from.
            begun: moves layers in the last micro-batch's backward pass.
        """
        gradients = self._tied_gradients if step.tied else self._micro_gradients
        if moved:  # the experts are those of other weights
            step = replace(step, micros=[replace(micro, routes=None) for micro in step.micros])
        with self.policy.rounded():
            return gradients(step, tally, moved=moved, begun=begun)

    def _micro_gradients(self, step: Step, tally: Tally, *, moved: bool, begun: InBackward | None) -> Step:
        """Of each micro-batch by itself."""
        micros = []
        for micro in step.micros:
            with _last_pass(begun, micro is step.micros[-1]), self.policy.forced(micro.stream):
                if step.fused:
                    assert self.fused is not None
                    found = fused_loss(self.policy, micro, self.fused, micro.old_logp(self.objective))
                else:
                    found = own_loss(self.policy, micro, self.terms, None if moved else micro.seen)
                found.loss.backward()
            tally.add(found, 1.0 / len(step.micros))
            tally.tick()
            micros.append(self._known(micro, found.logp_T, tally) if micro.logp_T is None else micro)
        return replace(step, micros=micros)

    def _tied_gradients(self, step: Step, tally: Tally, *, moved: bool, begun: InBackward | None) -> Step:
        """Of terms that tie several micro-batches together: a look at the present weights gives each its
        coefficients."""
        micros, seen = [], []
        for micro in step.micros:
            present = None if moved else micro.seen
            if present is None:
                found = self.policy.logp(micro.stream)
                present = found.logp_T, found.entropy_T
            seen.append(present)
            micros.append(self._known(micro, present[0], tally) if micro.logp_T is None else micro)
        tied = tied_loss(micros, self.terms, seen)
        value = tied.value
        for micro, coefficients in zip(micros, tied.coefficients, strict=True):
            last_pass = _last_pass(begun, micro is micros[-1])
            with last_pass, self.policy.forced(micro.stream):
                found = linear_loss(self.policy, micro, *coefficients)
                found.loss.backward()
            value = value + found.balance
            tally.note(found.stats)
            tally.tick()
        tally.add(Loss(value, value, tied.stats), 1.0)
        return replace(step, micros=micros)


def _last_pass(begun: InBackward | None, is_last: bool) -> AbstractContextManager[None]:
    return begun.last_pass() if begun is not None and is_last else nullcontext()


def _right(batch: TrainBatch, scored: Scored | None) -> Bools:
    """[rows of the batch] whether the row was paid."""
    assert scored is not None, "influence wants `scored`"
    return scored.rewards.total_R[batch.rollout_R] > 0
