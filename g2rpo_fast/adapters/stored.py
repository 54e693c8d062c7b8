"""Adapters as files, in PEFT's format: what checkpoints hold of a run that trains them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from g2rpo_fast.adapters.base import coarsen, kept_in
from g2rpo_fast.adapters.beside import PREFIX
from g2rpo_fast.adapters.merged import NAME, adapter_config
from g2rpo_fast.adapters.place import BASE_KEPT, WEIGHTS, base_of, is_adapter
from g2rpo_fast.extras import require


def save_adapters(directory: Path, model: nn.Module) -> None:
    """The adapters of `model`, which PEFT and transformers load on top of its base."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    named = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, directory / WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(adapter_config(model))
    config.inference_mode = True
    config.save_pretrained(str(directory))
    (directory / BASE_KEPT).write_text(json.dumps({"kept_in": kept_in(model)}))


def load_adapters(directory: Path, model: nn.Module) -> None:
    """In place, into a model that has adapters of the same shape. ValueError where they are others."""
    from peft import set_peft_model_state_dict

    named = load_file(directory / WEIGHTS, device=str(next(model.parameters()).device))
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    found = set_peft_model_state_dict(model, tensors, adapter_name=NAME)
    missing = [name for name in found.missing_keys if ".lora_" in name]
    if missing or found.unexpected_keys:
        other = [*missing, *found.unexpected_keys]
        raise ValueError(f"{directory / WEIGHTS}: wanted the model's adapters, got others: {other[0]}")


def merged_model(path: str) -> PreTrainedModel:
    """The whole model that the adapters in `path` and their base are, in float32: of adapters of ours, with
    the base as they were trained on it.

    Raises ValueError where PEFT is not installed; what `from_pretrained` raises otherwise.
    """
    require("peft", f"model.path: wanted the adapters in {path}", extra="adapters")
    from peft import PeftModel

    base = read_causal_lm(base_of(path), torch.float32)
    file = Path(path) / BASE_KEPT
    if file.is_file():
        coarsen(base, json.loads(file.read_bytes())["kept_in"])
    merged: PreTrainedModel = PeftModel.from_pretrained(base, path).merge_and_unload()
    return merged


def read_causal_lm(path: str, dtype: object) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`; of adapters the whole model, in float32."""
    if is_adapter(path):
        return merged_model(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
