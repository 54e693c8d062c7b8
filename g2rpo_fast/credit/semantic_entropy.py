"""Prompts whose answers scatter get smaller updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from g2rpo_fast.bounds import Gt
from g2rpo_fast.pieces import Credit, PromptStore, Scored
from g2rpo_fast.types import Doubles


@dataclass(frozen=True, kw_only=True)
class SemanticEntropy(Credit):
    """a_i max(0, 1 - alpha SE / log G), SE = -1/K sum_k log p(C_k), after `center`.

    C_k = the k-th cluster of equal final answers of the group of G (rows without an answer are one), p(C_k) =
    its share of the group's sum of exp(sum of the engine's log-probabilities). SEED-GRPO (arXiv 2505.12346).

    Evidence: paper, but for the linear form of the factor (ours; the paper names it) and its bound at 0.
    """

    use = "semantic_entropy"
    compares = True
    alpha: Annotated[float, Gt(0)] = 0.02
    """How much of the advantage the largest entropy takes."""

    def __call__(self, a_R: Doubles, scored: Scored, store: PromptStore) -> Doubles:
        answers, group_R = scored.answers, scored.group_R
        logp_R = np.asarray([_log_likelihood(rollout.rollout_logp) for rollout in scored.rollouts])
        factor_R = np.ones(len(a_R))
        for group in np.unique(group_R):
            rows = np.flatnonzero(group_R == group)
            if len(rows) > 1:
                entropy = monte_carlo_entropy(logp_R[rows].tolist(), [answers[row] for row in rows])
                factor_R[rows] = max(0.0, 1 - self.alpha * entropy / math.log(len(rows)))
        return a_R * factor_R


def monte_carlo_entropy(logp: Sequence[float], answers: Sequence[str | None]) -> float:
    """-1/K sum_k log p(C_k) (nats) over the K clusters of equal answers; `logp` of each row, in nats."""
    clusters = {answer: [p for p, other in zip(logp, answers) if other == answer] for answer in answers}
    whole = _log_sum(logp)
    return math.fsum(whole - _log_sum(of_cluster) for of_cluster in clusters.values()) / len(clusters)


def _log_sum(logp: Sequence[float]) -> float:
    most = max(logp)
    return most + math.log(math.fsum(math.exp(p - most) for p in logp))


def _log_likelihood(logp: np.ndarray) -> float:
    """Of the sampled tokens."""
    return math.fsum(logp[~np.isnan(logp)].tolist())
