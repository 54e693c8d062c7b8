"""RMSNorm, RoPE and the gated SiLU by Liger-Kernel's Triton kernels on a GPU, in the place of transformers'.

    rms_norm:  y = w * x / sqrt(mean(x^2) + eps)        swiglu:  silu(gate) * up
    rope:      [x1 cos - x2 sin, x2 cos + x1 sin] of queries and keys [x1, x2]

transformers computes them in several sweeps over memory each. Liger computes each in one, in float32 inside,
and returns the dtype that it is given: under autocast a product's bfloat16, where multiplying by float32
weights, cosines and sines, as transformers does, would return float32. Attention rounds queries and keys to
the autocast dtype anyway; those with a norm of their own (Qwen3) are rounded once more, between it and RoPE.

Liger saves memory by writing over what it is given: RoPE over queries, keys and their gradients, RMSNorm over
the gradient of its output, SwiGLU's backward over gate and up. In the modules of `instances.FAMILIES` nothing
else reads these. So backward runs once through a forward (no `retain_graph`).

Dimension key: D width, B sequences, S positions, H / K query / KV heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.model.instances import Rotate, use_forwards, use_rope

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def use_liger_ops(model: PreTrainedModel) -> int:
    """Lets the model's own norms, MLPs and attentions compute through these. Returns how many modules do.

    Whatever else a module is given (another dtype, RoPE of a part of each head) transformers' code computes.
    """
    return use_forwards(model, norm=_norm_forward, mlp=_mlp_forward) + use_rope(model, _rotate)


def is_fused(model: PreTrainedModel) -> bool:
    """Whether the norms, the MLP and the attention of every layer compute through these."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    own = [module for module in model.modules() if "forward" in vars(module)]
    forwards = [getattr(module.forward, "__func__", None) for module in own]
    attentions = sum(type(module).__name__.endswith("Attention") for module in own)
    mlps = forwards.count(_mlp_forward)
    return forwards.count(_norm_forward) > 2 * layers and mlps == attentions == layers > 0


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """[..., D] in x's dtype; differentiable once in x and weight. Backward writes over the gradient of it."""
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight_D, eps, 0.0, "llama", True, None)  # pyright: ignore[reportReturnType]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, any shape; differentiable once in both. Backward writes over gate and up."""
    from liger_kernel.ops import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)  # pyright: ignore[reportReturnType]


def rope(q_BHSE: Tensor, k_BKSE: Tensor, cos_BSE: Tensor, sin_BSE: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated, in their dtype; differentiable once in both.

    Writes over q and k where their memory is in the order [B, S, heads, E], and over the gradients. cos and
    sin may have one batch for all.
    """
    from g2rpo_kernels.logprob.triton_launch import on_device
    from liger_kernel.ops import LigerRopeFunction

    batch, _, length, width = q_BHSE.shape
    inputs = (q_BHSE, k_BKSE, cos_BSE, sin_BSE)
    if batch > 1:  # one sequence to Liger, whose kernel is compiled anew for each size of a batch
        q_k = (x.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for x in (q_BHSE, k_BKSE))
        cos_sin = (x.expand(batch, length, width).flatten(0, 1)[None] for x in (cos_BSE, sin_BSE))
        inputs = (*q_k, *cos_sin)
    with on_device(q_BHSE):
        q, k = LigerRopeFunction.apply(*inputs)  # pyright: ignore[reportGeneralTypeIssues]
    if batch > 1:
        q, k = (x[0].transpose(0, 1).unflatten(0, (batch, length)).transpose(1, 2) for x in (q, k))
    return q, k


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if not _takes(hidden_states, self.weight):
        return type(self).forward(self, hidden_states)
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    out = swiglu(gate, up) if _takes(gate, up) else self.act_fn(gate) * up
    return self.down_proj(out)


def _rotate(plain: Rotate, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **others: Any) -> Any:
    whole_heads = cos.dim() == 3 and cos.shape[-1] == q.shape[-1] == k.shape[-1]
    if others or not whole_heads or not _takes(q, k, cos, sin):
        return plain(q, k, cos, sin, **others)
    return rope(q, k, cos, sin)


def _takes(*tensors: Tensor) -> bool:
    """Non-empty, in dtypes of Liger's, and on a GPU (or in Triton's interpreter)."""
    from g2rpo_kernels.logprob.triton_launch import interpreting

    return all(x.dtype in DTYPES and x.numel() and (x.is_cuda or interpreting()) for x in tensors)
