"""The policy loss of the GRPO family, from logits.

Dimension key: T trained edges, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.logprob import logprob
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss, checked_edges
from g2rpo_kernels.policy_loss.reference import loss_of

__all__ = ["Edges", "Objective", "PolicyLoss", "policy_loss"]


def policy_loss(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    impl: Impl | None = None,
) -> PolicyLoss:
    """loss = sum_T [-(a_pos plus(r) + a_neg minus(r)) importance + kl_coef w kl - entropy_coef w H].

    r = exp(logp - old_logp), or the member row's exp(mean log-ratio) for sequence ratios; `plus`, `minus`
    and the KL estimators are in `policy_loss/surrogates.py`. Log-ratios are clamped to +-20 before exp.
    Normalisation is in the weights of `edges`: nothing is divided here, so micro-batches add.

    Args:
        logits_TV: [T, V] floating; the only differentiable argument.
        target_T: [T] int64 or int32 in [0, V).
        edges: per-edge constants (see `Edges`), taken to the log-probabilities' device and dtype.
        objective: which loss (see `Objective`).
        temperature, softcap: as in `logprob`.
        impl: how the log-probabilities are computed, as in `logprob`. The objective itself is the same
            plain PyTorch on [T] vectors for both.

    Returns:
        `PolicyLoss(loss, logp_T, entropy_T, stats)`. `stats` maps names to (sum, count):
        `entropy`, `logp` over edges with a coefficient; `ratio`, `approx_kl` (k3 of old || new) and, for
        clip and cispo, `clipped` over entries of the surrogate; `kl` with ref_logp; with rollout_logp
        `importance_raw` (before the cap), and with a cap `importance` and `importance_capped` (fraction
        above it).

    Raises:
        ValueError: as `logprob`; an edge vector of another length; ref_logp, rollout_logp or members missing
            where the objective needs them.
    """
    checked_edges(edges, objective, len(target_T))
    logp_T, entropy_T, _ = logprob(logits_TV, target_T, temperature=temperature, softcap=softcap, impl=impl)
    return loss_of(logp_T, entropy_T, edges, objective)
