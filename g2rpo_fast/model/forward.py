"""Hidden states of a packed prefix tree: each position attends to its own path.

The backbone runs once on the stream of S positions, as a batch of one; the LM head is never called.

Dimension key: S packed tree positions, D width, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from transformers import PreTrainedModel

from g2rpo_fast.backbone import backbone_of, check_length
from g2rpo_fast.model.config import AttentionChoice
from g2rpo_fast.types import TreePlan


@dataclass(frozen=True, kw_only=True)
class TreeOutput:
    """What a forward over a tree returns."""

    hidden_SD: Tensor
    """What the LM head reads (after the final norm)."""
    kv: tuple[tuple[Tensor, Tensor], ...] = ()
    """For each layer (k_SKE, v_SKE), after RoPE, heads not repeated; empty unless collected."""


class TreeContext:
    """The `attend` object of one forward over a tree: see `hook.Attend`. Counts the layers that called it."""

    def __init__(
        self,
        plan: TreePlan,
        device: torch.device,
        *,
        attention: AttentionChoice = "auto",
        collect_kv: bool = False,
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

    def check_layers(self, num_layers: int) -> None:
        """RuntimeError unless each of `num_layers` layers called exactly once since construction."""
        if sorted(self._layers) != list(range(num_layers)):
            raise RuntimeError(
                f"tree attention: wanted one call from each of {num_layers} layers, got calls from layers "
                f"{self._layers}: the others mixed completions. Is the model's attention 'g2rpo_tree'?"
            )


def tree_hidden(
    model: PreTrainedModel, plan: TreePlan, *, attention: AttentionChoice = "auto", collect_kv: bool = False
) -> TreeOutput:
    """Hidden states [S, D] of `plan`'s stream under `model`, and its keys and values with `collect_kv`.

    Position i's state is that of the last token of its path run by itself, up to rounding. Differentiable in
    the parameters, also under gradient checkpointing; dtypes are the model's, or autocast's where one is on.

    Raises:
        RuntimeError: a layer did not use tree attention; the hidden states are then worthless.
        ValueError: `attention` names an implementation that cannot run this model, or a path is longer than
            its RoPE has one set of frequencies for.
    """
    check_length(model.config, int(plan.position_S.max()) + 1)
    indices = [torch.from_numpy(x).long()[None] for x in (plan.token_S, plan.position_S)]
    token_1S, position_1S = to_device(indices, model.device)
    context = TreeContext(plan, model.device, attention=attention, collect_kv=collect_kv)
    backbone: Any = backbone_of(model)
    output = backbone(input_ids=token_1S, position_ids=position_1S, use_cache=False, attend=context)
    context.check_layers(int(model.config.get_text_config().num_hidden_layers))
    return TreeOutput(hidden_SD=output.last_hidden_state.squeeze(0), kv=context.kv())
