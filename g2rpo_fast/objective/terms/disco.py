"""Scores of right answers against those of wrong ones, and a penalty for leaving the old policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Ge, Gt, InfinityToo
from g2rpo_fast.objective.terms.rows import (
    bounded,
    group_maxima,
    group_sums,
    log_ratio,
    mean,
    row_means,
    safe,
)
from g2rpo_fast.pieces import Term, Ties, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Disco(Term):
    """-(1 / groups) sum over groups with both kinds of [mean_P s - tau log mean_N exp(s / tau)] + penalty.

    s_i = mean over the row's tokens of logp, or of the ratio; P rows with a reward above 0, N the others.
    penalty = sg(max(0, beta (K - delta))) K with K = the batch's mean of old_logp - logp. tau = inf: mean_N s
    (DisCO-b). DisCO (arXiv 2505.12366). Evidence: code.
    """

    use = "disco"
    score: Literal["logp", "ratio"] = "logp"
    """Of a row: its mean log-probability, or its mean ratio."""
    tau: Annotated[float, Gt(0), InfinityToo] = 10.0
    """10 for logp, 1 for ratio in the paper; inf = DisCO-b."""
    beta: Annotated[float, Ge(0)] = 1e3
    """Weight of the squared hinge on the divergence; 0 = none."""
    delta: Annotated[float, Ge(0)] = 1e-4
    """How far the policy may go for nothing, in nats."""

    @property
    def ties(self) -> Ties:
        return "batch" if self.beta else "group"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_logp"} if self.beta or self.score == "ratio" else ())

    def __call__(self, logp_N: Tensor, entropy_N: Tensor, tokens: Tokens) -> Tensor:
        log_ratio_N = log_ratio(logp_N, tokens.old_logp_N, tokens)
        score_N = safe(logp_N, tokens) if self.score == "logp" else bounded(log_ratio_N).exp()
        margin_Q, both_Q = self.margins(row_means(score_N, tokens), tokens)
        loss = -(margin_Q * both_Q).sum() / tokens.batch_groups
        if not self.beta:
            return loss
        k = mean(-log_ratio_N, tokens)
        return loss + (self.beta * (k.detach() - self.delta)).clamp(min=0) * k

    def margins(self, score_R: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """[Q] of each group, 0 where it lacks a kind; [Q] 1 where it has both, else 0."""
        right_R = (tokens.reward_R > 0).to(score_R)
        right_Q, wrong_Q = group_sums(right_R, tokens), group_sums(1 - right_R, tokens)
        both_Q = ((right_Q > 0) & (wrong_Q > 0)).to(score_R)
        right_mean_Q = group_sums(right_R * score_R, tokens) / right_Q.clamp(min=1)
        if math.isinf(self.tau):
            wrong_mean_Q = group_sums((1 - right_R) * score_R, tokens) / wrong_Q.clamp(min=1)
            return right_mean_Q - wrong_mean_Q, both_Q
        # log-mean-exp of the wrong ones, less their largest.
        wrong_R = score_R.masked_fill(right_R > 0, -math.inf)
        top_Q = group_maxima(wrong_R, tokens).clamp(min=-1e30)
        scaled_R = ((score_R - top_Q[tokens.group_R]) / self.tau).masked_fill(right_R > 0, 0.0)
        sum_Q = group_sums((1 - right_R) * scaled_R.exp(), tokens) + (wrong_Q == 0)
        soft_Q = top_Q + self.tau * (sum_Q / wrong_Q.clamp(min=1)).log()
        return right_mean_Q - soft_Q.where(both_Q > 0, 0.0), both_Q
