"""Steps that layers take within the backward pass, each when its gradients are complete.

The gradient of what enters a layer is complete only when all that the layer computes from it has been passed
backwards. Then the layer's weights have their gradients, take their step, and the gradients are freed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer

from g2rpo_fast.optim import set_rate


class InBackward:
    """The steps of one optimiser step that are taken before its end.

    Attributes:
        norm: of the gradients of these layers so far. When it is not finite, no layer moves any more.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, lr: float) -> None:
        self._optimizer, self._lr = optimizer, lr
        self._layers = layers_of(model)
        self._of_layer = weights_of(self._layers)
        self._entered = dict.fromkeys(self._layers, 0)
        self._moved: set[nn.Parameter] = set()
        self.norm = 0.0

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Around the forward and backward pass after which the gradients are complete.

        Raises RuntimeError, in a model whose layers hand on more than their input's gradient tells, where a
        weight got a gradient after its step.
        """
        set_rate(self._optimizer, self._lr)
        hooks = [layer.register_forward_pre_hook(self._enters, with_kwargs=True) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        late = sum(p.grad is not None for p in self._moved)
        if late:
            raise RuntimeError(
                f"optim.in_backward: wanted layers whose gradients are complete when that of their input is, "
                f"got {late} weights with more after their step: set it to false for this model"
            )

    def _enters(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.requires_grad and torch.is_grad_enabled():
            self._entered[layer] += 1
            hidden.register_hook(partial(self._left, layer))

    def _left(self, layer: nn.Module, _: Tensor) -> None:
        """The backward pass has left the layer; it moves if that was the last time."""
        self._entered[layer] -= 1
        if self._entered[layer] == 0:
            self._step(self._of_layer[layer])

    def _step(self, weights: list[nn.Parameter]) -> None:
        """Of these weights alone."""
        ready = [p for p in weights if p.grad is not None]
        norm = get_total_norm([p.grad for p in ready if p.grad is not None])
        self.norm = math.hypot(self.norm, float(norm))
        if not math.isfinite(self.norm):
            return
        moving = set(ready)
        every = [p for group in self._optimizer.param_groups for p in group["params"]]
        waiting = [(p, p.grad) for p in every if p.grad is not None and p not in moving]
        for p, _ in waiting:
            p.grad = None
        self._optimizer.step()
        self._moved |= moving
        for p in ready:
            p.grad = None
        for p, gradient in waiting:
            p.grad = gradient


def largest_layer(model: nn.Module) -> int:
    """Trained numbers of the layer that has most."""
    sizes = [sum(p.numel() for p in weights) for weights in weights_of(layers_of(model)).values()]
    return max(sizes, default=0)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers, as transformers marks them."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def weights_of(layers: list[nn.Module]) -> dict[nn.Module, list[nn.Parameter]]:
    """Each layer's trainable weights, without those that another layer has, too."""
    owners: dict[nn.Parameter, int] = {}
    for layer in layers:
        for p in set(layer.parameters()):
            owners[p] = owners.get(p, 0) + 1
    return {layer: [p for p in layer.parameters() if p.requires_grad and owners[p] == 1] for layer in layers}
