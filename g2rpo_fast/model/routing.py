"""Which experts a model computes with: what its routers hand to the stacks of experts, layer by layer.

The choice itself is looked at, not the routers' logits: biases, groups and whatever else a router adds are in
it. Hooks on instances, there for the time of a forward.

Dimension key: N tokens of a forward, K experts of one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from g2rpo_fast.backbone import backbone_of


def stacks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that hold the matrices of all experts of a layer, in the layers' order."""
    return [
        module
        for name, module in backbone_of(model).named_modules()
        if name.rpartition(".")[2] == "experts" and any(p.ndim == 3 for p in module.parameters(recurse=False))
    ]


@contextmanager
def chosen_experts(model: PreTrainedModel, *, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Forwards within it add what each layer's experts were given: [N, K] indices, in the layers' order.

    Their own choice, whatever a replay makes of it afterwards. Nothing if not `wanted`.
    """
    chosen: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        chosen.append(arguments[1].detach())

    handles = [
        stack.register_forward_pre_hook(note, prepend=True) for stack in (stacks_of(model) if wanted else ())
    ]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()
