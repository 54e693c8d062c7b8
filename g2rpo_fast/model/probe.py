"""Is a model computed as it computes itself? Checked on small inputs when it is loaded.

Names of architectures go out of date; this does not. Scaled logits, recurrent state, sinks, extra heads or
positions that a layer keeps to itself change the logits of a packed tree against those of its paths. Windows,
which may be too long to run through, are compared as masks: see `masks`. A model that fails on a tree is
compared on unshared rows.

Dimension key: S packed tree positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.backbone import num_positions
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.masks import check_masks, choose
from g2rpo_fast.model.padded import padded_hidden
from g2rpo_fast.types import Ints, Longs, TreePlan

TOLERANCE = 1e-3
"""Of the largest logit, at least twice the dtype's spacing. Rounding stays below; mixed branches do not."""
TRUNK = 3
"""Tokens that all paths of the tree share, where no window asks for more."""
MAX_TRUNK = 64
"""Windows up to this are crossed by the paths that are run."""
ROW = 40
"""Tokens of the longest unshared row."""


def check_tree(model: PreTrainedModel, *, plain: str, tree: str) -> None:
    """Compare a small tree's logits under `tree` with its paths' under eager attention; selects `plain`.

    Eager, because it alone computes all that a model asks of its attention (sdpa leaves softcaps out).

    Raises:
        ValueError: naming the model type, where logits differ, or the model does not run on a tree at all.
    """
    with _one_line(model, "cannot be trained on packed trees"):
        try:
            error = _error(model, tree)
        finally:
            model.set_attn_implementation(plain)
    if not error <= tolerance_of(model):
        raise ValueError(
            f"{model.config.model_type}: wanted the same logits from a packed tree as from each sequence by "
            f"itself, got a relative error of {error:.1e}: this architecture does something besides "
            "attention to the path"
        )


def check_rows(model: PreTrainedModel) -> None:
    """Compare the logits of unshared rows, padded, with those of each row by itself under eager attention.

    Selects the model's own attention if that computes all that the model asks of it, else eager.

    Raises:
        ValueError: naming the model type, where logits differ, the model is not causal, or does not run.
    """
    plain = str(model.config._attn_implementation)
    reason = ""
    with _one_line(model, "cannot be trained on padded rows"):
        for attention in dict.fromkeys([plain, "eager"]):
            reason = _rows_reason(model, attention)
            if not reason:
                model.set_attn_implementation(attention)
                return
            model.set_attn_implementation(plain)
    raise ValueError(f"{model.config.model_type}: wanted {reason}")


@contextmanager
def _one_line(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Whatever the code of some architecture makes of inputs that it does not know, as a ValueError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:
        reason = str(raised).strip().partition("\n")[0]
        if not isinstance(raised, ValueError):
            reason = f"its forward does not run on them ({type(raised).__name__}: {reason})"
        raise ValueError(f"{model.config.model_type}: {what}: {reason}") from raised


def tolerance_of(model: PreTrainedModel) -> float:
    """Of an error relative to the largest logit."""
    return max(TOLERANCE, 2 * torch.finfo(model.dtype).eps)


@torch.no_grad()
def _error(model: PreTrainedModel, tree: str) -> float:
    """The largest difference of a logit, relative to the largest logit; ValueError for other masks."""
    windows = check_masks(model)
    trunk = max([TRUNK, *(window for window in windows if window <= MAX_TRUNK)])
    trunk = max(1, min(trunk, num_positions(model.config) - 3))
    plan, paths = small_tree(trunk, int(model.config.get_text_config().vocab_size))
    choose(model, tree)
    got_SV = _logits(model, tree_hidden(model, plan, attention="reference").hidden_SD)
    model.set_attn_implementation("eager")
    return _largest([_differ(got_SV[path], _alone(model, plan.token_S[path])) for path in paths])


@torch.no_grad()
def _rows_reason(model: PreTrainedModel, attention: str) -> str:
    """What a model under an attention lacks to be trained on unshared rows; "" = nothing."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    longest = max(3, min(ROW, num_positions(model.config)))
    ids = 1 + np.arange(longest) * max(1, vocab_size // (longest + 1))
    rows = [(ids[:length] % vocab_size).astype(np.int32) for length in (longest, longest - longest // 3)]
    rows.append((ids[::-1][: longest // 2] % vocab_size).astype(np.int32))
    model.set_attn_implementation(attention)
    together = _of_rows(model, rows).split([len(row) for row in rows])
    single = [_of_rows(model, [row]) for row in rows]
    model.set_attn_implementation("eager")
    wanted = [_alone(model, row) for row in rows]
    prefix = len(rows[1])
    errors = {
        "logits that later tokens do not change": [_differ(wanted[0][:prefix], wanted[1])],
        "logits that its head alone makes of the backbone's hidden states": map(_differ, single, wanted),
        "the same logits from padded rows as from each by itself": map(_differ, together, wanted),
    }
    for what, of_rows in errors.items():
        error = _largest(list(of_rows))
        if not error <= tolerance_of(model):
            return f"{what}, got a relative error of {error:.1e}"
    return ""


def _of_rows(model: PreTrainedModel, rows: Sequence[Ints]) -> Tensor:
    """[S, V] logits of unshared rows, end to end."""
    return _logits(model, padded_hidden(model, unshared_rows(rows)).hidden_SD)


def unshared_rows(rows: Sequence[Ints]) -> TreePlan:
    """A plan of each row by itself, without edges."""
    lengths = [len(row) for row in rows]
    end_R = np.cumsum(lengths)
    return replace(
        small_tree(1, 1)[0],
        token_S=np.concatenate(rows),
        position_S=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        end_S=np.repeat(end_R, lengths).astype(np.int32),
        last_B=(end_R - 1).astype(np.int32),
        node_start_Q=end_R - lengths,
        node_parent_Q=np.full(len(rows), -1),
    )


def _alone(model: PreTrainedModel, token_S: Ints) -> Tensor:
    """[S, V] logits of one sequence by the model's own forward."""
    tokens = torch.from_numpy(token_S).to(model.device, torch.int64)
    return model(input_ids=tokens[None], use_cache=False).logits[0]


def _differ(got_SV: Tensor, wanted_SV: Tensor) -> float:
    return float((got_SV - wanted_SV).abs().max() / wanted_SV.abs().max())


def _largest(errors: Sequence[float]) -> float:
    """NaN where one is."""
    return float(np.max(errors))


def small_tree(trunk: int, vocab_size: int) -> tuple[TreePlan, list[Longs]]:
    """A trunk, a leaf, a branch with two leaves, and another root; the stream positions of each path."""
    none = np.empty(0, np.int64)
    position = [*range(trunk), trunk, trunk + 1, trunk, trunk + 1, trunk + 1, 0, 1]
    size = len(position)
    end = [size - 2] * trunk + [trunk + 2] * 2 + [trunk + 5, trunk + 4, trunk + 5] + [size] * 2
    ids = 1 + np.arange(size) * max(1, vocab_size // (size + 1))
    plan = TreePlan(
        token_S=(ids % vocab_size).astype(np.int32),
        position_S=np.array(position, np.int32),
        end_S=np.array(end, np.int32),
        source_T=none.astype(np.int32),
        target_T=none.astype(np.int32),
        member_ptr_T1=np.zeros(1, np.int64),
        member_M=none,
        row_B=np.arange(4, dtype=np.int32),
        last_B=np.array([trunk + 1, trunk + 3, trunk + 4, size - 1], np.int32),
        unshared_tokens=3 * trunk + 8,
        node_start_Q=np.array([0, trunk, trunk + 2, trunk + 3, trunk + 4, size - 2]),
        node_parent_Q=np.array([-1, 0, 0, 2, 2, -1]),
    )
    shared = np.arange(trunk)
    leaves = (np.array([0, 1]), np.array([2, 3]), np.array([2, 4]))
    return plan, [*(np.concatenate([shared, trunk + leaf]) for leaf in leaves), trunk + np.array([5, 6])]


def _logits(model: PreTrainedModel, hidden_SD: Tensor) -> Tensor:
    head = head_of(model)
    logits_SV = torch.nn.functional.linear(hidden_SD * head.scale, head.weight_VD, head.bias_V)
    return logits_SV if head.softcap is None else head.softcap * torch.tanh(logits_SV / head.softcap)
