"""A packed stream of an optimiser step, and what its loss reads besides the model.

Dimension key: T trained edges, N tokens of all rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from g2rpo_kernels import Edges
from torch import Tensor

from g2rpo_fast.learner.look import Look
from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.learner.routes import Routes
from g2rpo_fast.objective import ObjectiveConfig
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.objective.edges import edges_of
from g2rpo_fast.objective.importance import Comparison, EngineTokens, compare, engine_tokens, weighted
from g2rpo_fast.objective.tokens import Rows, rows_of, with_old
from g2rpo_fast.types import SOURCES, Doubles, Floats


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One packed stream of an optimiser step."""

    stream: Stream
    edges: Edges
    """Without old log-probabilities."""
    engine: EngineTokens
    rows: Rows | None
    """What terms see, where they and not the kernels compute the loss."""
    share: float = 1.0
    """Of the tokens of its optimiser step, had each row been encoded by itself."""
    routes: Routes | None = None
    """Through which experts the engine went, until a forward has been compared with it."""
    logp_T: Tensor | None = None
    """This policy's before the update, or (rollout as old policy) when first seen; None = not known yet."""
    entropy_T: Tensor | None = None
    """Of a look before the update."""

    @property
    def seen(self) -> tuple[Tensor, Tensor] | None:
        """(logp_T, entropy_T) before the update, if there was a look at both."""
        return None if self.logp_T is None or self.entropy_T is None else (self.logp_T, self.entropy_T)

    def known(self, logp_T: Tensor, config: ObjectiveConfig) -> tuple[MicroBatch, Comparison]:
        """With its log-probabilities, and with importance weights if there are any."""
        comparison = compare(logp_T, self.engine, config)
        edges, rows = self.edges, self.rows
        if config.importance_level in ("sequence", "geometric"):
            edges = weighted(edges, comparison.weight_M)
        if rows is not None:
            if config.importance != "none":
                rows = rows.weighted(comparison.weight_M)
            rows = replace(rows, tokens=with_old(rows, logp_T, engine=config.old_logp == "rollout"))
        return replace(self, logp_T=logp_T, edges=edges, rows=rows), comparison

    def old_logp(self, config: ObjectiveConfig) -> Tensor | None:
        """What the kernels' ratios are taken to: None, or NaN for an edge, is on-policy there."""
        if config.old_logp == "trainer":
            return self.logp_T
        rollout_logp_T = self.edges.rollout_logp_T
        assert rollout_logp_T is not None
        if self.logp_T is None:
            return rollout_logp_T
        return torch.where(rollout_logp_T.isnan(), self.logp_T, rollout_logp_T)


def micro_batch(
    policy: Policy,
    reference: Policy | None,
    batch: TrainBatch,
    stream: Stream,
    config: ObjectiveConfig,
    *,
    seen: Look | None,
    reward_R: Doubles | None,
) -> MicroBatch:
    """One stream of `batch`.

    Args:
        reference: the policy of a KL term.
        seen: the old policy, where it was looked at.
        reward_R: of the step's rollouts, where terms and not the kernels compute the loss.
    """
    plan, device = stream.plan, policy.model.device
    rollout_logp_N = _of_sampling_context(batch)
    edges = edges_of(
        plan, batch.sequences, batch.advantage_N, batch.weight_N, rollout_logp_N=rollout_logp_N, device=device
    )
    ref_logp_T = None if reference is None else reference.logp(stream).logp_T
    rows = None
    if reward_R is not None:
        dtype = torch.promote_types(policy.model.dtype, torch.float32)
        rows = rows_of(batch, plan, reward_R, dtype=dtype, device=device)
        if ref_logp_T is not None:
            ref_logp_N = ref_logp_T.to(dtype)[rows.edge_N]
            rows = replace(rows, tokens=replace(rows.tokens, ref_logp_N=ref_logp_N))
        rows = replace(rows, tokens=with_old(rows, None, engine=config.old_logp == "rollout"))
    return MicroBatch(
        stream=stream,
        edges=edges._replace(ref_logp_T=ref_logp_T),
        engine=engine_tokens(plan, edges, rollout_logp_N),
        rows=rows,
        entropy_T=None if seen is None else stream.gather(seen.entropy_N, device),
    )


def _of_sampling_context(batch: TrainBatch) -> Floats:
    """[N] the engine's log-probabilities, but for rows that it sampled in another context."""
    on_policy_R = batch.source_R == SOURCES.index("on_policy")
    on_policy_N = np.repeat(on_policy_R, np.diff(batch.sequences.ptr_R1))
    return np.where(on_policy_N, batch.rollout_logp_N, np.float32(np.nan))
