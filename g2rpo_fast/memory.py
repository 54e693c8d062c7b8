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
    moment_bytes: int | None = None
    """Of the optimiser's moments; None = two float32 numbers for each that is trained."""
    num_half: int = 0
    """Numbers that are trained and kept in the compute dtype, of which products need no copy."""
    num_layer: int | None = None
    """Numbers of the largest layer, where gradients are freed layer by layer (optim.in_backward)."""
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
    num_recomputed: int | None = None
    """How many layers do, with checkpointing; None = all."""
    offloaded: bool = False
    """What they keep lies in the host's memory."""
    fused: bool = False
    """Norms, RoPE and the gated MLP of every layer are Liger's."""


def shape_of(
    model: PreTrainedModel, *, compute_dtype: torch.dtype, checkpointing: bool, **settings: Any
) -> Shape:
    """What its configuration says; what that leaves out is as in GPT-2 (4 D inside, heads of D / H),
    without attention one head.

    Args:
        settings: other fields of the shape, which the model does not know.
    """
    text: Any = model.config.get_text_config()
    head: Any = model.get_output_embeddings()
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    trained = [p for p in model.parameters() if p.requires_grad]
    width, num_heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", None) or 1)
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    if experts := getattr(text, "num_experts_per_tok", None):
        inner = int(experts) * int(getattr(text, "moe_intermediate_size", None) or inner)
    return Shape(
        num_parameters=sum(map(num_weights, trained)),
        num_half=sum(p.numel() for p in trained if p.dtype == compute_dtype != torch.float32),
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
        **settings,
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
    again = 0
    if shape.checkpointing:
        again = shape.num_layers if shape.num_recomputed is None else shape.num_recomputed
    kept = 0 if shape.offloaded else FLOAT32 * shape.width
    layers = again * kept + (shape.num_layers - again) * layer
    return layers + (2 if again else 1) * layer + 6 * FLOAT32 * shape.width


def moments_of(shape: Shape) -> int:
    """Bytes of the optimiser's moments."""
    return 2 * FLOAT32 * shape.num_parameters if shape.moment_bytes is None else shape.moment_bytes


def gradient_bytes(shape: Shape, *, whole: bool = True) -> int:
    """Of float32 gradients: all weights', or (`whole` is False) what is there at once of a step that is one
    micro-batch, where layers take their steps in its backward pass: a layer's, the embeddings', the head's.
    """
    if whole or shape.num_layer is None:
        return FLOAT32 * shape.num_parameters
    outside = shape.num_parameters - shape.num_layers * shape.num_layer
    return FLOAT32 * (max(outside, 0) + shape.num_layer)


def fixed_bytes(shape: Shape, *, whole: bool = True) -> int:
    """What an update needs besides its positions, weights not counted.

    Gradients (see `gradient_bytes`) and moments; a copy of float32 weights for the products; d head of the
    loss and, of tied weights, of the embeddings, before they are added; a chunk of logits.
    """
    copies = shape.compute_bytes if shape.compute_bytes < FLOAT32 else 0
    heads = 2 * FLOAT32 * shape.vocabulary * shape.width if shape.trains_head else 0
    rounded = copies * (shape.num_parameters - shape.num_half + shape.num_frozen)
    return gradient_bytes(shape, whole=whole) + moments_of(shape) + rounded + heads + DEVICE_CHUNK_BYTES


def most_positions(shape: Shape, free_bytes: int, *, whole: bool = True) -> int:
    """That fit in what is free of the device, with the weights in place; 0 where not even the rest does."""
    return max(0, int(SHARE * (free_bytes - fixed_bytes(shape, whole=whole))) // position_bytes(shape))


def budget_of(
    shape: Shape,
    *,
    free_bytes: int,
    largest_tree: int,
    batch_positions: int,
    step_positions: int | None = None,
) -> int:
    """Most positions of a micro-batch, at least `LEAST`.

    What fits, in multiples of `LEAST` unless that would split the largest tree although it fits, and no more
    than a whole batch. A tree that does not fit is split.

    Args:
        free_bytes: of the device, with the weights in place.
        largest_tree: positions of the largest group that may come.
        batch_positions: of all groups of a step.
        step_positions: of those of one optimiser step; None = of all. Where layers move in the backward pass
            and these fit one micro-batch, or gradients of all weights do not fit at all, there is never more
            than a layer's gradient.
    """
    fits, together = most_positions(shape, free_bytes), largest_tree
    if shape.num_layer is not None:
        step = step_positions or batch_positions
        alone = most_positions(shape, free_bytes, whole=False)
        if alone >= step:
            fits, together = alone, step
        elif fits < LEAST:
            fits = alone
    budget = fits // LEAST * LEAST
    if budget < together <= fits:
        budget = together
    return max(LEAST, min(budget, batch_positions))


def free_bytes(device: torch.device) -> int:
    """Of a GPU: what nobody has, and what PyTorch keeps of this process's own for the next tensor."""
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved
