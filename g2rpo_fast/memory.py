"""How many stream positions of packed trees a micro-batch may have: what the free memory of a GPU holds.

    positions = SHARE * (free - fixed) / bytes of a position

Free is measured when a run begins, with the weights, the reference and the engine in place. `fixed_bytes`
are then still to come, whatever the micro-batch; `position_bytes` come with each position. They count what
transformers' own modules keep for the backward pass, under autocast, or what Liger's do: 0.6 of it. A step of
a model in Qwen3-0.6B's shape with Liger's took 61.6 GB of an H200 at 34,816 positions; counted are 64.0.

Dimension key: L layers, D width, F width inside the MLP, H / K query / KV heads, E head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from g2rpo_kernels.linear_logprob.chunks import DEVICE_CHUNK_BYTES
from transformers import PreTrainedModel

from g2rpo_fast.adapters.base import num_weights

CPU_BUDGET = 8192
"""Positions of a micro-batch on a CPU, where memory is shared with everything else."""
LEAST = 1024
"""Fewer positions are no help: weights and optimiser are what does not fit then. Budgets are multiples."""
SHARE = 0.8
"""Of the free memory. The rest: fragments of the allocator, and attention's and the loss's own workspace."""
FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a model, and how it computes."""

    num_parameters: int
    """That are trained; of a model with adapters, those of the adapters."""
    num_frozen: int = 0
    """Float32 numbers that are not trained, but rounded for products as well."""
    trains_head: bool = True
    num_layers: int
    width: int
    inner: int
    """Width inside the MLP; of all experts that one token goes through."""
    num_heads: int
    num_kv_heads: int
    head_width: int
    vocabulary: int
    compute_bytes: int
    """Of a number in the dtype of matrix products."""
    checkpointing: bool
    """Layers keep their input only, and compute the rest again."""
    fused: bool = False
    """Norms, RoPE and the gated MLP of every layer are Liger's."""


def shape_of(
    model: PreTrainedModel, *, compute_dtype: torch.dtype, checkpointing: bool, fused: bool = False
) -> Shape:
    """What its configuration says; what that leaves out is as in GPT-2 (4 D inside, heads of D / H),
    without attention one head."""
    text: Any = model.config.get_text_config()
    head: Any = model.get_output_embeddings()
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    width, num_heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", None) or 1)
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    if experts := getattr(text, "num_experts_per_tok", None):
        inner = int(experts) * int(getattr(text, "moe_intermediate_size", None) or inner)
    return Shape(
        num_parameters=sum(num_weights(p) for p in model.parameters() if p.requires_grad),
        num_frozen=sum(p.numel() for p in frozen),
        trains_head=head.weight.requires_grad,
        num_layers=int(text.num_hidden_layers),
        width=width,
        inner=inner,
        num_heads=num_heads,
        num_kv_heads=int(getattr(text, "num_key_value_heads", None) or num_heads),
        head_width=int(getattr(text, "head_dim", None) or width // num_heads),
        vocabulary=int(text.vocab_size),
        compute_bytes=compute_dtype.itemsize,
        checkpointing=checkpointing,
        fused=fused,
    )


def layer_bytes(shape: Shape) -> int:
    """What a layer keeps of one position for its backward pass."""
    heads = shape.num_heads + shape.num_kv_heads
    attention = 2 * shape.compute_bytes * heads * shape.head_width  # queries, keys, values, output
    attention += FLOAT32 * shape.num_heads  # log-sum-exps
    if shape.fused:
        norms = (
            2 * (FLOAT32 + shape.compute_bytes) * shape.width
        )  # input, and rounded for the products behind
        head_norms = shape.compute_bytes * heads * shape.head_width
        return (
            norms + head_norms + attention + 3 * shape.compute_bytes * shape.inner
        )  # gate, up, their product
    norms = 2 * 2 * FLOAT32 * shape.width  # input and normalised, before attention and before the MLP
    products = 5 * shape.compute_bytes * shape.width  # queries, keys, values, gate and up: a copy for each
    head_norms = (FLOAT32 + shape.compute_bytes) * heads * shape.head_width
    mlp = 4 * shape.compute_bytes * shape.inner  # gate, silu(gate), up, their product
    return norms + products + head_norms + attention + mlp


def position_bytes(shape: Shape) -> int:
    """What one position needs in a forward and backward pass of the whole model.

    All layers' kept tensors, or inputs; one layer's once more for the gradients under way, and once for what
    checkpointing computes again; hidden states and their gradients around the loss.
    """
    layer = layer_bytes(shape)
    kept = FLOAT32 * shape.width if shape.checkpointing else layer
    return shape.num_layers * kept + (2 if shape.checkpointing else 1) * layer + 6 * FLOAT32 * shape.width


def fixed_bytes(shape: Shape) -> int:
    """What an update needs besides its positions, weights not counted.

    Gradients and both moments of AdamW in float32; a copy of the weights for the products; d head of the loss
    and, of tied weights, of the embeddings, before they are added; a chunk of logits.
    """
    copies = shape.compute_bytes if shape.compute_bytes < FLOAT32 else 0
    heads = 2 * FLOAT32 * shape.vocabulary * shape.width if shape.trains_head else 0
    rounded = copies * (shape.num_parameters + shape.num_frozen)
    return 3 * FLOAT32 * shape.num_parameters + rounded + heads + DEVICE_CHUNK_BYTES


def most_positions(shape: Shape, free_bytes: int) -> int:
    """That fit in what is free of the device, with the weights in place; 0 where not even the rest does."""
    return max(0, int(SHARE * (free_bytes - fixed_bytes(shape))) // position_bytes(shape))


def budget_of(shape: Shape, *, free_bytes: int, largest_tree: int, batch_positions: int) -> int:
    """Most positions of a micro-batch, at least `LEAST`.

    What fits, in multiples of `LEAST` unless that would split the largest tree although it fits, and no more
    than a whole batch. A tree that does not fit is split.

    Args:
        free_bytes: of the device, with the weights in place.
        largest_tree: positions of the largest group that may come.
        batch_positions: of all groups of a step.
    """
    fits = most_positions(shape, free_bytes)
    budget = fits // LEAST * LEAST
    if budget < largest_tree <= fits:
        budget = largest_tree
    return max(LEAST, min(budget, batch_positions))


def free_bytes(device: torch.device) -> int:
    """Of a GPU: what nobody has, and what PyTorch keeps of this process's own for the next tensor."""
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved
