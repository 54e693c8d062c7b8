"""Hidden states of unshared rows, by a model's own forward: for models whose layers cannot follow a tree.

Rows of alike length go through the backbone together, padded on the right, which a causal model does not see:
state and keys of padding come after all that is read. What comes out is packed as a tree's stream is.

Dimension key: S packed positions, R rows of one call, L padded length, D width, E experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from g2rpo_kernels.transfer import to_device
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.backbone import check_length, encoder_of
from g2rpo_fast.model.balance import router_logits_of, routing_keywords
from g2rpo_fast.model.output import TreeOutput
from g2rpo_fast.model.routing import chosen_experts
from g2rpo_fast.types import Longs, TreePlan

PADDING = 1.25
"""Rows go together up to this many padded positions for each of their own."""


def padded_hidden(
    model: PreTrainedModel, plan: TreePlan, *, routed: bool = False, chosen: bool = False
) -> TreeOutput:
    """Hidden states [S, D] of `plan`'s stream under `model` with the attention that it has selected, the
    logits of its routers with `routed`, and the experts with `chosen`.

    Differentiable in the parameters, also under gradient checkpointing; dtypes as in `tree_hidden`.

    Raises:
        ValueError: rows of the plan share positions (wanted `min_saved = tree.UNSHARED`), or one is longer
            than the model's RoPE has one set of frequencies for.
    """
    if (plan.node_parent_Q >= 0).any():
        raise ValueError(f"{model.config.model_type}: wanted a plan of unshared rows, got one with branches")
    check_length(model.config, int(plan.position_S.max()) + 1)
    start_R = np.flatnonzero(plan.position_S == 0)
    length_R = np.diff(start_R, append=len(plan.position_S))
    encoder: Any = encoder_of(model)
    keywords = routing_keywords(model, routed=routed)
    parts: list[list[Tensor]] = []
    places, routers = [], 0
    for rows in alike(length_R):
        real_RL = np.arange(length_R[rows].max()) < length_R[rows, None]
        place_RL = np.minimum(start_R[rows, None] + np.arange(real_RL.shape[1]), len(plan.token_S) - 1)
        token_RL = np.where(real_RL, plan.token_S[place_RL], 0)
        inputs = [torch.from_numpy(token_RL).long(), torch.from_numpy(real_RL).long()]
        token, real = to_device(inputs, model.device)
        with chosen_experts(model, wanted=chosen) as experts:
            output = encoder(input_ids=token, attention_mask=real, use_cache=False, **keywords)
        logits = router_logits_of(output) if routed else []
        routers = len(logits)
        found = [output.last_hidden_state.flatten(0, 1), *logits, *experts]
        parts.append([each[real.bool().flatten()] for each in found])
        places.append(place_RL[real_RL])
    order_S = torch.from_numpy(np.argsort(np.concatenate(places))).to(model.device)
    hidden_SD, *others = (torch.cat(part)[order_S] for part in zip(*parts, strict=True))
    return TreeOutput(
        hidden_SD=hidden_SD, router_logits=tuple(others[:routers]), chosen=tuple(others[routers:])
    )


def alike(length_R: Longs) -> list[Longs]:
    """Indices of rows that go together, longest first: padded to the longest, they take little more."""
    groups: list[list[int]] = []
    longest = total = 0
    for row in np.argsort(-length_R, kind="stable").tolist():
        length = int(length_R[row])
        total += length
        if not groups or (len(groups[-1]) + 1) * longest > PADDING * total:
            groups.append([])
            longest = total = length
        groups[-1].append(row)
    return [np.array(group) for group in groups]
