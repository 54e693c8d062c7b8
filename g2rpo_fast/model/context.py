"""What one forward over a packed prefix tree is to the layers of a model: see `hook.Attend`, and `recurrent`.

Dimension key: S packed tree positions, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from g2rpo_kernels.transfer import to_device
from g2rpo_kernels.tree_attention import (
    CascadePlan,
    Impl,
    Nodes,
    TilePlan,
    cascade_plan,
    tile_plan,
    tree_attention,
)
from torch import Tensor, nn

from g2rpo_fast.model.config import AttentionChoice
from g2rpo_fast.model.recurrent.segments import Segments
from g2rpo_fast.types import TreePlan

SHARED = -1
"""The number of an attention that several layers share."""


class TreeContext:
    """The `attend` object of one forward over a tree: see `hook.Attend`. Counts the layers that called it.

    Args:
        states: (function, layer) of all that looks along the tree besides attention: see `recurrent`.
    """

    def __init__(
        self,
        plan: TreePlan,
        device: torch.device,
        *,
        attention: AttentionChoice = "auto",
        collect_kv: bool = False,
        states: Sequence[tuple[str, int]] = (),
    ) -> None:
        end_S, position_S = torch.from_numpy(plan.end_S), torch.from_numpy(plan.position_S)
        self._end_S, self._position_S = to_device([end_S, position_S], device)
        self._impl: Impl | None = None if attention == "auto" else attention
        self._plan: CascadePlan | None = None
        if attention in ("auto", "cascade"):
            start_Q, parent_Q = map(torch.from_numpy, (plan.node_start_Q, plan.node_parent_Q))
            nodes = Nodes.of(start_Q, parent_Q, end_S)
            self._plan = cascade_plan(end_S, device, nodes=nodes)
        self._tiles: TilePlan | None = None
        if attention in ("auto", "triton"):
            self._tiles = tile_plan(end_S, position_S, device)
        self._collect = collect_kv
        self._layers: list[int] = []
        self._kv: dict[int, tuple[Tensor, Tensor]] = {}
        self._states = states
        self._segments = Segments(plan, device) if states else None
        self._state_calls: list[tuple[str, int]] = []

    def segments(self, call: tuple[str, int]) -> Segments:
        """The tree's nodes, for a function of a layer that keeps a state: `call`, one of `states`."""
        assert self._segments is not None
        self._state_calls.append(call)
        return self._segments

    def __call__(
        self,
        module: nn.Module,
        q_1HSE: Tensor,
        k_1KSE: Tensor,
        v_1KSE: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """out [1, S, H, E], in the autocast dtype where one is on.

        On a CPU it is computed in float32 then: PyTorch's flash attention takes 2.5 times as long for half
        operands there, backward.
        """
        assert q_1HSE.shape[0] == 1, "a packed tree is a batch of one"
        layer_id = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
        self._layers.append(layer_id)
        device = q_1HSE.device.type
        inputs = [x.squeeze(0).transpose(0, 1) for x in (q_1HSE, k_1KSE, v_1KSE)]  # x[0] copies backward
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
        attended = torch.promote_types(dtype, torch.float32) if device == "cpu" else dtype
        q_SHE, k_SKE, v_SKE = (x.to(attended) for x in inputs)
        if self._collect:
            self._kv[layer_id] = k_SKE.detach(), v_SKE.detach()
        with torch.autocast(device, enabled=False):
            out_SHE = tree_attention(
                q_SHE,
                k_SKE,
                v_SKE,
                self._end_S,
                position_S=self._position_S,
                scale=scaling,
                window=window,
                softcap=softcap,
                impl=self._impl,
                plan=self._plan,
                tiles=self._tiles,
            )
        return out_SHE[None].to(dtype)

    def kv(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """What was collected, in the layers' order."""
        return tuple(self._kv[layer_id] for layer_id in sorted(self._kv))

    def check_layers(self, attending: Sequence[int]) -> None:
        """RuntimeError unless each layer of `attending`, and each of `states`, called exactly once so far.

        Layers that share one attention (Zamba2's) have no number there, and are counted.
        """
        shared = {*self._layers} == {SHARED} and len(self._layers) == len(attending)
        if not shared and sorted(self._layers) != list(attending):
            raise RuntimeError(
                f"tree attention: wanted one call from each of {len(attending)} layers, got calls from "
                f"layers {self._layers}: the others mixed completions. Is the model's attention 'g2rpo_tree'?"
            )
        if sorted(self._state_calls) != sorted(self._states):
            raise RuntimeError(
                f"recurrent layers: wanted one call of each of {len(self._states)} functions, got "
                f"{sorted(self._state_calls)}: the others mixed completions, or their layers did not hand on "
                "the forward's keywords"
            )
