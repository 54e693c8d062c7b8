"""What a user can choose about the model, and the precision it computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from g2rpo_fast.bounds import Ge, check_fields

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

AttentionChoice = Literal["auto", "reference", "cascade", "triton"]
FusedOps = Literal["auto", "off"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy."""

    path: str | None = None
    """Directory or hub id of a causal language model; FILE.gguf, or package:NAME = an installed package's one
    such file; untrained = a tiny one made on the spot, to try a pipeline; None = the embedded default."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; weights and optimiser are always float32. auto = bfloat16 on CUDA, else float32."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights in the run's `model/`. auto = that of the model at `path`. Checkpoints are float32."""
    gradient_checkpointing: bool = False
    """Keep one activation per layer and recompute the rest in the backward pass."""
    attention: AttentionChoice = "auto"
    """Tree attention: reference (quadratic memory), cascade (flash calls), triton (block-sparse, CUDA only);
    auto = cascade where it can, then triton on CUDA, else reference."""
    fused_ops: FusedOps = "auto"
    """RMSNorm and gated SiLU of the Llama, Mistral, Qwen2 and Qwen3 families in one sweep each. auto = by C++
    on a CPU; by Liger-Kernel, RoPE too, on CUDA where it is installed. off = transformers' own code."""

    router_aux: Annotated[float, Ge(0)] | None = None
    """Factor of the loss that balances the experts of a mixture. None = as the model's config.json asks: its
    own factor where output_router_logits is true, else no such loss. 0 = none."""

    def __post_init__(self) -> None:
        check_fields(self, "model")


def compute_dtype(model: PreTrainedModel, config: ModelConfig) -> torch.dtype:
    """What `config.precision` means on the model's device: the dtype of its matrix products."""
    import torch

    wanted = config.precision
    if wanted == "auto":
        wanted = "bfloat16" if model.device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else model.dtype


def compute_context(model: PreTrainedModel, config: ModelConfig) -> AbstractContextManager[object]:
    """Autocast to `compute_dtype`, around forwards of `model`."""
    import torch

    dtype = compute_dtype(model, config)
    return nullcontext() if dtype == model.dtype else torch.autocast(model.device.type, dtype)
