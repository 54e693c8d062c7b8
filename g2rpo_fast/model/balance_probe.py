"""Is the loss that balances a model's experts the one that transformers adds? Checked when it is loaded.

Two small rows, one of which begins like the other, on the path that training takes; against the model's own
forward of the same rows, padded and masked.

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
from g2rpo_fast.tree import UNSHARED, plan_trees
from g2rpo_fast.types import Sequences

LENGTH = 24
"""Tokens of the longer row."""
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


def _rows(model: PreTrainedModel) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    vocab_size = int(model.config.get_text_config().vocab_size)
    length = max(4, min(LENGTH, num_positions(model.config)))
    longer = (1 + np.arange(length) * max(1, vocab_size // (length + 1))) % vocab_size
    shorter = longer[: length - length // 4].copy()
    shorter[length // 2 :] = shorter[length // 2 :][::-1]
    return [longer.astype(np.int32), shorter.astype(np.int32)]


def _ours(model: PreTrainedModel, balance: Balance) -> float:
    rows = _rows(model)
    ids_N = np.concatenate(rows)
    sequences = Sequences(
        ids_N=ids_N,
        ptr_R1=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        trained_N=np.zeros(len(ids_N), np.bool_),
        group_R=np.zeros(len(rows), np.int32),
    )
    if follows_trees(model):
        (plan,) = plan_trees(sequences, whole=True)
        output = tree_hidden(model, plan, attention="reference", routed=True)
    else:
        (plan,) = plan_trees(sequences, whole=True, min_saved=UNSHARED)
        output = padded_hidden(model, plan, routed=True)
    if not output.router_logits:
        raise ValueError("no router's logits")
    shapes = {tuple(logits.shape) for logits in output.router_logits}
    if len(shapes) != 1 or min(shapes)[0] != len(plan.token_S):
        raise ValueError(f"router logits of shapes {sorted(shapes)} for {len(plan.token_S)} tokens")
    weight_S = torch.from_numpy(multiplicity(plan)).to(model.device)
    return float(balance_loss(output.router_logits, weight_S, balance.experts_per_token))


def _own(model: PreTrainedModel) -> Own:
    rows = _rows(model)
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
