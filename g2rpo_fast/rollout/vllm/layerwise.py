"""Weights into a live vLLM model whatever became of them after loading: vLLM's own layerwise reload.

    initialize_layerwise_reload(model)        every layer back to its checkpoint format, on the meta device
    model.load_weights(pairs)                 buffered until a layer is complete; it is then loaded into a new
                                              layer, processed (quantised, packed), copied to the old storage
    finalize_layerwise_reload(model, config)  attention scales, padded layers

Two copies of every byte and Python for every tensor, but right for any layout: quantised, packed for a CPU
library (quantised experts on a CPU excepted: `refusal`). What vLLM leaves out is added: a reload that lacks
any is an error (vLLM warns, and leaves uninitialised memory in fused layers), and on a CPU heads that share a
weight, and experts, are packed again.

Not atomic: after any exception the model holds meta tensors and must not be used again.

The reload functions are internal to vLLM: `reload_functions` is the one place that imports them. They are
the same in 0.20.0 and 0.32.0 (read in both wheels; run with 0.32.0).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from g2rpo_fast.rollout.vllm.versions import SUPPORTED

EXPERTS = "UnquantizedFusedMoEMethod"
"""The `quant_method` of experts that a CPU packs when it makes their kernel."""


@dataclass(frozen=True)
class ReloadFunctions:
    """What is used of vLLM's internals."""

    info: Any
    """layer -> its LayerReloadingInfo: `restore_metadata`, `load_numel`, `can_load()`."""
    initialize: Any
    finalize: Any
    materialize: Any
    """Meta tensor -> a new tensor of its class, with its loader."""
    restore_references: Any
    """(tensor, layer): its loader is the layer's method again."""
    original_loader: Any
    """Parameter -> its loader without what an earlier reload wrapped around it."""
    with_config: Any
    """Context in which layers find vLLM's configuration."""


def reload_functions() -> ReloadFunctions:
    """RuntimeError, with the version found and those supported, when vLLM has moved them."""
    package = "vllm.model_executor.model_loader.reload"
    try:
        layerwise, meta, sanitize = (
            importlib.import_module(f"{package}.{name}") for name in ("layerwise", "meta", "sanitize")
        )
        return ReloadFunctions(
            info=layerwise.get_layerwise_info,
            initialize=layerwise.initialize_layerwise_reload,
            finalize=layerwise.finalize_layerwise_reload,
            materialize=meta.materialize_meta_tensor,
            restore_references=sanitize.restore_layer_refs,
            original_loader=layerwise._get_original_loader,
            with_config=importlib.import_module("vllm.config").set_current_vllm_config,
        )
    except (ImportError, AttributeError) as error:
        version = importlib.import_module("vllm").__version__
        raise RuntimeError(
            f"layerwise reload: wanted vLLM {SUPPORTED}, got {version}, without {error.name}"
        ) from error


def refusal(model: nn.Module, device: torch.device) -> str | None:
    """Why a reload would not reach what the kernels read; None = it does."""
    if device.type != "cpu":
        return None
    for name, layer in model.named_modules():
        method = getattr(layer, "quant_method", None)
        kind = type(method).__name__
        if "MoE" in kind and (kind != EXPERTS or vars(method).get("moe_kernel") is None):
            return (
                f"{name}: on a CPU vLLM computes from packed experts, which its reload does not renew for "
                f"{kind}; rollout.engine = local samples from it"
            )
    return None


def pack_experts_again(model: nn.Module) -> None:
    """On a CPU: the reload that comes packs unquantised experts as the first load did.

    vLLM packs them only while a layer has no kernel; later it would copy weights as they are over the packed.
    """
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if type(method).__name__ == EXPERTS:
            method.moe_kernel = None  # pyright: ignore[reportOptionalMemberAccess]


@torch.no_grad()
def layerwise_reload(
    model: nn.Module, vllm_config: Any, weights: Iterable[tuple[str, Tensor]], *, device: torch.device
) -> None:
    """Every parameter of `model`, which is on `device`, from `weights`, (checkpoint name, full tensor) pairs.

    RuntimeError names layers whose weights did not all come.
    """
    functions = reload_functions()
    sharing = weight_sharing(model)
    if device.type == "cpu":
        pack_experts_again(model)
    with functions.with_config(vllm_config):
        functions.initialize(model)
        model.load_weights(weights)  # pyright: ignore[reportCallIssue]
        missing, tied = _not_loaded(model, functions, sharing)
        if missing:
            raise RuntimeError(
                f"layerwise reload: wanted all weights, got none or too few for {len(missing)} layers: "
                + ", ".join(missing[:8])
            )
        functions.finalize(model, vllm_config.model_config)
        for layer in tied:
            pack_again(layer)


def weight_sharing(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """Layers whose `weight` is also that of others (a head tied to the embedding) -> those others."""
    owners: dict[int, list[nn.Module]] = {}
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(layer)
    return {
        layer: [other for other in layers if other is not layer]
        for layers in owners.values()
        if len(layers) > 1
        for layer in layers
    }


def pack_again(layer: nn.Module) -> None:
    """On a CPU: vLLM computes a linear layer from a packed copy, and packs only the layers it reloads."""
    if "cpu_linear" in vars(layer):
        layer.quant_method.process_weights_after_loading(layer)  # pyright: ignore


def _not_loaded(
    model: nn.Module, functions: ReloadFunctions, sharing: dict[nn.Module, list[nn.Module]]
) -> tuple[list[str], list[nn.Module]]:
    """(layers that lack weights, layers that have theirs by sharing alone), before the end of a reload."""
    lacking = {
        layer: f"{name} ({functions.info(layer).load_numel} of {_wanted_elements(layer)} elements)"
        for name, layer in model.named_modules()
        if functions.info(layer).can_load()  # else complete, and back in its place
        and functions.info(layer).load_numel < _wanted_elements(layer)
    }
    tied = [
        layer
        for layer in lacking
        if not functions.info(layer).load_numel and any(o not in lacking for o in sharing.get(layer, ()))
    ]
    return [text for layer, text in lacking.items() if layer not in tied], tied


def _wanted_elements(layer: nn.Module) -> int:
    """Elements that a checkpoint has for a layer: a vocabulary is padded, buffers are not loaded."""
    shard = vars(layer).get("shard_indices")
    parameters = [p for p in layer._parameters.values() if p is not None]
    if shard is not None:
        return sum(p.numel() // p.shape[0] * shard.num_org_elements for p in parameters)
    return sum(getattr(p, "weight_loader_numel", p.numel()) for p in parameters)
