"""Does tree attention compute what the model computed before? Checked on small inputs when a model is loaded.

Names of architectures go out of date; this does not. Scaled logits, recurrent state, sinks, extra heads or
positions that a layer keeps to itself change the logits of a packed tree against those of its paths. Windows,
which may be too long to run through, are compared as masks: see `masks`.

Dimension key: S packed tree positions, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.backbone import num_positions
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.masks import check_masks, choose
from g2rpo_fast.types import Longs, TreePlan

TOLERANCE = 1e-3
"""Of the largest logit, at least twice the dtype's spacing. Rounding stays below; mixed branches do not."""
TRUNK = 3
"""Tokens that all paths of the tree share, where no window asks for more."""
MAX_TRUNK = 64
"""Windows up to this are crossed by the paths that are run."""


def check_tree(model: PreTrainedModel, *, plain: str, tree: str) -> None:
    """Compare a small tree's logits under `tree` with its paths' under eager attention; selects `plain`.

    Eager, because it alone computes all that a model asks of its attention (sdpa leaves softcaps out).

    Raises:
        ValueError: naming the model type, where logits differ, or the model does not run on a tree at all.
    """
    name = model.config.model_type
    try:
        error = _error(model, tree)
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as raised:  # whatever the code of some architecture makes of inputs that it does not know
        reason = str(raised).strip().partition("\n")[0]
        if not isinstance(raised, ValueError):
            reason = f"its forward does not run on them ({type(raised).__name__}: {reason})"
        raise ValueError(f"{name}: cannot be trained on packed trees: {reason}") from raised
    finally:
        model.set_attn_implementation(plain)
    if not error <= max(TOLERANCE, 2 * torch.finfo(model.dtype).eps):
        raise ValueError(
            f"{name}: wanted the same logits from a packed tree as from each sequence by itself, got a "
            f"relative error of {error:.1e}: this architecture does something besides attention to the path"
        )


@torch.no_grad()
def _error(model: PreTrainedModel, tree: str) -> float:
    """The largest difference of a logit, relative to the largest logit; ValueError for other masks."""
    windows = check_masks(model)
    trunk = max([TRUNK, *(window for window in windows if window <= MAX_TRUNK)])
    trunk = max(1, min(trunk, num_positions(model.config) - 3))
    plan, paths = _plan(trunk, int(model.config.get_text_config().vocab_size))
    choose(model, tree)
    got_SV = _logits(model, tree_hidden(model, plan, attention="reference").hidden_SD)
    model.set_attn_implementation("eager")
    error = 0.0
    for path in paths:
        tokens = torch.from_numpy(plan.token_S[path]).to(model.device, torch.int64)
        wanted = model(input_ids=tokens[None], use_cache=False).logits[0]
        relative = float((got_SV[path] - wanted).abs().max() / wanted.abs().max())
        error = relative if not relative <= error else error  # NaN stays
    return error


def _plan(trunk: int, vocab_size: int) -> tuple[TreePlan, list[Longs]]:
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
        row_B=none.astype(np.int32),
        last_B=none.astype(np.int32),
        unshared_tokens=3 * trunk + 8,
        node_start_Q=np.array([0, trunk, trunk + 2, trunk + 3, trunk + 4, size - 2]),
        node_parent_Q=np.array([-1, 0, 0, 2, 2, -1]),
    )
    shared = np.arange(trunk)
    leaves = (np.array([0, 1]), np.array([2, 3]), np.array([2, 4]))
    return plan, [*(np.concatenate([shared, trunk + leaf]) for leaf in leaves), trunk + np.array([5, 6])]


def _logits(model: PreTrainedModel, hidden_SD: Tensor) -> Tensor:
    head = head_of(model)
    logits_SV = torch.nn.functional.linear(hidden_SD, head.weight_VD, head.bias_V)
    return logits_SV if head.softcap is None else head.softcap * torch.tanh(logits_SV / head.softcap)
