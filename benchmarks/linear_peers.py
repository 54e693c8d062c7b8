"""Other implementations of a loss from hidden states and an LM head, each in its own best form.

Those that give log-probabilities of tokens go through the same clipped surrogate as ours. None but the verl
formula and Liger's scaled cross-entropy computes the entropy, and quack only has the mean cross-entropy: it
is here for its speed, not for its loss.

cut-cross-entropy leaves out blocks whose softmax is below a threshold. The logits of the problem are flat, so
that it leaves out nearly all of them and its gradient is not the loss's; `cce_unfiltered` computes it all.

Dimension key: T rows, C rows of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from linear_problem import SEQUENCE, Loss, Problem, clipped_loss, eager_loss
from peers import Peer

VERL_ROWS = 512


def compiled() -> Loss:
    loss = torch.compile(eager_loss)
    return lambda problem: loss(*vars(problem).values())[0]


def liger_fused() -> Loss:
    """Liger's fused linear GRPO; a token mean over sequences of SEQUENCE tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    on_gpu = torch.cuda.is_available()
    # Its default, a chunk of one short sequence, takes seconds a step in launches. Its tile has 2048 rows.
    op = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="bnpo", compiled=on_gpu, temperature=1.0,
        chunk_size=2048 // SEQUENCE if on_gpu else 1,
    )  # fmt: skip

    def loss(problem: Problem) -> Tensor:
        def shaped(value: Tensor) -> Tensor:
            return value.unflatten(0, (-1, SEQUENCE))

        return op(
            shaped(problem.hidden_TD),
            problem.head_VD,
            shaped(problem.target_T),
            torch.ones_like(shaped(problem.target_T)),
            shaped(problem.advantage_T)[:, 0],
            old_per_token_logps=shaped(problem.old_logp_T),
        )[0]

    return loss


def liger_scaled() -> Loss:
    """Liger's fused scaled cross-entropy with entropy: CuTe on sm_90, verl's formula elsewhere."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    def loss(problem: Problem) -> Tensor:
        inputs = problem.hidden_TD, problem.head_VD, problem.target_T
        nll_T, _entropy_T = LigerFusedLinearScaledCrossEntropyFunction.apply(*inputs, return_entropy=True)
        return clipped_loss(-nll_T, problem.old_logp_T, problem.advantage_T)

    return loss


def cce(**options: Any) -> Loss:
    """cut-cross-entropy: its kernels on CUDA, what it gives to torch.compile on a CPU."""
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if torch.cuda.is_available() else "torch_compile"

    def loss(problem: Problem) -> Tensor:
        inputs = problem.hidden_TD, problem.head_VD, problem.target_T
        nll_T = linear_cross_entropy(*inputs, reduction="none", impl=impl, **options)
        return clipped_loss(-nll_T.float(), problem.old_logp_T, problem.advantage_T)

    return loss


def quack() -> Loss:
    """quack's chunked linear cross-entropy: the mean, without a coefficient for each token."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def loss(problem: Problem) -> Tensor:
        inputs = problem.hidden_TD, problem.head_VD, problem.target_T
        return chunked_linear_cross_entropy(*inputs, tuned=False)

    return loss


class _ChunkedLogp(Function):
    """Log-probability and entropy by verl's torch formula: chunks of 512 rows, logits anew in backward,
    softmax, one-hot and d logits each a float32 [C, V]; d hidden and d head in the dtype of the inputs."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_TD, head_VD, target_T)
        ctx.set_materialize_grads(False)
        logp, entropy = [], []
        for hidden_CD, target_C in zip(hidden_TD.split(VERL_ROWS), target_T.split(VERL_ROWS), strict=True):
            z_CV = (hidden_CD @ head_VD.T).float()
            p_CV = z_CV.softmax(-1)
            entropy.append(z_CV.logsumexp(-1) - (p_CV * z_CV).sum(-1))
            logp.append(z_CV.log_softmax(-1).gather(-1, target_C[:, None])[:, 0])
        return torch.cat(logp), torch.cat(entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logp_T: Tensor, d_entropy_T: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_TD, head_VD, target_T = ctx.saved_tensors
        d_hidden_TD, d_head_VD = torch.empty_like(hidden_TD), torch.zeros_like(head_VD)
        for start in range(0, len(target_T), VERL_ROWS):
            rows = slice(start, start + VERL_ROWS)
            z_CV = (hidden_TD[rows] @ head_VD.T).float()
            p_CV = z_CV.softmax(-1)
            at_target_CV = torch.zeros_like(z_CV).scatter_(-1, target_T[rows, None], 1.0)
            d_z_CV = d_logp_T[rows, None] * (at_target_CV - p_CV)
            if d_entropy_T is not None:
                log_p_CV = z_CV.log_softmax(-1)
                entropy_C1 = -(p_CV * log_p_CV).sum(-1, keepdim=True)
                d_z_CV -= d_entropy_T[rows, None] * p_CV * (log_p_CV + entropy_C1)
            d_z_CV = d_z_CV.to(hidden_TD.dtype)
            d_hidden_TD[rows] = d_z_CV @ head_VD
            d_head_VD += d_z_CV.T @ hidden_TD[rows]
        return d_hidden_TD, d_head_VD, None


def verl_formula() -> Loss:
    def loss(problem: Problem) -> Tensor:
        logp_T, _entropy_T = _ChunkedLogp.apply(problem.hidden_TD, problem.head_VD, problem.target_T)
        return clipped_loss(logp_T, problem.old_logp_T, problem.advantage_T)

    return loss


LOSSES: dict[str, Peer] = {
    "liger": Peer(liger_fused, needs="liger_kernel"),
    "compiled": Peer(compiled),
    "verl_formula": Peer(verl_formula),
    "liger_scaled": Peer(liger_scaled, needs="liger_kernel"),
    "cce": Peer(cce, needs="cut_cross_entropy"),
    "cce_unfiltered": Peer(
        partial(cce, filter_eps=None),
        needs="cut_cross_entropy",
        cuda_only="the same as cce on a CPU, where nothing is filtered",
    ),
    "quack": Peer(quack, needs="quack", cuda_only="quack runs on CUDA only"),
}
"""`make` gives a loss of a problem. In this order they are asked, until the time is over."""
