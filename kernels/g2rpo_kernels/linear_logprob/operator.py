"""An implementation of `linear_logprob` as two operators of `torch.library`, opaque to `torch.compile`.

Forward returns logp, entropy and lse, then what only backward wants; backward is given all of it.

Dimension key: T rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.linear_logprob.linear import LINEAR, Linear, gradients_of

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

Numbers = tuple[Tensor, ...]
"""[T] each."""


def operators(
    name: str,
    forward: Callable[..., Numbers],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    unfilled: Callable[[Linear], Numbers],
    num_returned: int,
) -> tuple[CustomOpDef, CustomOpDef]:
    """`g2rpo::name`, once differentiable, and `g2rpo::name_backward`.

    Args:
        forward: (chunk_bytes, *packed) -> numbers.
        backward: (numbers, c_T, e_T, g_T, needs, chunk_bytes, *packed) -> `tensors_of` gradients.
        unfilled: numbers of a problem, not computed.
        num_returned: how many numbers there are.
    """
    given = f"SymInt? chunk_bytes, {LINEAR}"
    returned = ", ".join(["Tensor"] * num_returned)
    forward_op = torch.library.custom_op(
        f"g2rpo::{name}", forward, mutates_args=(), schema=f"({given}) -> ({returned})"
    )
    backward_op = torch.library.custom_op(
        f"g2rpo::{name}_backward",
        backward,
        mutates_args=(),
        schema=f"(Tensor[] numbers, Tensor? c_T, Tensor? e_T, Tensor? g_T, bool[] needs, {given})"
        " -> (Tensor, Tensor, Tensor)",
    )
    forward_op.register_fake(lambda chunk_bytes, *packed: unfilled(LINEAR.unpack(*packed)))
    backward_op.register_fake(lambda *given: LINEAR.unpack(*given[6:]).like(given[4]))

    @once_differentiable
    def differentiate(
        ctx: Any, c_T: Tensor | None, e_T: Tensor | None, g_T: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        tensors, numbers = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        needs = [ctx.needs_input_grad[n] for n in (1, 2, 5)]
        found = backward_op(list(numbers), c_T, e_T, g_T, needs, ctx.chunk_bytes, *tensors, *ctx.scaling)
        hidden_SD, head_VD, bias_V = gradients_of(found, needs)
        return None, hidden_SD, head_VD, None, None, bias_V, *(None,) * 6

    forward_op.register_autograd(differentiate, setup_context=_save)
    return forward_op, backward_op


def _save(ctx: Any, inputs: tuple[Any, ...], output: Numbers) -> None:
    ctx.chunk_bytes, *tensors = inputs[:6]
    ctx.scaling = inputs[6:]
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)
