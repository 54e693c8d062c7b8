"""A loss of one's own on log-probabilities and entropies, from hidden states and the LM head.

Dimension key: S positions, D width, V vocabulary, T edges (trained tokens).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob import linear_logprob
from g2rpo_kernels.linear_logprob.linear import Linear, checked_linear, choose_linear_impl
from g2rpo_kernels.linear_logprob.shard import VocabShard
from g2rpo_kernels.linear_policy_loss.bins import cuts_between
from g2rpo_kernels.logprob.checks import Impl
from g2rpo_kernels.token_loss.cpu import token_loss_cpu
from g2rpo_kernels.token_loss.own_loss import LossFn, OwnLoss, Ties, TokenLoss
from g2rpo_kernels.token_loss.reference import token_loss_reference

__all__ = ["TokenLoss", "token_loss"]


def token_loss(
    hidden_SD: Tensor,
    head_VD: Tensor,
    target_T: Tensor,
    loss: LossFn,
    *,
    ties: Ties = "token",
    row_T: Tensor | None = None,
    row_cuts: Sequence[int] | None = None,
    look: tuple[Tensor, Tensor] | None = None,
    source_T: Tensor | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    shard: VocabShard | None = None,
    product_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    impl: Impl | None = None,
) -> TokenLoss:
    """Any loss on the edges' log-probabilities and entropies, in one pass that never stores the logits.

        def loss(logp_T, entropy_T):  # plain PyTorch on all T edges -> 0-dim
            ratio_T = (logp_T - old_logp_T).exp()
            return -torch.minimum(ratio_T * advantage_T, ratio_T.clamp(0.8, 1.2) * advantage_T).mean()

        token_loss(hidden_SD, head_VD, target_T, loss).loss.backward()

    Exact: value and gradients are those of `loss` on materialised logits. They reach hidden, head and bias,
    and by plain autograd all else that `loss` closes over and that learns (the temperature of a weighting).
    The gradients are computed during forward, three matrix products per row chunk; two where the head or the
    hidden states are frozen; one where neither needs a gradient. Backward multiplies them by the loss's own.
    `cpu` does that in place, so it runs backward once, and leaves edges that `loss` ignores out of the
    gradient products.

    `ties` says which edges the gradient of an edge may depend on:

        "token"           its own alone: a (weighted) sum or mean over tokens    three products
        "row"             those of its row: sequence ratios, scores of rows      three where rows fit a chunk
        "group", "batch"  any: softmax over a group, a batch's own mean          three where all fit a chunk

    and a fourth, for a first pass over the logits, where they do not fit. With `triton` it is also taken by
    ties other than "token" where `loss` uses the entropy and a chunk has several parts (operands narrower
    than float32: parts of a sixth of `chunk_bytes`), and by float16 where there are several chunks. Too
    narrow `ties` are found out and refused, whatever `loss` is: the coefficients that were used are compared
    with those of the finished vectors.

    `loss` is called once before there is anything to see, once for each chunk (with `triton` each part, where
    it uses the entropy), and twice at the end; always with all T edges, those not known yet as -1 and 1. It
    must be the same function at every call (no dropout), and not write to its arguments. An edge that it
    leaves out contributes nothing, even where a constant is NaN, if the NaN is replaced before it is used.

    Works under activation checkpointing. Inside `torch.compile`, which takes no function as an operator's
    argument, it is `linear_logprob` and then `loss`: one graph and the same numbers, but four products and
    none of the checks on `loss`. Compile the model and call this outside to keep three.

    Args:
        hidden_SD: [S, D] floating; differentiable.
        head_VD: [V, D] floating; differentiable. It and bias_V may be DTensors, as in `linear_logprob`.
        target_T: [T] int64 or int32 in [0, V).
        loss: (logp_T, entropy_T) -> 0-dim floating tensor; both are [T] in float32 (float64 when an input is
            float64), in nats, on the device of the head.
        ties: see above.
        row_T: [T] integer, for ties="row": the row of each edge, any ids in any order. On a GPU this waits
            for a copy; `row_cuts` does not.
        row_cuts: instead of row_T: positions in (0, T] before which no row is cut in two, ascending, T last.
            For edges that several rows share, `linear_policy_loss.bins.row_cuts` finds them.
        look: (logp_T, entropy_T) of these very inputs, as `linear_logprob` gave them: three products whatever
            `ties` is.
        source_T: [T] int64 or int32 in [0, S), the position that edge t predicts from; may repeat. None = T
            is S.
        bias_V: [V] floating, or None; differentiable.
        temperature, softcap, shard: as in `linear_logprob`. With `shard`, every rank calls the same `loss`.
        product_dtype, chunk_bytes: as in `linear_policy_loss`.
        impl: `reference` (logits materialised, plain autograd; `ties` has nothing to say), `cpu` or `triton`;
            None as in `linear_logprob`.

    Returns:
        `TokenLoss(loss, logp_T, entropy_T)` in float32 (float64 when an input is float64): the loss 0-dim and
        once differentiable, the others detached. Gradients reach hidden, head and bias in their own dtypes.

    Raises:
        ValueError: as `linear_logprob`; `ties`, `row_T`, `row_cuts` or `look` that do not fit; a `loss` that
            returns anything but a 0-dim floating tensor, or one that depends on neither argument. On the CPU
            also a `loss` or a gradient of it that is not finite, edges tied more widely than `ties` says, and
            a `look` at something else; on a GPU, where asking would wait for it, the loss and its gradients
            become NaN.
        RuntimeError: a second backward through a `cpu` result.
    """
    tensors = (hidden_SD, head_VD, target_T, source_T, bias_V)
    linear = checked_linear(*tensors, temperature, softcap, shard, product_dtype)
    if not callable(loss):
        raise ValueError(f"loss: wanted a function of logp_T and entropy_T, got {type(loss).__name__}")
    cuts = _cuts(ties, row_T, row_cuts, linear.num_rows)
    _check_look(look, linear.num_rows)
    chosen = choose_linear_impl(impl, linear)
    own = OwnLoss(loss, cuts, look)
    if torch.compiler.is_compiling():
        found = linear_logprob(
            hidden_SD, head_VD, target_T, source_T=source_T, bias_V=bias_V, temperature=temperature,
            softcap=softcap, shard=shard, product_dtype=product_dtype, chunk_bytes=chunk_bytes, impl=chosen,
        )  # fmt: skip
        logp_T, entropy_T = found.logp_T, found.entropy_T
        return TokenLoss(own.value(logp_T, entropy_T), logp_T.detach(), entropy_T.detach())
    impls = {"reference": token_loss_reference, "cpu": token_loss_cpu, "triton": _triton}
    with torch.autocast(linear.hidden_SD.device.type, enabled=False):
        return impls[chosen](linear, own, ties, chunk_bytes)


def _cuts(
    ties: Ties, row_T: Tensor | None, row_cuts: Sequence[int] | None, num_edges: int
) -> tuple[int, ...] | None:
    """Between which positions `ties` ties nothing; None = anywhere."""
    if ties not in get_args(Ties):
        raise ValueError(f"ties: wanted one of {get_args(Ties)}, got {ties!r}")
    given = (row_T is not None) + (row_cuts is not None)
    if given != (ties == "row"):
        wanted = "one of them" if ties == "row" else "neither"
        raise ValueError(f"row_T, row_cuts: wanted {wanted} with ties={ties!r}, got {given}")
    if row_cuts is not None:
        cuts = (0, *row_cuts)
        if cuts[-1] != num_edges or any(b <= a for a, b in itertools.pairwise(cuts)):
            raise ValueError(f"row_cuts: wanted ascending positions up to {num_edges}, got {tuple(row_cuts)}")
        return cuts[1:]
    if row_T is not None:
        if list(row_T.shape) != [num_edges] or row_T.is_floating_point():
            raise ValueError(f"row_T: wanted [{num_edges}] integers, got {list(row_T.shape)} {row_T.dtype}")
        ids, number_T = row_T.cpu().unique(return_inverse=True)[:2]
        return cuts_between(torch.arange(num_edges), number_T, num_edges, len(ids))
    return None if ties == "token" else (num_edges,)


def _check_look(look: tuple[Tensor, Tensor] | None, num_edges: int) -> None:
    for name, value_T in zip(("logp_T", "entropy_T"), look or (), strict=False):
        if list(value_T.shape) != [num_edges]:
            raise ValueError(f"look: wanted {name} of [{num_edges}], got {list(value_T.shape)}")


def _triton(linear: Linear, own: OwnLoss, ties: Ties, chunk_bytes: int | None) -> TokenLoss:
    from g2rpo_kernels.token_loss.triton import token_loss_triton

    return token_loss_triton(linear, own, ties, chunk_bytes)
