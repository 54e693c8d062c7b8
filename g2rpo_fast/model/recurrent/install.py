"""Which layers keep a state that can fork, and how their mixers get at the tree of a forward.

transformers' mixers look along the sequence through a few functions of their modules: a mixer gets a copy of
its class's forward in which these names mean the functions of this folder. They take the tree from what the
model's forward passes down as `attend=`, where a checkpoint computes again too; with any other `attend`, or
none, they are transformers' own. Instances only, as in `instances.py`; `module.forward` deleted undoes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from g2rpo_fast.model.context import TreeContext
from g2rpo_fast.model.instances import rebound
from g2rpo_fast.model.recurrent.gated_delta import gated_delta
from g2rpo_fast.model.recurrent.mamba2 import mamba2
from g2rpo_fast.model.recurrent.short_conv import short_conv

SEAMS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": short_conv,
    "torch_chunk_gated_delta_rule": gated_delta,
    "chunk_kimi_delta_attention": gated_delta,
    "mamba2_chunk_scan": mamba2,
}
"""By the name of the function that a mixer calls: what takes its place."""
ATTENDS = ("full_attention", "sliding_attention", "hybrid")
"""Types of layers with attention."""
KEEPS_STATE = ("conv", "linear_attention", "hybrid")
"""Types of layers that keep a state."""
KEEPS_NOTHING = ("mlp", "moe")


@dataclass(frozen=True)
class _Follows:
    """A mixer's forward: holds no module, so that copies of a model have their own."""

    forward: FunctionType
    calls: tuple[tuple[str, int], ...]
    """(seam, layer) that it goes through, once a forward each."""

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.forward(module, *args, **kwargs)


class _HandsOn:
    """The forward of a layer whose mixer is not given the forward's keywords, but `seq_idx`: LFM2's before
    transformers 5.24. A tree says what that says: which positions are of one sequence."""

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(module).forward(module, *args, **kwargs | {"seq_idx": kwargs.get("attend")})


def fork_states(model: PreTrainedModel) -> None:
    """Lets the mixers that keep a state follow a tree. Does nothing to a model without such layers.

    Raises:
        ValueError: naming the type of the model, where a layer that keeps a state is of no known kind.
    """
    layers = _layer_types(model.config)
    wanted = {layer_id for layer_id, kind in enumerate(layers) if kind in KEEPS_STATE}
    if not wanted:
        return
    found: set[int] = set()
    for parent in list(model.modules()):
        for mixer in parent.children():
            forward = _forking(mixer)
            if forward is not None:
                mixer.forward = MethodType(forward, mixer)
                found |= {layer_id for _, layer_id in forward.calls}
                if "seq_idx" in inspect.signature(type(mixer).forward).parameters:
                    parent.forward = MethodType(_HandsOn(), parent)
    if missing := sorted(wanted - found):
        unfork_states(model)
        raise ValueError(
            f"{model.config.model_type}: wanted layers whose state forks ({', '.join(SEAMS)}), got another "
            f"{layers[missing[0]]} in layer {missing[0]}"
        )


def unfork_states(model: PreTrainedModel) -> None:
    """Gives all modules that `fork_states` changed their own forward again."""
    for module in model.modules():
        if isinstance(_function(module), _Follows | _HandsOn):
            del module.forward


def forks_states(model: PreTrainedModel) -> bool:
    """Whether `fork_states` changed anything: the model keeps more than keys and values."""
    return keeps_states(model.config) and any(_mixers(model))


def keeps_states(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration says that some of its layers keep a state."""
    return any(kind in KEEPS_STATE for kind in _layer_types(config))


def calls_of(model: PreTrainedModel) -> tuple[list[int], list[tuple[str, int]]]:
    """What a forward over a tree goes through, once each: layers with attention; (seam, layer) of states.

    Raises:
        RuntimeError: a layer that keeps a state has lost the forward that `fork_states` gave it.
    """
    layers = _layer_types(model.config)
    if not set(layers) & {*KEEPS_STATE, *KEEPS_NOTHING}:
        return list(range(int(model.config.get_text_config().num_hidden_layers))), []
    attending = [layer_id for layer_id, kind in enumerate(layers) if kind in ATTENDS]
    states = [call for mixer in _mixers(model) for call in mixer.calls]
    keeping = {layer_id for layer_id, kind in enumerate(layers) if kind in KEEPS_STATE}
    if lost := keeping - {layer_id for _, layer_id in states}:
        raise RuntimeError(
            f"recurrent layers: wanted all to follow the tree, got layers {sorted(lost)} not to"
        )
    return attending, states


def _layer_types(config: PreTrainedConfig) -> list[str]:
    return list(getattr(config.get_text_config(), "layer_types", None) or [])


def _function(module: nn.Module) -> Any:
    return getattr(vars(module).get("forward"), "__func__", None)


def _mixers(model: PreTrainedModel) -> Iterator[_Follows]:
    for module in model.modules():
        function = _function(module)
        if isinstance(function, _Follows):
            yield function


def _forking(mixer: nn.Module) -> _Follows | None:
    layer_id, forward = getattr(mixer, "layer_idx", None), type(mixer).forward
    if not isinstance(layer_id, int) or not inspect.isfunction(forward):
        return None
    names = inspect.unwrap(forward).__code__.co_names
    calls = {name: (name, layer_id) for name in SEAMS if name in names}
    copy = rebound(forward, {name: partial(_either, SEAMS[name], call) for name, call in calls.items()})
    return None if copy is None else _Follows(copy, tuple(calls.values()))


def _either(
    following: Callable[..., Any],
    call: tuple[str, int],
    original: Callable[..., Any],
    *args: Any,
    attend: Any = None,
    seq_idx: Any = None,
    **kwargs: Any,
) -> Any:
    """What a name of `SEAMS` means in a mixer."""
    context = seq_idx if attend is None else attend
    if isinstance(context, TreeContext):
        return following(original, context.segments(call), *args, **kwargs)
    packed = {"seq_idx": seq_idx} if isinstance(seq_idx, Tensor) else {}
    return original(*args, **packed, **kwargs)
