"""Cascade tree attention as one autograd function; the calls are in `cpu` and `cuda`.

Autograd through the flash ops would be wrong: their backward ignores the gradient of the log-sum-exp that a
merge depends on.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from g2rpo_kernels.tree_attention.cascade.cpu import CpuPlan, backward_cpu, forward_cpu, plan_cpu
from g2rpo_kernels.tree_attention.cascade.cuda import (
    CudaPlan,
    backward_cuda,
    forward_cuda,
    plan_cuda,
)
from g2rpo_kernels.tree_attention.cascade.nodes import Nodes, longest_path, nodes_of


@dataclass(frozen=True, kw_only=True)
class CascadePlan:
    """The calls of one END mask on one device: built once, shared by all layers and both directions."""

    num_rows: int
    longest_path: int
    """Rows on the longest path from a root: a window at least this wide hides nothing."""
    device: torch.device
    calls: CpuPlan | CudaPlan


def cascade_plan(
    end_S: Tensor, device: torch.device | None = None, *, nodes: Nodes | None = None
) -> CascadePlan:
    """The plan for `end_S` [S] (integers), for tensors on `device` (None: where `end_S` is).

    END is read on the host: given there, a plan for CUDA waits for nothing that is queued. Who planned the
    tree may give its `nodes`; they are not checked. None: read back from END.
    Raises ValueError where END describes no tree, and for a device other than CPU or CUDA.
    """
    device = end_S.device if device is None else device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"cascade: wanted a CPU or CUDA device, got {device}")
    nodes = nodes_of(end_S) if nodes is None else nodes
    calls = plan_cpu(nodes) if device.type == "cpu" else plan_cuda(nodes, device)
    return CascadePlan(num_rows=len(end_S), longest_path=longest_path(nodes), device=device, calls=calls)


def tree_attention_cascade(
    q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, *, scale: float, plan: CascadePlan
) -> Tensor:
    """out [S, H, E] in q's dtype, for what is not `unsupported_cascade`."""
    return _Cascade.apply(*(_rows(x) for x in (q_SHE, k_SKE, v_SKE)), scale, plan)


def _rows(x: Tensor) -> Tensor:
    """The flash ops want each row's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, scale: float, plan: CascadePlan
    ) -> Tensor:
        if isinstance(plan.calls, CudaPlan):
            out_SHE, lse_SH = forward_cuda(q_SHE, k_SKE, v_SKE, scale, plan.calls)
        else:
            out_SHE, lse_SH = forward_cpu(q_SHE, k_SKE, v_SKE, scale, plan.calls)
        out_SHE = out_SHE.to(q_SHE.dtype)
        ctx.save_for_backward(q_SHE, k_SKE, v_SKE, out_SHE, lse_SH)
        ctx.scale, ctx.plan = scale, plan
        return out_SHE

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_SHE,) = map(_rows, grad_outputs)
        q_SHE, k_SKE, v_SKE, out_SHE, lse_SH = ctx.saved_tensors
        calls = ctx.plan.calls
        if isinstance(calls, CudaPlan):
            grads = backward_cuda(grad_SHE, q_SHE, k_SKE, v_SKE, out_SHE, lse_SH, ctx.scale, calls)
        else:
            grads = backward_cpu(grad_SHE, q_SHE, k_SKE, v_SKE, out_SHE, lse_SH, ctx.scale, calls)
        return *(grad.to(q_SHE.dtype) for grad in grads), None, None
