"""`policy_loss` on Triton: what is differentiable about it.

Token ratios: one launch computes loss, metrics and coefficients; d logits are written in that same launch
over the logits if they may be overwritten, else in backward from the coefficients: the same two reads and one
write. Ratios that tie rows together, surrogates without a device function: log-probabilities, the PyTorch
objective on [T], then d logits.

Dimension key: T trained edges, V vocabulary, R rollouts, K reward channels.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from g2rpo_kernels.logprob.triton import logprob_triton, row_gradient_, row_numbers
from g2rpo_kernels.logprob.triton_launch import check_logits, on_device, tile_for
from g2rpo_kernels.policy_loss.from_rewards import Rewards
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of
from g2rpo_kernels.policy_loss.stats import Stats
from g2rpo_kernels.policy_loss.surrogates import surrogate_of
from g2rpo_kernels.policy_loss.triton import RowCall, RowInputs, called
from g2rpo_kernels.policy_loss.triton_objective import STAT_ROWS

MASKS = {
    "entropy": "active",
    "logp": "active",
    "kl": "active",
    "ratio": "used",
    "approx_kl": "used",
    "clipped": "used",
    "importance_raw": "sampled",
    "importance": "sampled",
    "importance_outside": "sampled",
}
"""Metric -> the mask that it is averaged over."""


@triton.jit
def scale_kernel(
    values_ptr, factor_ptr, num_v, stride_t, stride_v, BLOCK_V: tl.constexpr, STAGES: tl.constexpr
):
    """values_TV *= factor; nothing is touched where it is 1, and the host need not know."""
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        row_ptr = values_ptr + tl.program_id(0).to(tl.int64) * stride_t
        lane_v = tl.arange(0, BLOCK_V)
        for start in tl.range(0, num_v, BLOCK_V, num_stages=STAGES):
            ptr_v = row_ptr + (start + lane_v.to(tl.int64)) * stride_v
            mask_v = lane_v < num_v - start
            value_v = tl.load(ptr_v, mask=mask_v, other=0.0).to(tl.float32) * factor
            tl.store(ptr_v, value_v.to(values_ptr.dtype.element_ty), mask=mask_v)


def _scale_(values_TV: Tensor, factor: Tensor) -> None:
    if not values_TV.numel():
        return
    with on_device(values_TV):
        scale_kernel[(len(values_TV),)](
            values_TV,
            factor,
            num_v=values_TV.shape[1],
            stride_t=values_TV.stride(0),
            stride_v=values_TV.stride(1),
            **tile_for(values_TV).options,
        )


class _Overwritten(Function):
    """Attaches to the loss d logits that lie where the logits were. Handed over once."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, loss: Tensor, dlogits_TV: Tensor) -> Tensor:
        ctx.dlogits_TV = dlogits_TV
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.dlogits_TV is None:
            raise RuntimeError("policy_loss: backward ran already; its gradient was handed over")
        dlogits_TV, ctx.dlogits_TV = ctx.dlogits_TV, None
        _scale_(dlogits_TV, grad_loss)
        return dlogits_TV, None, None


@torch.library.custom_op("g2rpo::attach", mutates_args=())
def _attach(
    logits_TV: Tensor,
    loss: Tensor,
    target_T: Tensor,
    lse_T: Tensor,
    entropy_T: Tensor,
    c_T: Tensor,
    e_T: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """The loss, as a function of the logits whose gradient the coefficients make."""
    return loss.clone()


@_attach.register_fake
def _(logits_TV: Tensor, loss: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(loss)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits_TV, _, *vectors, ctx.temperature, ctx.softcap = inputs
    ctx.save_for_backward(logits_TV, *vectors)


@once_differentiable
def _backward(ctx: Any, grad_loss: Tensor) -> Any:
    logits_TV, target_T, lse_T, entropy_T, c_T, e_T = ctx.saved_tensors
    dlogits_TV = row_gradient_(
        logits_TV,
        target_T,
        lse_T,
        entropy_T,
        c_T * grad_loss,
        None if e_T is None else e_T * grad_loss,
        temperature=ctx.temperature,
        softcap=ctx.softcap,
        out=torch.empty_like(logits_TV),
    )
    return dlogits_TV, *(None,) * 8


_attach.register_autograd(_backward, setup_context=_save)


def policy_loss_triton(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    temperature: float,
    softcap: float | None,
    overwrite_logits: bool,
) -> PolicyLoss:
    """As the reference, in float32. Once differentiable; overwritten logits hand their gradient over once."""
    check_logits(logits_TV)
    if objective.one_launch:
        inputs = RowInputs.of(target_T, None, edges).on(logits_TV.device)
        return _token_loss(logits_TV, RowCall(inputs, objective, temperature, softcap), overwrite_logits)
    overwrite = overwrite_logits and torch.is_grad_enabled() and logits_TV.requires_grad
    run = _tied_overwriting if overwrite else _tied
    return run(logits_TV, target_T, edges, objective, temperature, softcap)


def policy_loss_from_rewards_triton(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    rewards: Rewards,
    objective: Objective,
    temperature: float,
    softcap: float | None,
    overwrite_logits: bool,
) -> PolicyLoss:
    """The same with advantages computed by the launch itself; a_pos and a_neg of `edges` are not read."""
    check_logits(logits_TV)
    inputs = RowInputs.of(target_T, None, edges)._replace(
        a_pos_T=None,
        a_neg_T=None,
        reward_RK=rewards.reward_RK,
        channel_weight_K=rewards.channel_weight_K,
        group_R=rewards.group_R,
        row_T=rewards.row_T,
    )
    settings = (objective, temperature, softcap, rewards.eps, rewards.scale)
    return _token_loss(logits_TV, RowCall(inputs.on(logits_TV.device), *settings), overwrite_logits)


def _token_loss(logits_TV: Tensor, call: RowCall, overwrite_logits: bool) -> PolicyLoss:
    inputs, objective = call.inputs, call.objective
    wants_gradient = torch.is_grad_enabled() and logits_TV.requires_grad
    overwrite = overwrite_logits and wants_gradient
    given_TV = logits_TV.detach()
    with torch.no_grad():
        rows = called(given_TV, given_TV if overwrite else None, call)
        loss_T, logp_T, entropy_T, c_T, e_T, lse_T, stats_KT = rows
        loss = loss_T.sum(dtype=torch.float64).float()
        metrics = _metrics(stats_KT, inputs, objective)
    if overwrite:
        loss = _Overwritten.apply(logits_TV, loss, given_TV)
    elif wants_gradient:
        vectors = (inputs.target_T, lse_T, entropy_T, c_T, e_T if objective.entropy_coef else None)
        loss = _attach(logits_TV, loss, *vectors, call.temperature, call.softcap)
    return PolicyLoss(loss, logp_T, entropy_T, metrics)


def _metrics(stats_KT: Tensor, inputs: RowInputs, objective: Objective) -> Stats:
    """Sums in float64: fixed order, no atomics."""
    sums: dict[str, Tensor] = dict(
        zip(STAT_ROWS, stats_KT.sum(1, dtype=torch.float64).float().unbind(0), strict=True)
    )
    absent = set() if surrogate_of(objective.surrogate).has_bound else {"clipped"}
    if inputs.ref_logp_T is None:
        absent |= {"kl"}
    if inputs.rollout_logp_T is None:
        absent |= {"importance_raw"}
    if inputs.rollout_logp_T is None or objective.importance_cap is None:
        absent |= {"importance", "importance_outside"}
    return {name: (sums[name], sums[mask]) for name, mask in MASKS.items() if name not in absent}


def _tied(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    temperature: float,
    softcap: float | None,
) -> PolicyLoss:
    """One read forward, one read and one write backward; between them PyTorch on [T]."""
    logp_T, entropy_T, _ = logprob_triton(logits_TV, target_T, temperature, softcap)
    return loss_of(logp_T, entropy_T, edges, objective)


def _tied_overwriting(
    logits_TV: Tensor,
    target_T: Tensor,
    edges: Edges,
    objective: Objective,
    temperature: float,
    softcap: float | None,
) -> PolicyLoss:
    """The same with d logits written in forward."""
    given_TV = logits_TV.detach()
    with torch.no_grad():
        numbers = row_numbers(given_TV, target_T, temperature=temperature, softcap=softcap)
    leaves = numbers.logp_T.requires_grad_(), numbers.entropy_T.requires_grad_()
    out = loss_of(*leaves, edges, objective)
    c_T, e_T = torch.autograd.grad(out.loss, leaves, allow_unused=True)
    with torch.no_grad():
        row_gradient_(
            given_TV,
            target_T,
            numbers.lse_T,
            numbers.entropy_T.detach(),
            c_T,
            e_T,
            temperature=temperature,
            softcap=softcap,
        )
    return out._replace(loss=_Overwritten.apply(logits_TV, out.loss.detach(), given_TV))
