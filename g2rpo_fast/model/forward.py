"""Hidden states of a packed prefix tree: each position attends to its own path.

The backbone runs once on the stream of S positions, as a batch of one; the LM head is never called.

Dimension key: S packed tree positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from g2rpo_kernels.transfer import to_device
from transformers import PreTrainedModel

from g2rpo_fast.backbone import check_length, encoder_of
from g2rpo_fast.model.balance import router_logits_of, routing_keywords
from g2rpo_fast.model.config import AttentionChoice
from g2rpo_fast.model.context import TreeContext
from g2rpo_fast.model.output import TreeOutput
from g2rpo_fast.model.recurrent.install import calls_of
from g2rpo_fast.model.routing import chosen_experts
from g2rpo_fast.types import TreePlan


def tree_hidden(
    model: PreTrainedModel,
    plan: TreePlan,
    *,
    attention: AttentionChoice = "auto",
    collect_kv: bool = False,
    routed: bool = False,
    chosen: bool = False,
) -> TreeOutput:
    """Hidden states [S, D] of `plan`'s stream under `model`, its keys and values with `collect_kv`, the
    logits of its routers with `routed`, and the experts with `chosen`.

    Position i's state is that of the last token of its path run by itself, up to rounding. Differentiable in
    the parameters, also under gradient checkpointing; dtypes are the model's, or autocast's where one is on.

    Raises:
        RuntimeError: a layer did not follow the tree; the hidden states are then worthless.
        ValueError: `attention` names an implementation that cannot run this model, or a path is longer than
            its RoPE has one set of frequencies for.
    """
    check_length(model.config, int(plan.position_S.max()) + 1)
    indices = [torch.from_numpy(x).long()[None] for x in (plan.token_S, plan.position_S)]
    token_1S, position_1S = to_device(indices, model.device)
    attending, states = calls_of(model)
    context = TreeContext(plan, model.device, attention=attention, collect_kv=collect_kv, states=states)
    encoder: Any = encoder_of(model)
    keywords = routing_keywords(model, routed=routed)
    with chosen_experts(model, wanted=chosen) as experts:
        output = encoder(
            input_ids=token_1S, position_ids=position_1S, use_cache=False, attend=context, **keywords
        )
    context.check_layers(attending)
    return TreeOutput(
        hidden_SD=output.last_hidden_state.squeeze(0),
        kv=context.kv(),
        router_logits=tuple(router_logits_of(output)) if routed else (),
        chosen=tuple(experts),
    )
