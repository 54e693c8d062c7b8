"""One decoding step of a Llama-shaped model, as plain functions on Hugging Face's own parameters.

    x += W_o attention(RoPE(norm(W_q n(x))), RoPE(norm(W_k n(x))), W_v n(x));   x += W_down (silu(W_gate n(x)) * W_up n(x))

n = RMS norm. A step of a small model is bound by the number of operations, not by their size: so the products
that read the same input are one product, and the rows of W_q and W_k are reordered so that the two halves that
RoPE rotates lie side by side and the rotation is one complex product.

Dimension key: B rows, D width, H / K query / KV heads, E head width, C = E / 2 complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from g2rpo_fast.rollout.cache import Cache


@dataclass(frozen=True)
class Shape:
    """In what the known model types differ."""

    qk_norm: bool
    window: Callable[[Any], int | None]
    """A layer's sliding window, from its attention module."""


SHAPES = {
    "llama": Shape(qk_norm=False, window=lambda attention: None),
    "mistral": Shape(qk_norm=False, window=lambda attention: attention.config.sliding_window),
    "qwen2": Shape(qk_norm=False, window=lambda attention: attention.sliding_window),
    "qwen3": Shape(qk_norm=True, window=lambda attention: attention.sliding_window),
}
MOVING_ROPE = ("dynamic", "longrope")
"""RoPE types whose frequencies depend on the longest sequence of a batch."""


@dataclass(frozen=True)
class Layer:
    """One layer's weights in the compute dtype, [out, in] as in nn.Linear; norms in the parameters' own."""

    attention_norm_D: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None
    """[H + K, E], RoPE pairs side by side."""
    out: torch.Tensor
    mlp_norm_D: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    window: int | None


def recognised(model: PreTrainedModel) -> bool:
    """Whether `FunctionalDecoder` computes exactly this model: known type, plain modules, static RoPE."""
    config = model.config
    if config.model_type not in SHAPES or config.hidden_act != "silu":
        return False
    backbone: Any = model.model
    linears = [linear for layer in backbone.layers for linear in _linears(layer)]
    norms = [
        norm for layer in backbone.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)
    ]
    return (
        type(model).__name__.lower() == f"{config.model_type}forcausallm"
        and backbone.rotary_emb.rope_type not in MOVING_ROPE
        and type(backbone.embed_tokens) is nn.Embedding
        and all(type(m).__name__.lower() == f"{config.model_type}rmsnorm" for m in (*norms, backbone.norm))
        and all(type(m) is nn.Linear and type(m.weight) is nn.Parameter for m in linears)
        and not any(m.bias is not None for layer in backbone.layers for m in _linears(layer)[3:])
    )


def _linears(layer: Any) -> tuple[nn.Linear, ...]:
    """q, k, v, then those that may have no bias here: out, gate, up, down."""
    a, mlp = layer.self_attn, layer.mlp
    return a.q_proj, a.k_proj, a.v_proj, a.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


class FunctionalDecoder:
    """The weights of the moment, fused; made anew for each `generate`, so never stale."""

    def __init__(self, model: PreTrainedModel, *, num_positions: int, dtype: torch.dtype) -> None:
        backbone: Any = model.model
        attention = backbone.layers[0].self_attn
        width, device = attention.head_dim, attention.q_proj.weight.device
        self._dtype, self._width = dtype, width
        self._num_heads = attention.q_proj.out_features // width
        self._num_kv = attention.k_proj.out_features // width
        self._scale = attention.scaling
        self._eps = backbone.norm.variance_epsilon
        self._embedding = backbone.embed_tokens.weight
        self._norm_D = backbone.norm.weight
        self.key_order_E: torch.Tensor = torch.arange(width, device=device).view(2, -1).t().reshape(-1)
        """Where this decoder's key components lie in those of the model."""
        shape = SHAPES[model.config.model_type]
        self._layers = [self._fused(layer, shape) for layer in backbone.layers]
        position_N = torch.arange(num_positions, device=device).unsqueeze(0)
        like = torch.empty(1, dtype=torch.promote_types(dtype, torch.float32), device=device)
        cos_NE, sin_NE = (x[0] for x in backbone.rotary_emb(like, position_N))
        half = width // 2
        self._rotation_N1C = torch.complex(cos_NE[:, :half], sin_NE[:, :half]).unsqueeze(1)

    def step(self, token_B: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Encodes one token per row; hidden states [B, D] after the final norm."""
        x_BD = self._embedding.index_select(0, token_B)
        rotation_B1C = self._rotation_N1C.index_select(0, cache.position_B)
        for layer_id, layer in enumerate(self._layers):
            q_BHE, k_BKE, v_BKE = self._qkv(layer, self._normed(x_BD, layer.attention_norm_D), rotation_B1C)
            mixed_BD = cache.attend(layer_id, q_BHE, k_BKE, v_BKE, scale=self._scale, window=layer.window)
            self._add_product(x_BD, mixed_BD, layer.out)
            gate_up = F.linear(self._normed(x_BD, layer.mlp_norm_D), layer.gate_up)
            gate, up = gate_up.chunk(2, -1)
            self._add_product(x_BD, F.silu(gate).mul_(up), layer.down)
        return F.rms_norm(x_BD, self._norm_D.shape, self._norm_D, self._eps)

    def _normed(self, x_BD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x_BD, weight_D.shape, weight_D, self._eps).to(self._dtype)

    def _qkv(
        self, layer: Layer, x_BD: torch.Tensor, rotation_B1C: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        qkv_BXE = F.linear(x_BD, layer.qkv, layer.qkv_bias).view(len(x_BD), -1, self._width)
        qk_BXE, v_BKE = qkv_BXE.split((self._num_heads + self._num_kv, self._num_kv), 1)
        if layer.qk_norm is not None:
            qk_BXE = F.rms_norm(qk_BXE, (self._width,), None, self._eps) * layer.qk_norm
        pairs = qk_BXE.to(self._rotation_N1C.real.dtype).unflatten(2, (-1, 2))
        turned_BXE = torch.view_as_real(torch.view_as_complex(pairs) * rotation_B1C).flatten(2)
        q_BHE, k_BKE = turned_BXE.split((self._num_heads, self._num_kv), 1)
        return q_BHE, k_BKE, v_BKE

    def _add_product(self, x_BD: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
        """x += y weight^T in place."""
        if y.dtype == weight.dtype == x_BD.dtype:
            x_BD.addmm_(y, weight.t())
        else:
            x_BD.add_(F.linear(y.to(self._dtype), weight))

    def _fused(self, layer: Any, shape: Shape) -> Layer:
        attention = layer.self_attn
        q, k, v, out, gate, up, down = _linears(layer)
        bias = None
        if q.bias is not None:
            bias = torch.cat([self._paired(q.bias), self._paired(k.bias), v.bias]).to(self._dtype)
        norm = None
        if shape.qk_norm:
            heads = [attention.q_norm.weight] * self._num_heads + [attention.k_norm.weight] * self._num_kv
            norm = torch.stack(heads).index_select(1, self.key_order_E)
        return Layer(
            attention_norm_D=layer.input_layernorm.weight,
            qkv=torch.cat([self._paired(q.weight), self._paired(k.weight), v.weight]).to(self._dtype),
            qkv_bias=bias,
            qk_norm=norm,
            out=out.weight.to(self._dtype),
            mlp_norm_D=layer.post_attention_layernorm.weight,
            gate_up=torch.cat([gate.weight, up.weight]).to(self._dtype),
            down=down.weight.to(self._dtype),
            window=shape.window(attention),
        )

    def _paired(self, weight: torch.Tensor) -> torch.Tensor:
        """Reorders the rows of each head of a projection (or its bias) to lie in RoPE's pairs."""
        heads = weight.unflatten(0, (-1, self._width))
        return heads.index_select(1, self.key_order_E).flatten(0, 1)
