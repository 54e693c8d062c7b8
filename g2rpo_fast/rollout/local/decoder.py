"""One decoding step of a Llama-shaped model, as plain functions on Hugging Face's own parameters.

    x += W_o attention(RoPE(norm(W_q n(x))), RoPE(norm(W_k n(x))), W_v n(x))
    x += W_down (silu(W_gate n(x)) * W_up n(x)),        n(x) = w x / sqrt(mean(x^2) + eps)

A step of a small model is bound by the number of operations as much as by their size. So
- products that read the same input are one product, and take the norm's weight w into their own;
- n(x) is x / hypot(|x|, sqrt(D eps)), its factor sqrt(D) part of w: half the operations of a composed norm;
- the rows of W_q and W_k are in an order in which the two halves that RoPE rotates are neighbours: a complex
  product rotates them; each KV head has its queries, key and value side by side: no copies for a bmm.

Dimension key: B rows, D width, K KV heads, Q query heads per KV head, E head width, C = E / 2 complex
numbers, Z all components of all KV heads' projections: K (Q + 2) E, X heads of one kind or all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from g2rpo_kernels.packed_weight import PackedWeight, worth_packing
from torch import nn
from transformers import PreTrainedModel

from g2rpo_fast.adapters.merged import plain_linear, whole_linear
from g2rpo_fast.rollout.local.cache import Cache


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
class Plain:
    """A product with a weight as it lies, [out, in] as in nn.Linear."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


Product = Plain | PackedWeight


def product_with(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """The faster one. A packed weight is a copy, of the weights of the moment."""
    return PackedWeight(weight, bias) if worth_packing(weight) else Plain(weight, bias)


@dataclass(frozen=True)
class Layer:
    """One layer's products, weights in the compute dtype."""

    qkv: Product
    """Its columns are (KV head, Q queries then key then value, E)."""
    qk_norm: torch.Tensor | None
    """[Q + 1, E], in the parameters' dtype, times sqrt(E)."""
    out: Product
    gate_up: Product
    down: Product
    window: int | None


def recognised(model: PreTrainedModel) -> bool:
    """Whether `FunctionalDecoder` computes exactly this model: known type, plain modules, static RoPE."""
    config = model.config
    plain = type(model).__name__.lower() == f"{config.model_type}forcausallm"
    if config.model_type not in SHAPES or not plain or config.hidden_act != "silu":
        return False
    backbone: Any = model.model
    linears = [linear for layer in backbone.layers for linear in _plain(layer)]
    norms = [
        norm for layer in backbone.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)
    ]
    return (
        backbone.rotary_emb.rope_type not in MOVING_ROPE
        and type(backbone.embed_tokens) is nn.Embedding
        and all(type(m).__name__.lower() == f"{config.model_type}rmsnorm" for m in (*norms, backbone.norm))
        and all(m is not None and type(m.weight) is nn.Parameter for m in linears)
        and not any(
            m is not None and m.bias is not None for layer in backbone.layers for m in _plain(layer)[3:]
        )
    )


def _linears(layer: Any) -> tuple[nn.Module, ...]:
    """q, k, v, then those that may have no bias here: out, gate, up, down."""
    a, mlp = layer.self_attn, layer.mlp
    return a.q_proj, a.k_proj, a.v_proj, a.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _plain(layer: Any) -> list[nn.Linear | None]:
    return [plain_linear(module) for module in _linears(layer)]


class FunctionalDecoder:
    """The weights of the moment, with adapters merged into them, fused; made anew for each `generate`, so
    never stale."""

    def __init__(self, model: PreTrainedModel, *, num_positions: int, dtype: torch.dtype) -> None:
        backbone: Any = model.model
        attention = backbone.layers[0].self_attn
        width, device = attention.head_dim, backbone.embed_tokens.weight.device
        self._dtype, self._width, self._scale = dtype, width, attention.scaling
        self._num_kv = attention.k_proj.out_features // width
        self._embedding = backbone.embed_tokens.weight
        self._root = self._embedding.shape[1] ** 0.5
        self._norm_D = backbone.norm.weight * self._root
        eps = backbone.norm.variance_epsilon**0.5
        self._exact = torch.promote_types(dtype, torch.float32)
        floors = torch.tensor([self._root * eps, width**0.5 * eps], dtype=self._exact, device=device)
        self._floor, self._head_floor = floors
        self.key_order_E: torch.Tensor = torch.arange(width, device=device).view(2, -1).t().reshape(-1)
        """Where this decoder's key components lie in those of the model."""
        shape = SHAPES[model.config.model_type]
        self._layers = [self._fused(layer, shape) for layer in backbone.layers]
        position_N = torch.arange(num_positions, device=device).unsqueeze(0)
        like = torch.empty(1, dtype=self._exact, device=device)
        cos_NE, sin_NE = (x[0, :, : width // 2] for x in backbone.rotary_emb(like, position_N))
        self._rotation_N11C = torch.complex(cos_NE, sin_NE)[:, None, None]

    def step(self, token_B: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Encodes one token per row; hidden states [B, D] after the final norm."""
        x_BD = self._embedding.index_select(0, token_B).to(self._exact)
        rotation_B11C = self._rotation_N11C.index_select(0, cache.position_B)
        for layer_id, layer in enumerate(self._layers):
            qkv_BZ = layer.qkv(self._normed(x_BD))
            q_BKQE, k_BKE, v_BKE = self._rotated(layer, qkv_BZ, rotation_B11C)
            mixed_BD = cache.attend(layer_id, q_BKQE, k_BKE, v_BKE, scale=self._scale, window=layer.window)
            self._add_product(x_BD, mixed_BD, layer.out)
            gate, up = layer.gate_up(self._normed(x_BD)).chunk(2, dim=1)
            gated = F.silu(gate).mul_(up)
            self._add_product(x_BD, gated, layer.down)
        return _normalised(x_BD, self._floor).mul_(self._norm_D)

    def _normed(self, x_BD: torch.Tensor) -> torch.Tensor:
        return _normalised(x_BD, self._floor).to(self._dtype)

    def _rotated(
        self, layer: Layer, qkv_BZ: torch.Tensor, rotation_B11C: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        qkv_BKXE = qkv_BZ.view(len(qkv_BZ), self._num_kv, -1, self._width)
        value = qkv_BKXE.shape[2] - 1
        qk_BKXE, v_BKE = qkv_BKXE.narrow(2, 0, value).to(self._exact), qkv_BKXE.select(2, value)
        if layer.qk_norm is not None:
            qk_BKXE = _normalised(qk_BKXE, self._head_floor).mul_(layer.qk_norm)
        pairs = qk_BKXE.unflatten(3, (-1, 2))
        torch.view_as_complex(pairs).mul_(rotation_B11C)
        qk_BKXE = pairs.flatten(3)
        return qk_BKXE.narrow(2, 0, value - 1), qk_BKXE.select(2, value - 1), v_BKE

    def _add_product(self, x_BD: torch.Tensor, y: torch.Tensor, product: Product) -> None:
        """x += y W^T in place."""
        if isinstance(product, Plain) and y.dtype == product.weight.dtype == x_BD.dtype:
            x_BD.addmm_(y, product.weight.t())
        else:
            x_BD.add_(product(y.to(self._dtype)))

    def _fused(self, layer: Any, shape: Shape) -> Layer:
        attention = layer.self_attn
        q, k, v, out, gate, up, down = map(whole_linear, _linears(layer))
        norm = None
        if shape.qk_norm:
            num_q = q.out_features // k.out_features
            norms = torch.stack([attention.q_norm.weight] * num_q + [attention.k_norm.weight])
            norm = norms.index_select(1, self.key_order_E) * self._width**0.5
        attention_norm_D = layer.input_layernorm.weight * self._root
        mlp_norm_D = layer.post_attention_layernorm.weight * self._root
        biases = [x.bias for x in (q, k, v) if x.bias is not None]
        bias = self._by_head(*biases).to(self._dtype) if biases else None
        return Layer(
            qkv=product_with(
                (self._by_head(q.weight, k.weight, v.weight) * attention_norm_D).to(self._dtype), bias
            ),
            qk_norm=norm,
            out=product_with(out.weight.to(self._dtype)),
            gate_up=product_with((torch.cat([gate.weight, up.weight]) * mlp_norm_D).to(self._dtype)),
            down=product_with(down.weight.to(self._dtype)),
            window=shape.window(attention),
        )

    def _by_head(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Rows of the three projections (or their biases) per KV head; queries and keys in RoPE's pairs."""
        q_KXE, k_KXE, v_KXE = (x.unflatten(0, (self._num_kv, -1, self._width)) for x in (q, k, v))
        qk_KXE = torch.cat([q_KXE, k_KXE], 1).index_select(2, self.key_order_E)
        return torch.cat([qk_KXE, v_KXE], 1).flatten(0, 2)


def _normalised(x: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last dimension, but for its weight and the square root of the width."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)
