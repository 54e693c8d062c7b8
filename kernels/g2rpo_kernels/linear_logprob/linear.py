"""The problem that the linear ops share: hidden states, head, targets, scaling; and its validation.

Dimension key: S positions, D width, V vocabulary (columns of this rank), T rows, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from g2rpo_kernels.checks import check_floating, check_tensors
from g2rpo_kernels.linear_logprob.shard import SHARD, VocabShard
from g2rpo_kernels.logprob.checks import Impl, accumulation_dtype, check_index, check_scaling, choose_impl
from g2rpo_kernels.packing import packing
from g2rpo_kernels.sharded_head import whole

ARGUMENTS = ("hidden_SD", "head_VD", "target_T", "source_T", "bias_V")
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Row t predicts `target_T[t]` from `hidden_SD[source_T[t]]` (None = `hidden_SD[t]`)."""

    hidden_SD: Tensor
    head_VD: Tensor
    target_T: Tensor
    """int64 columns of `head_VD`; -1 where another rank has it."""
    source_T: Tensor | None
    bias_V: Tensor | None
    temperature: float
    softcap: float | None
    shard: VocabShard | None
    product_dtype: torch.dtype
    """Of the operands of matrix products, not wider than they are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of accumulation."""
        return accumulation_dtype(self.product_dtype)

    @property
    def num_rows(self) -> int:
        """Not by len(), which would fix a symbolic size while a graph is traced."""
        return self.target_T.shape[0]

    @property
    def chunk_columns(self) -> int:
        """Logits of a row, for the chunk bound."""
        return len(self.head_VD) if self.shard is None else self.shard.mean_columns

    def like(self, needs: Sequence[bool], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Unfilled gradients, as `tensors_of` gives them, in `dtype` (None = that of each operand)."""
        operands = (self.hidden_SD, self.head_VD, self.bias_V)
        unfilled = (
            torch.empty_like(value, dtype=dtype) if need and value is not None else None
            for value, need in zip(operands, needs, strict=True)
        )
        return tensors_of(list(unfilled), self.hidden_SD)

    def rounded(self, dtype: torch.dtype) -> Linear:
        """The same problem, operands rounded to `product_dtype` and held in `dtype`."""
        hidden_SD, head_VD = (x.to(self.product_dtype).to(dtype) for x in (self.hidden_SD, self.head_VD))
        bias_V = None if self.bias_V is None else self.bias_V.to(self.dtype)
        return replace(self, hidden_SD=hidden_SD, head_VD=head_VD, bias_V=bias_V)

    def rows(self, chunk: slice) -> Tensor:
        """[C, D] hidden states that the chunk's rows predict from."""
        if self.source_T is None:
            return self.hidden_SD[chunk]
        return self.hidden_SD.index_select(0, self.source_T[chunk])


LINEAR = packing(Linear, shard=SHARD)
"""As arguments of an operator."""


def checked_linear(
    hidden_SD: Tensor,
    head_VD: Tensor,
    target_T: Tensor,
    source_T: Tensor | None,
    bias_V: Tensor | None,
    temperature: float,
    softcap: float | None,
    shard: VocabShard | None,
    product_dtype: torch.dtype | None = None,
) -> Linear:
    """The arguments that the linear ops share, a head that is a DTensor gathered; ValueError else."""
    if shard is None:
        head_VD, bias_V = whole("head_VD", head_VD), whole("bias_V", bias_V)
    tensors = (hidden_SD, head_VD, target_T, source_T, bias_V)
    check_tensors(dict(zip(ARGUMENTS, tensors, strict=True)))
    if hidden_SD.dim() != 2 or head_VD.dim() != 2 or hidden_SD.shape[1] != head_VD.shape[1]:
        raise ValueError(
            "hidden_SD, head_VD: wanted [S, D] and [V, D],"
            f" got {list(hidden_SD.shape)} and {list(head_VD.shape)}"
        )
    check_floating({"hidden_SD": hidden_SD, "head_VD": head_VD, "bias_V": bias_V})
    widest = torch.promote_types(hidden_SD.dtype, head_VD.dtype)
    if product_dtype not in (None, widest) and (widest == torch.float64 or product_dtype not in HALVES):
        wanted = "no other" if widest == torch.float64 else f"{widest}, torch.bfloat16, torch.float16"
        raise ValueError(f"product_dtype: wanted {wanted} or None with {widest}, got {product_dtype}")
    columns = len(head_VD)
    if bias_V is not None and list(bias_V.shape) != [columns]:
        raise ValueError(f"bias_V: wanted [{columns}], got {list(bias_V.shape)}")
    if shard is not None and not 0 <= shard.start <= shard.size - columns:
        raise ValueError(
            f"shard: wanted start in [0, {shard.size - columns}], got {shard.start}"
            f" ({columns} of {shard.size} tokens)"
        )
    num_rows = len(hidden_SD) if source_T is None else len(source_T)
    check_index("target_T", target_T, columns if shard is None else shard.size, num_rows)
    if source_T is not None:
        check_index("source_T", source_T, len(hidden_SD))
    check_scaling(temperature, softcap)
    target_T = target_T.long()
    return Linear(
        hidden_SD=hidden_SD,
        head_VD=head_VD,
        target_T=target_T if shard is None else shard.local_target(target_T, columns),
        source_T=None if source_T is None else source_T.long(),
        bias_V=bias_V,
        temperature=temperature,
        softcap=softcap,
        shard=shard,
        product_dtype=product_dtype or widest,
    )


def choose_linear_impl(impl: Impl | None, linear: Linear) -> Impl:
    """As `choose_impl`; a sharded vocabulary has no `reference`, so its default on the CPU is `cpu`."""
    if linear.shard is not None:
        if impl == "reference":
            raise ValueError("impl='reference': wanted shard=None, got a sharded vocabulary")
        if impl is None and linear.hidden_SD.device.type == "cpu":
            return "cpu"
    return choose_impl(impl, linear.hidden_SD)


def needed(operands: Sequence[Tensor | None]) -> tuple[bool, ...]:
    """Which of them need a gradient here."""
    return tuple(torch.is_grad_enabled() and value is not None and value.requires_grad for value in operands)


def tensors_of(gradients: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What an operator returns for (hidden, head, bias): an empty tensor where there is no gradient."""
    hidden, head, bias = (like.new_empty(0) if value is None else value for value in gradients)
    return hidden, head, bias


def gradients_of(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """`tensors_of` undone."""
    return [value if need else None for value, need in zip(tensors, needs, strict=True)]
