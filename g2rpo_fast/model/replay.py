"""A forward that goes through given experts, weighted by what the model's own routers say of these.

A router's weights are a softmax or a sigmoid of its logits, those of a token made to sum to 1 or not, times a
number: which, is found out on a small forward, not by names. As in R3 (arXiv 2510.11370) the gradient goes
through the routers' weights.

Dimension key: S packed positions, E experts, K experts of one token, L layers with experts, U positions whose
experts are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from g2rpo_fast.backbone import backbone_of
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.probe import small_tree
from g2rpo_fast.model.routing import stacks_of

TOLERANCE = 1e-4
"""Of a weight, which is about 1."""


@dataclass(frozen=True)
class Forced:
    """The experts of some positions; all others keep their own."""

    position_U: Tensor
    """int64, each once."""
    expert_ULK: Tensor


@dataclass(frozen=True)
class Scoring:
    """A token's weight of each of its experts, from its router's logits."""

    of: Literal["softmax", "sigmoid"]
    normalised: bool
    scale: float = 1.0

    def weights(self, logits_SE: Tensor, index_SK: Tensor) -> Tensor:
        """[S, K] float32 or wider, differentiable in the logits."""
        wide_SE = logits_SE.to(torch.promote_types(logits_SE.dtype, torch.float32))
        score_SE = wide_SE.softmax(-1) if self.of == "softmax" else wide_SE.sigmoid()
        weight_SK = score_SE.gather(-1, index_SK)
        if self.normalised:
            weight_SK = weight_SK / weight_SK.sum(-1, keepdim=True)
        return weight_SK * self.scale


@dataclass(frozen=True)
class Layer:
    experts: nn.Module
    router: nn.Module
    place: int | None
    """Of the logits in what the router returns; None = they are all of it."""
    scoring: Scoring

    def hooks(self, forced: Forced, layer: int) -> Iterator[RemovableHandle]:
        """Which make its experts those given; they also hold while a checkpoint is computed again."""
        latest: list[Tensor] = []

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            latest[:] = [(output if self.place is None else output[self.place]).flatten(0, -2)]

        def replace(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, index_SK, weight_SK, *others = arguments
            given_SK = index_SK.clone()
            given_SK[forced.position_U] = forced.expert_ULK[:, layer].to(index_SK.dtype)
            mask_S1 = torch.zeros_like(index_SK[:, :1], dtype=torch.bool)
            mask_S1[forced.position_U] = True
            found_SK = self.scoring.weights(latest[0], given_SK).to(weight_SK.dtype)
            return hidden, given_SK, torch.where(mask_S1, found_SK, weight_SK), *others

        yield self.router.register_forward_hook(keep)
        yield self.experts.register_forward_pre_hook(replace)


@dataclass(frozen=True)
class Replay:
    """How the experts of one model can be given."""

    layers: tuple[Layer, ...]

    @contextmanager
    def forced(self, given: Forced) -> Iterator[None]:
        """Forwards of one tree, and their backward passes, go through these experts."""
        handles = [hook for i, layer in enumerate(self.layers) for hook in layer.hooks(given, i)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def replay_of(model: PreTrainedModel) -> Replay:
    """ValueError, naming the model type, where that is not known how, or the model follows no trees."""
    name = f"objective.replay_routing: {model.config.model_type}"
    if not follows_trees(model):
        raise ValueError(f"{name}: wanted a model that follows prefix trees, got one that does not")
    plan, _ = small_tree(5, int(model.config.get_text_config().vocab_size))
    seen: list[tuple[Tensor, Tensor]] = []
    outputs: list[tuple[nn.Module, int | None, Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append((arguments[1], arguments[2]))

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        parts = enumerate(output) if isinstance(output, tuple) else [(None, output)]
        outputs.extend((module, place, part) for place, part in parts if isinstance(part, Tensor))

    stacks = stacks_of(model)
    handles = [stack.register_forward_pre_hook(note) for stack in stacks]
    handles += [module.register_forward_hook(keep) for module in _beside(model, stacks)]
    try:
        logits = tree_hidden(model, plan, attention="reference", routed=True).router_logits
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{name}: wanted layers that hand experts their tokens' weights") from error
    finally:
        for handle in handles:
            handle.remove()
    if not stacks or not len(logits) == len(seen) == len(stacks):
        counts = f"{len(logits)} routers, {len(stacks)} stacks of experts"
        raise ValueError(f"{name}: wanted a router for each stack of experts, got {counts}")
    layers = []
    for stack, logits_SE, (index_SK, weight_SK) in zip(stacks, logits, seen, strict=True):
        router = next(((m, i) for m, i, out in outputs if _same(out, logits_SE)), None)
        scoring = scoring_of(logits_SE, index_SK, weight_SK)
        if router is None or scoring is None:
            raise ValueError(f"{name}: wanted weights that are a softmax or sigmoid of the routers' logits")
        layers.append(Layer(stack, *router, scoring))
    return Replay(tuple(layers))


def scoring_of(logits_SE: Tensor, index_SK: Tensor, weight_SK: Tensor) -> Scoring | None:
    """That which makes these weights of these logits; None = none does."""
    if weight_SK.shape != index_SK.shape:
        return None
    kinds: tuple[Literal["softmax", "sigmoid"], ...] = ("softmax", "sigmoid")
    for kind in kinds:
        for normalised in (False, True):
            plain_SK = Scoring(kind, normalised).weights(logits_SE, index_SK)
            ratio = float((weight_SK / plain_SK).median())
            found = Scoring(kind, normalised, 1.0 if abs(ratio - 1) < TOLERANCE else ratio)
            error_SK = (found.weights(logits_SE, index_SK) - weight_SK).abs()
            if float(error_SK.max()) < TOLERANCE * max(1.0, abs(ratio)):
                return found
    return None


def _same(output: Tensor, logits_SE: Tensor) -> bool:
    flat = output.flatten(0, -2) if output.ndim > 1 else output
    return flat.shape == logits_SE.shape and torch.equal(flat, logits_SE)


def _beside(model: PreTrainedModel, stacks: list[nn.Module]) -> list[nn.Module]:
    """The modules in the same blocks as the stacks of experts."""
    names = {id(module): name for name, module in backbone_of(model).named_modules()}
    blocks = [names[id(stack)].rpartition(".")[0] for stack in stacks]
    return [
        module
        for name, module in backbone_of(model).named_modules()
        if any(name.startswith(f"{block}.") for block in blocks) and ".experts" not in name
    ]
