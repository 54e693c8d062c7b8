"""Weights in bfloat16 that an optimiser of float32 weights moves, rounded at random.

A step is often smaller than half of the gap between two bfloat16 numbers, and rounding to the nearest one
would lose it, every time. So w + step is rounded to one of its two neighbours, to each with the probability
that makes its mean w + step (arXiv 1502.02551; for training in bfloat16 alone arXiv 2010.06192).

Each weight is float32 for the time of its step: some of them at once, never all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

AT_ONCE = 1 << 24
"""Numbers that are float32 at once; more only where one weight alone has more. Also of random numbers."""
LOW_BITS = 16
"""Of a float32 number, those that a bfloat16 one lacks."""


class Rounded(Optimizer):
    """An optimiser over float32 stand-ins of `groups`' parameters, which step for these a few at a time.

    Its `param_groups` hold the parameters; other entries of a group (the learning rate) go to the inner
    optimiser's at each step. The random numbers are those of the step's number and the parameter's place: a
    state that is loaded goes on with the same ones, and steps of some parameters at a time draw what one
    step of all would.

    Args:
        make: the inner optimiser. Its state must not hold the parameters' own values.
        groups: parameters in bfloat16 or float32, whose gradients are float32 (`Tensor.grad_dtype`).
    """

    def __init__(
        self, make: Callable[[list[dict[str, Any]]], Optimizer], groups: list[dict[str, Any]]
    ) -> None:
        super().__init__(groups, {})
        stand_ins = [
            [nn.Parameter(p.new_empty((0,) * p.dim(), dtype=torch.float32)) for p in group["params"]]
            for group in groups
        ]
        inner_groups = [{**group, "params": of} for group, of in zip(groups, stand_ins, strict=True)]
        self._inner = make(inner_groups)
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})
        self._pairs = [
            (p, stand_in)
            for group, of in zip(self.param_groups, stand_ins, strict=True)
            for p, stand_in in zip(group["params"], of, strict=True)
        ]
        self._steps = [0] * len(self._pairs)
        """Of each parameter."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of the parameters that have a gradient."""
        assert closure is None, "the gradients are there already"
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})
        for places in self._portions():
            for place in places:
                parameter, stand_in = self._pairs[place]
                stand_in.data = parameter.detach().to(torch.float32)
                stand_in.grad = parameter.grad
            self._inner.step()
            for place in places:
                self._put_back(place)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self._inner.state_dict(), "steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._inner.load_state_dict(state_dict["inner"])
        self._steps = list(state_dict["steps"])

    def _portions(self) -> Iterator[list[int]]:
        """Places of parameters with a gradient, up to `AT_ONCE` numbers together."""
        places, held = [], 0
        for place, (parameter, _) in enumerate(self._pairs):
            if parameter.grad is None:
                continue
            if places and held + parameter.numel() > AT_ONCE:
                yield places
                places, held = [], 0
            places.append(place)
            held += parameter.numel()
        if places:
            yield places

    def _put_back(self, place: int) -> None:
        parameter, stand_in = self._pairs[place]
        self._steps[place] += 1
        if parameter.dtype == torch.bfloat16:
            draw = torch.Generator(parameter.device)
            draw.manual_seed((self._steps[place] << 20) + place)
            portions = zip(stand_in.data.view(-1).split(AT_ONCE), parameter.view(-1).split(AT_ONCE))
            for portion, rounded in portions:
                rounded.copy_(rounded_at_random(portion, draw))
        else:
            parameter.copy_(stand_in)
        stand_in.data, stand_in.grad = stand_in.data.new_empty(0), None


def rounded_at_random(x: Tensor, generator: torch.Generator) -> Tensor:
    """x as bfloat16: one of its two neighbours, whose mean over `generator`'s draws is x.

    Args:
        x: any shape, float32, finite. It is overwritten.
    """
    bits = x.view(torch.int32)
    bits += torch.empty_like(bits).random_(0, 1 << LOW_BITS, generator=generator)
    bits &= -1 << LOW_BITS
    return x.to(torch.bfloat16)
