"""One small tree, run packed and path by path: does tree attention compute what the model computed before?

Names of architectures go out of date; this does not. Scaled logits, recurrent state, sinks, extra heads or
positions that a layer keeps to itself all change the logits of the comparison.

Dimension key: S packed tree positions, D width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.types import TreePlan

TOLERANCE = 1e-2
"""Of the largest logit. Rounding (TF32 at worst) stays below it; a layer that mixes branches does not."""
PATHS = ((0, 1, 2, 3, 4), (0, 1, 2, 5, 6), (0, 1, 2, 5, 7))
"""Stream positions of each leaf's path: a root of three, a leaf, and a branch with two leaves."""


def check_tree(model: PreTrainedModel, *, plain: str, tree: str) -> None:
    """Compare logits under the attentions `plain` and `tree`; leaves `plain` selected.

    Raises ValueError where they differ, RuntimeError where a layer does not use tree attention at all.
    """
    plan = _plan(int(model.config.get_text_config().vocab_size))
    with torch.no_grad():
        try:
            model.set_attn_implementation(tree)
            got_SV = _logits(model, tree_hidden(model, plan).hidden_SD)
        finally:
            model.set_attn_implementation(plain)
        for path in PATHS:
            tokens = torch.from_numpy(plan.token_S[list(path)]).to(model.device, torch.int64)
            wanted = model(input_ids=tokens[None], use_cache=False).logits[0]
            error = float((got_SV[list(path)] - wanted).abs().max() / wanted.abs().max())
            if not error <= TOLERANCE:
                raise ValueError(
                    f"{model.config.model_type}: wanted the same logits from a packed tree as from each "
                    f"sequence by itself, got a relative error of {error:.1e}: this architecture does "
                    "something besides attention to the path"
                )


def _plan(vocab_size: int) -> TreePlan:
    none = np.empty(0, np.int64)
    ids = np.arange(1, 9) * max(1, vocab_size // 9) % vocab_size
    return TreePlan(
        token_S=ids.astype(np.int32),
        position_S=np.array([0, 1, 2, 3, 4, 3, 4, 4], np.int32),
        end_S=np.array([8, 8, 8, 5, 5, 8, 7, 8], np.int32),
        source_T=none.astype(np.int32),
        target_T=none.astype(np.int32),
        member_ptr_T1=np.zeros(1, np.int64),
        member_M=none,
        row_B=none.astype(np.int32),
        last_B=none.astype(np.int32),
        unshared_tokens=15,
    )


def _logits(model: PreTrainedModel, hidden_SD: Tensor) -> Tensor:
    head = head_of(model)
    logits_SV = torch.nn.functional.linear(hidden_SD, head.weight_VD, head.bias_V)
    return logits_SV if head.softcap is None else head.softcap * torch.tanh(logits_SV / head.softcap)
