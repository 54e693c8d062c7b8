"""vLLM's LoRA inside its workers: base weights pass under its wrappers, and adapters are looked for.

With `enable_lora` vLLM puts a wrapper around each map that may be adapted. Names of parameters then have
`base_layer` in them, which its own loaders do not know; and adapters for which there is no wrapper are left
out without a word.

Of vLLM this needs `BaseLayerWithLoRA.base_layer`, and of `model.lora_manager` (which vLLM sets) `modules`
and `get_adapter`. The same in 0.20.0 and 0.32.0 (read in both wheels; run with 0.32.0).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

ADAPTER_ID = 1
"""The one adapter that the engine ever has; each version takes the place of the last."""


@contextmanager
def without_wrappers(model: nn.Module) -> Iterator[None]:
    """Within it the model has the modules and names that it had before LoRA was enabled."""
    if _manager_of(model) is None:
        yield
        return
    kind: type[Any] = importlib.import_module("vllm.lora.layers").BaseLayerWithLoRA
    every = model.named_modules(remove_duplicate=False)
    wrappers: dict[str, Any] = {name: module for name, module in every if isinstance(module, kind)}
    try:
        for name, wrapper in wrappers.items():
            _put(model, name, wrapper.base_layer)
        yield
    finally:
        for name, wrapper in wrappers.items():
            _put(model, name, wrapper)


def left_out(model: nn.Module, num_maps: int) -> str | None:
    """Why vLLM does not compute with all `num_maps` adapted maps that it was given; None = it does."""
    manager = _manager_of(model)
    adapter = None if manager is None else manager.get_adapter(ADAPTER_ID)
    if manager is None or adapter is None:
        return "it holds no adapters"
    # Those of maps that vLLM has fused are in lists, with None for a map without adapters.
    found = {
        name: sum(a is not None for a in lora.lora_a) if isinstance(lora.lora_a, list) else 1
        for name, lora in adapter.loras.items()
    }
    unknown = [name for name in found if name not in manager.modules]
    if unknown:
        return f"it adapts no map called {unknown[0]}"
    got = sum(found.values())
    return None if got == num_maps else f"it took {got} of {num_maps} adapted maps"


def _manager_of(model: nn.Module) -> Any:
    return vars(model).get("lora_manager")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
