"""Can the experts that a model computes with be looked at? Tried when a run wants to record them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.padded import padded_hidden
from g2rpo_fast.model.probe import small_tree, unshared_rows
from g2rpo_fast.model.routing import stacks_of


@torch.no_grad()
def check_routing(model: PreTrainedModel) -> None:
    """ValueError, naming the model type, where a forward does not tell which experts each token went to."""
    wanted = (
        f"rollout.record_routing: {model.config.model_type}: wanted layers that hand experts their tokens"
    )
    stacks = len(stacks_of(model))
    if not stacks:
        raise ValueError(f"{wanted}, got none with experts")
    plan, paths = small_tree(1, int(model.config.get_text_config().vocab_size))
    try:
        if follows_trees(model):
            chosen = tree_hidden(model, plan, attention="reference", chosen=True).chosen
        else:
            plan = unshared_rows([plan.token_S[path] for path in paths])
            chosen = padded_hidden(model, plan, chosen=True).chosen
    except (IndexError, AttributeError) as error:
        raise ValueError(f"{wanted}, got layers that choose inside") from error
    shapes = {tuple(index_SK.shape) for index_SK in chosen}
    usable = len(shapes) == 1 and len(min(shapes)) == 2 and min(shapes)[0] == len(plan.token_S)
    if not usable or len(chosen) != stacks or any(index_SK.is_floating_point() for index_SK in chosen):
        raise ValueError(f"{wanted}, got choices of shapes {sorted(shapes)} from {stacks} layers")
