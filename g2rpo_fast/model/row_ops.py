"""RMSNorm and the gated SiLU in one sweep each on a CPU, in the place of their modules' forwards.

    rms_norm:  y = w * x / sqrt(mean(x^2) + eps)        swiglu:  silu(gate) * up

transformers computes them in five to nine sweeps over memory, forward and backward. On small models that
costs as much as the attention. Only float32 on a CPU is taken over; whatever else a module is given, its own
forward computes.

Dimension key: N rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from g2rpo_fast import _C
from g2rpo_fast.model.instances import use_forwards


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, scale_N = torch.empty_like(x), x.new_empty(x.shape[:-1])
        _C.rms_norm_forward(
            x.numpy(), weight_D.numpy(), eps, y.numpy(), scale_N.numpy(), torch.get_num_threads()
        )
        ctx.save_for_backward(x, weight_D, scale_N)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_D, scale_N = (saved.detach() for saved in ctx.saved_tensors)
        dy = dy.contiguous()
        dx, dweight_D = torch.empty_like(x), torch.empty_like(weight_D)
        _C.rms_norm_backward(
            x.numpy(),
            weight_D.numpy(),
            scale_N.numpy(),
            dy.numpy(),
            dx.numpy(),
            dweight_D.numpy(),
            torch.get_num_threads(),
        )
        return dx, dweight_D, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        _C.swiglu_forward(gate.numpy(), up.numpy(), out.numpy(), torch.get_num_threads())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = (saved.detach() for saved in ctx.saved_tensors)
        dout = dout.contiguous()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _C.swiglu_backward(
            gate.numpy(), up.numpy(), dout.numpy(), dgate.numpy(), dup.numpy(), torch.get_num_threads()
        )
        return dgate, dup


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """[..., D] float32 on a CPU; differentiable once in x and weight."""
    return _RmsNorm.apply(x, weight_D, eps)  # pyright: ignore[reportReturnType]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, any shape, float32 on a CPU; differentiable once in both."""
    return _Swiglu.apply(gate, up)  # pyright: ignore[reportReturnType]


def use_row_ops(model: PreTrainedModel) -> int:
    """Lets the model's own norm and MLP modules compute through these. Returns how many do."""
    return use_forwards(model, norm=_norm_forward, mlp=_mlp_forward)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if not _ours(hidden_states) or self.weight.dtype != torch.float32:
        return type(self).forward(self, hidden_states)
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    out = swiglu(gate, up) if _ours(gate) and _ours(up) else self.act_fn(gate) * up
    return self.down_proj(out)


def _ours(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32
