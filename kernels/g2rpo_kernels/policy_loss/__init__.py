"""The policy loss of the GRPO family, from logits.

Dimension key: T trained edges, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from g2rpo_kernels.checks import shows_nan
from g2rpo_kernels.logprob import logprob
from g2rpo_kernels.logprob.checks import Impl, check_index, check_rows, choose_impl
from g2rpo_kernels.policy_loss.from_rewards import Rewards, edges_from_rewards
from g2rpo_kernels.policy_loss.records import (
    PER_EDGE,
    Edges,
    Objective,
    PolicyLoss,
    check_given,
    check_vectors,
    checked_edges,
    explained,
)
from g2rpo_kernels.policy_loss.reference import loss_of

__all__ = ["Edges", "Objective", "PolicyLoss", "Rewards", "policy_loss", "policy_loss_from_rewards"]


def policy_loss(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    overwrite_logits: bool = False,
    impl: Impl | None = None,
) -> PolicyLoss:
    """loss = sum_T [-(a_pos plus(r) + a_neg minus(r)) importance + kl_coef w kl - entropy_coef w H].

    r = exp(logp - old_logp); with `sequence` ratios the member row's exp(mean log-ratio); with `product` ones
    its exp(sum of log-ratios) times its importance weights, which then stand nowhere else. Log-ratios are
    clamped to +-20 before exp. `plus`, `minus` are the surrogate's, see its record; the KL estimators are in
    `policy_loss/kl.py`. Normalisation is in the weights of `edges`: nothing is divided here, so micro-batches
    add.

    Args:
        logits_TV: [T, V] floating; the only differentiable argument.
        target_T: [T] int64 or int32 in [0, V).
        edges: per-edge constants (see `Edges`), taken to the log-probabilities' device and dtype.
        objective: which loss (see `Objective`).
        temperature, softcap: as in `logprob`.
        overwrite_logits: allows `triton` to write their gradient where the logits lie, in its only launch.
            Another op that needs them in its backward then raises. The gradient is handed over once. In
            forward the gradient of the loss is not known: what is stored, in the logits' dtype, is the
            gradient for 1, multiplied later. float16 loses entries below 3e-8, which weights of one in a
            batch of tokens times small probabilities are, and scaling the loss comes too late for them:
            scale the weights instead, or use bfloat16 or `linear_policy_loss`, which scales by itself.
        impl: `reference` and `cpu` compute the log-probabilities as `logprob` does and the objective in plain
            PyTorch on [T] vectors. `triton`, token ratios: one kernel from logits to loss, metrics and
            coefficients; d logits in the same launch with `overwrite_logits`, else in one on backward. Other
            ratios, and a surrogate of your own: one read of the logits for log-probabilities, the objective
            in PyTorch, one read for d logits. Once differentiable; float32. None = as in `logprob`.

    Returns:
        `PolicyLoss(loss, logp_T, entropy_T, stats)`. `stats` maps names to (sum, count):
        `entropy`, `logp` over edges with a coefficient; `ratio`, `approx_kl` (k3 of old || new) and, for
        clip and cispo, `clipped` over entries of the surrogate; `kl` with ref_logp; with rollout_logp
        `importance_raw` (before the bounds), and with a cap `importance` (as used) and `importance_outside`
        (fraction outside the bounds).

    Raises:
        ValueError: as `logprob`; an edge vector of another length or dtype; ref_logp, rollout_logp or members
            missing where the objective needs them. On the CPU, outside `torch.compile`, also coefficients and
            weights of the edges that are not finite; elsewhere they make the loss NaN. A ref_logp of NaN
            makes it NaN everywhere; what NaN means in the others is said in `Edges`.
    """
    checked_edges(edges, objective, len(target_T))
    check_rows(logits_TV, target_T, temperature, softcap)
    if choose_impl(impl, logits_TV) == "triton":
        from g2rpo_kernels.policy_loss.triton_loss import policy_loss_triton

        scaling = (temperature, softcap)
        out = policy_loss_triton(logits_TV, target_T, edges, objective, *scaling, overwrite_logits)
        return explained(out, edges)
    logp_T, entropy_T, _ = logprob(logits_TV, target_T, temperature=temperature, softcap=softcap, impl=impl)
    return explained(loss_of(logp_T, entropy_T, edges, objective), edges)


def policy_loss_from_rewards(
    logits_TV: Tensor,
    target_T: Tensor,
    rewards: Rewards,
    weight_T: Tensor,
    objective: Objective,
    *,
    old_logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    rollout_logp_T: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    overwrite_logits: bool = False,
    impl: Impl | None = None,
) -> PolicyLoss:
    """`group_advantage`, then `policy_loss` of one member per token; for `triton` still one launch.

    In it each program finds the mean and standard deviation of its rollout's group in the rewards: they are
    few beside a row of logits. Only for rollouts that share no token: else `edge_coefficients`.

    Args:
        logits_TV, target_T: as in `policy_loss`.
        rewards: see `Rewards`.
        weight_T: [T] floating, weight of each token.
        objective: which loss (see `Objective`).
        old_logp_T, ref_logp_T, rollout_logp_T: [T], as in `Edges`.
        temperature, softcap, overwrite_logits, impl: as in `policy_loss`.

    Returns:
        `PolicyLoss` as of `policy_loss`.

    Raises:
        ValueError: as `group_advantage` and `policy_loss`.
    """
    rewards.check()
    logps = (old_logp_T, ref_logp_T, rollout_logp_T)
    check_rows(logits_TV, target_T, temperature, softcap)
    check_index("row_T", rewards.row_T, len(rewards.reward_RK), len(target_T))
    edges = Edges(weight_T, weight_T, weight_T, *logps)
    check_vectors(dict(zip(PER_EDGE[2:], edges[2:6], strict=True)), len(target_T))
    check_given(edges, objective, prefix="")
    if shows_nan(weight_T):
        raise ValueError("weight_T: wanted finite, got values that are not")
    if objective.one_launch and choose_impl(impl, logits_TV) == "triton":
        from g2rpo_kernels.policy_loss.triton_loss import policy_loss_from_rewards_triton

        scaling = (temperature, softcap)
        return policy_loss_from_rewards_triton(
            logits_TV, target_T, edges, rewards, objective, *scaling, overwrite_logits
        )
    return policy_loss(
        logits_TV,
        target_T,
        edges_from_rewards(rewards, weight_T, *logps),
        objective,
        temperature=temperature,
        softcap=softcap,
        overwrite_logits=overwrite_logits,
        impl=impl,
    )
