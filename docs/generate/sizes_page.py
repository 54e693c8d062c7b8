"""What trains on which GPU, by the arithmetic with which a run chooses its micro-batches (`memory.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.adapters import AdapterConfig
from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.memory import LEAST, Shape, fixed_bytes, most_positions, shape_of
from g2rpo_fast.model.half import keep_half
from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.optim.in_backward import largest_layer
from g2rpo_fast.optim.make import moment_bytes
from generate.as_markdown import table

GIB = 1 << 30
MIB = 1 << 20
CARDS = {"24 GB": 24_564 * MIB, "48 GB": 49_140 * MIB, "80 GB": 81_559 * MIB, "141 GB": 143_771 * MIB}
"""Memory of an RTX 4090, an RTX A6000, an H100 and an H200, as the driver reports it."""
CONTEXT = GIB
"""Of these, what CUDA and its libraries take."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model of the Qwen3 family."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    tied: bool


SIZES = (
    Size(name="Qwen3-0.6B", width=1024, inner=3072, layers=28, heads=16, tied=True),
    Size(name="Qwen3-1.7B", width=2048, inner=6144, layers=28, heads=16, tied=True),
    Size(name="Qwen3-4B", width=2560, inner=9728, layers=36, heads=32, tied=True),
    Size(name="Qwen3-8B", width=4096, inner=12288, layers=36, heads=32, tied=False),
)


HOW: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all, 8-bit moments": {"kind": "adamw_8bit"},
    "all, bfloat16, 8-bit moments": {"kind": "adamw_8bit", "half": True},
    "the same, steps in backward": {"kind": "adamw_8bit", "half": True, "within": True},
    "LoRA": {"adapters": True},
    "QLoRA": {"adapters": True},
}
"""What is trained: everything, or adapters of rank 16 on linear maps in bfloat16 or in 4 bits."""
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of such a weight: with the scale of 64, in 8 bits, and that of 256 scales."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a model takes, however it is trained."""

    shape: Shape
    weight_bytes: int

    @property
    def held_bytes(self) -> int:
        """What is there whatever the batch: weights, gradients, moments, the copy for products, the loss."""
        return self.weight_bytes + fixed_bytes(self.shape, whole=False)

    def recomputing(self) -> Fit:
        """With `model.gradient_checkpointing`."""
        return replace(self, shape=replace(self.shape, checkpointing=True))

    def positions(self, card: int) -> int:
        """Most positions of a micro-batch; 0 where there is no use for so few."""
        fits = most_positions(self.shape, card - CONTEXT - self.weight_bytes, whole=False)
        return fits if fits >= LEAST else 0


@cache
def fit(size: Size, how: str = "all weights") -> Fit:
    """Without checkpointing; of the model as transformers and PEFT make it, with no memory for weights."""
    config = Qwen3Config(
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        tie_word_embeddings=size.tied,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    way = HOW[how]
    if way.get("adapters"):
        asked = AdapterConfig(kind="lora")
        add_adapters(model, asked, base=size.name, seed=0, compute_dtype=torch.bfloat16)
    if way.get("half"):
        keep_half(model)
    sizes = {torch.bfloat16: FOUR_BITS if how == "QLoRA" else 2.0, torch.float32: 4.0}
    shape = shape_of(
        model,
        compute_dtype=torch.bfloat16,
        checkpointing=False,
        moment_bytes=moment_bytes(model, OptimConfig(kind=way.get("kind", "adamw"))),
        num_layer=largest_layer(model) if way.get("within") else None,
    )
    return Fit(
        shape=shape,
        weight_bytes=round(sum(p.numel() * sizes[p.dtype] for p in model.parameters())),
    )


def _cell(plain: int, more: int) -> str:
    return f"{plain:,} / {more:,}" if plain else f"with checkpointing {more:,}" if more else "no"


def sizes_page() -> str:
    rows = []
    for size in SIZES:
        for how in HOW:
            kept = fit(size, how)
            again = kept.recomputing()
            fits = [(kept.positions(card), again.positions(card)) for card in CARDS.values()]
            cells = [_cell(plain, more) for plain, more in fits]
            rows.append([size.name, how, f"{kept.held_bytes / GIB:.1f}", *cells])
    return table(["model", "trained", "GiB, whatever the batch", *CARDS], rows)
