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
    """Of matrix products; their sums are float32. auto = bfloat16 on CUDA and with `weights` = bfloat16, else
    float32."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """What the trained weights are kept in. bfloat16: 2 bytes a number for 4 (norms and biases stay float32);
    each step of the optimiser is taken in float32 and rounded at random, so that small ones count."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights in the run's `model/`. auto = that of the model at `path`. Checkpoints have
    `weights`."""
    gradient_checkpointing: bool = False
    """Keep one activation per layer and recompute the rest in the backward pass."""
    checkpointed_layers: Annotated[int, Ge(1)] | None = None
    """With gradient_checkpointing: of how many layers, from the first on; none = all. Fewer take less time,
    and more memory."""
    offload_activations: bool = False
    """With gradient_checkpointing, on CUDA: what is kept of a layer waits in the host's memory."""
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
        if self.weights == "bfloat16" and self.precision == "float32":
            raise ValueError(
                "model.precision: wanted auto or bfloat16 with model.weights = bfloat16, got float32"
            )
        for name in ("checkpointed_layers", "offload_activations"):
            if getattr(self, name) and not self.gradient_checkpointing:
                raise ValueError(f"model.gradient_checkpointing: wanted true with model.{name}, got false")


def check_device(config: ModelConfig, device: str) -> None:
    """ValueError where a key is none for the device."""
    if config.offload_activations and device == "cpu":
        raise ValueError(
            "model.offload_activations: wanted false on a CPU, where they are in the host's memory, got true"
        )


def compute_dtype(model: PreTrainedModel, config: ModelConfig) -> torch.dtype:
    """What `config.precision` means on the model's device: the dtype of its matrix products."""
    import torch

    wanted = config.precision
    if wanted == "auto":
        wanted = "bfloat16" if "bfloat16" in (config.weights, _on(model.device)) else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else model.dtype


def _on(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" else "float32"


def compute_context(model: PreTrainedModel, config: ModelConfig) -> AbstractContextManager[object]:
    """Autocast to `compute_dtype`, around forwards of `model`."""
    import torch

    dtype = compute_dtype(model, config)
    return torch.autocast(model.device.type, dtype) if dtype.itemsize < 4 else nullcontext()
