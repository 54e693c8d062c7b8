"""Is the loss that balances a model's experts the one that transformers adds? Checked when it is loaded.

Four small rows, three of which begin alike, on the path that training takes; against the model's own forward
of the same rows, padded and masked.

Dimension key: R rows, L padded length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from g2rpo_fast.backbone import num_positions
from g2rpo_fast.model.balance import Balance, balance_loss, multiplicity
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.padded import padded_hidden
from g2rpo_fast.model.probe import small_tree, unshared_rows
from g2rpo_fast.types import Ints, TreePlan

TRUNK = 20
"""Tokens that three of four rows share."""
TOLERANCE = 1e-3
"""Of the loss; a choice between two experts that rounding turns changes it by less."""
COEFFICIENT_TOLERANCE = 0.05
"""Of what is left when one loss is taken from another: few digits."""


class Own(NamedTuple):
    """What transformers makes of the rows."""

    aux: float
    added: float
    """To the loss of a language model."""
    rounding: float
    """Of `added`."""


@torch.no_grad()
def check_balance(model: PreTrainedModel, balance: Balance) -> None:
    """ValueError, naming the model type, where `balance_loss` is not what the model's own forward has.

    Under the attention that is selected; transformers' own forward runs with eager attention.
    """
    name = model.config.model_type
    try:
        ours = _ours(model, balance)
        own = _own(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:  # whatever the code of some architecture makes of it
        reason = " ".join(str(raised).split())
        if not isinstance(raised, ValueError):
            reason = f"{type(raised).__name__}: {reason}"
        raise ValueError(_refusal(name, reason)) from raised
    if not abs(ours - own.aux) <= TOLERANCE * abs(own.aux):
        raise ValueError(_refusal(name, f"{own.aux:.6g} where it is {ours:.6g}"))
    wanted = balance.coefficient * own.aux
    if balance.asked and not abs(own.added - wanted) <= COEFFICIENT_TOLERANCE * wanted + own.rounding:
        raise ValueError(_refusal(name, f"{own.added:.3g} added to its loss where {wanted:.3g} would be"))


def _refusal(model_type: str, got: str) -> str:
    return (
        f"{model_type}: wanted a loss of experts that is transformers' load_balancing_loss_func over the "
        f"routers' logits, got {got}. model.router_aux = 0 trains without such a loss."
    )


def _small_tree(model: PreTrainedModel) -> tuple[TreePlan, list[Ints]]:
    """And the rows that it holds."""
    trunk = max(1, min(TRUNK, num_positions(model.config) - 3))
    plan, paths = small_tree(trunk, int(model.config.get_text_config().vocab_size))
    return plan, [plan.token_S[path] for path in paths]


def _ours(model: PreTrainedModel, balance: Balance) -> float:
    plan, rows = _small_tree(model)
    if follows_trees(model):
        output = tree_hidden(model, plan, attention="reference", routed=True)
    else:
        plan = unshared_rows(rows)
        output = padded_hidden(model, plan, routed=True)
    if not output.router_logits:
        raise ValueError("no router's logits")
    shapes = {tuple(logits.shape) for logits in output.router_logits}
    if len(shapes) != 1 or min(shapes)[0] != len(plan.token_S):
        raise ValueError(f"router logits of shapes {sorted(shapes)} for {len(plan.token_S)} tokens")
    weight_S = torch.from_numpy(multiplicity(plan)).to(model.device)
    return float(balance_loss(output.router_logits, weight_S, balance.experts_per_token))


def _own(model: PreTrainedModel) -> Own:
    _, rows = _small_tree(model)
    token_RL = np.zeros((len(rows), max(map(len, rows))), np.int64)
    real_RL = np.zeros_like(token_RL)
    for place, row in enumerate(rows):
        token_RL[place, : len(row)], real_RL[place, : len(row)] = row, 1
    token, real = (torch.from_numpy(x).to(model.device) for x in (token_RL, real_RL))
    given: dict[str, Any] = {"input_ids": token, "attention_mask": real, "use_cache": False}
    labels = token.masked_fill(real == 0, -100)
    before = str(model.config.get_text_config()._attn_implementation)
    model.set_attn_implementation("eager")
    try:
        balanced = model(**given, labels=labels, output_router_logits=True)
        plain = model(**given, labels=labels, output_router_logits=False)
    finally:
        model.set_attn_implementation(before)
    if not isinstance(balanced.aux_loss, torch.Tensor):
        raise ValueError("none from its forward")
    added = float(balanced.loss) - float(plain.loss)
    rounding = 16 * torch.finfo(plain.loss.dtype).eps * abs(float(plain.loss))
    return Own(aux=float(balanced.aux_loss), added=added, rounding=rounding)
