"""The update: packed prefix trees through the backbone, the fused loss, and optimiser steps.

Old log-probabilities cost no pass of their own when a batch gets one optimiser step per pass over it: the
first pass runs on the weights that the update starts from, so its log-probabilities are the old ones. They
cost one with several minibatches (`optim.minibatches`, unless `objective.old_logp` is the rollout's) and with
importance weights of sequences, which multiply advantages before the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from g2rpo_kernels import Edges, linear_policy_loss
from transformers import PreTrainedModel

from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.metrics import Means
from g2rpo_fast.model import ModelConfig
from g2rpo_fast.objective import ObjectiveConfig, edges_of, kernel_objective
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.objective.importance import (
    Comparison,
    EngineTokens,
    compare,
    engine_tokens,
    mismatch_metrics,
    weighted,
)
from g2rpo_fast.optim import OptimConfig, apply_gradients
from g2rpo_fast.tree import TreeConfig, plan_trees
from g2rpo_fast.types import TreePlan


@dataclass(frozen=True)
class MicroBatch:
    """One packed stream of an optimiser step."""

    stream: Stream
    edges: Edges
    """Without old log-probabilities."""
    tokens: EngineTokens
    logp_T: torch.Tensor | None = None
    """This policy's before the update, or (rollout as old policy) when first seen; None = not known yet."""


@dataclass(frozen=True)
class Learner:
    """A policy in training: what an update reads, and the weights that it moves."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    reference: PreTrainedModel | None
    """The frozen policy of the KL term."""
    objective: ObjectiveConfig
    optim: OptimConfig
    tree: TreeConfig
    compute: ModelConfig
    temperature: float
    """Of sampling: training reads the distribution at it, the whole of it."""
    comparable: bool = True
    """The engine's log-probabilities are of that distribution: no top-p, no top-k."""

    @property
    def policy(self) -> Policy:
        return Policy(self.model, self.compute, self.temperature)

    def update(self, batches: Sequence[TrainBatch], *, lr: float) -> dict[str, float]:
        """Takes `optim.updates_per_batch` passes over `batches`, one optimiser step for each batch.

        Returns metrics: means over edges; the last gradient norm; the number of steps that were skipped for
        a non-finite gradient, and of last passes in a row in which all were; the engine's mismatch
        (`objective/importance.py`); and `loss`, the mean of the optimiser steps' own losses. Each of these is
        normalised over its own batch and counts once, however many rows that has; steps without a row to
        learn from are left out (0 if all are).
        """
        means, norm, skipped, bad_updates = Means(), 0.0, 0, 0
        steps = [self._micro_batches(batch) for batch in batches]
        compared: list[Comparison] = []
        if self._asks_first(len(steps)):
            steps = [
                [self._known(m, self.policy.logp(m.stream).logp_T, compared) for m in step] for step in steps
            ]
        for _ in range(self.optim.updates_per_batch):
            skipped_before = skipped
            for step in steps:
                for place, micro in enumerate(step):
                    logp_T = self._backward(micro, means, share=1.0 / len(step))
                    if micro.logp_T is None:
                        step[place] = self._known(micro, logp_T, compared)
                norm = apply_gradients(self.optimizer, lr=lr, max_grad_norm=self.optim.max_grad_norm)
                skipped += not math.isfinite(norm)
            bad_updates = bad_updates + 1 if skipped - skipped_before == len(steps) else 0
        plans = [micro.stream.plan for step in steps for micro in step]
        num_positions = sum(len(p.token_S) for p in plans)
        return {
            "loss": 0.0,
            **means.values(),
            **mismatch_metrics(compared, self.objective),
            "optim/grad_norm": norm,
            "optim/skipped": skipped,
            "optim/bad_updates": bad_updates,
            "update/positions": num_positions,
            "update/micro_batches": len(plans),
            "update/token_ratio": sum(p.unshared_tokens for p in plans) / num_positions
            if plans
            else math.nan,
        }

    def _asks_first(self, num_steps: int) -> bool:
        """Whether old log-probabilities take a pass of their own before the first step."""
        by_row = self.objective.importance_level in ("sequence", "geometric")
        return by_row or (num_steps > 1 and self.objective.old_logp == "trainer")

    def _looked_at(self, micro: MicroBatch, compared: list[Comparison]) -> MicroBatch:
        return self._known(micro, self.policy.logp(micro.stream).logp_T, compared)

    def _known(self, micro: MicroBatch, logp_T: torch.Tensor, compared: list[Comparison]) -> MicroBatch:
        """`micro` with its log-probabilities, and importance weights of rows if there are any."""
        comparison = compare(logp_T, micro.tokens, self.objective)
        if self.comparable:
            compared.append(comparison)
        if self.objective.importance_level in ("sequence", "geometric"):
            micro = replace(micro, edges=weighted(micro.edges, comparison.weight_B))
        return replace(micro, logp_T=logp_T)

    def _old_logp(self, micro: MicroBatch) -> torch.Tensor | None:
        """None, or NaN for an edge: on-policy there."""
        if self.objective.old_logp == "trainer":
            return micro.logp_T
        rollout_logp_T = micro.edges.rollout_logp_T
        assert rollout_logp_T is not None
        if micro.logp_T is None:
            return rollout_logp_T
        return torch.where(rollout_logp_T.isnan(), micro.logp_T, rollout_logp_T)

    def _micro_batches(self, batch: TrainBatch) -> list[MicroBatch]:
        plans = plan_trees(
            batch.sequences, token_budget=self.tree.token_budget, min_saved=self.tree.min_saved
        )
        return [self._micro_batch(batch, plan) for plan in plans]

    def _micro_batch(self, batch: TrainBatch, plan: TreePlan) -> MicroBatch:
        device = self.model.device
        edges = edges_of(
            plan,
            batch.sequences,
            batch.advantage_N,
            batch.weight_N,
            rollout_logp_N=batch.rollout_logp_N,
            device=device,
        )
        stream = Stream.of(plan, device)
        tokens = engine_tokens(plan, edges, batch.rollout_logp_N)
        if self.reference is not None:
            reference = replace(self.policy, model=self.reference)
            edges = edges._replace(ref_logp_T=reference.logp(stream).logp_T)
        return MicroBatch(stream=stream, edges=edges, tokens=tokens)

    def _backward(self, micro: MicroBatch, means: Means, *, share: float) -> torch.Tensor:
        """Adds this micro-batch's gradient, `share` of its step; returns its log-probabilities."""
        hidden_SD = self.policy.hidden(micro.stream.plan).hidden_SD
        edges = micro.edges._replace(old_logp_T=self._old_logp(micro))
        objective = kernel_objective(self.objective)
        out = self.policy.through_head(linear_policy_loss, hidden_SD, micro.stream, edges, objective)
        out.loss.backward()
        means.add("loss", out.loss.detach(), share)
        means.add_all(out.stats, prefix="update/")
        return out.logp_T
