"""A model with windows, softcap and grouped heads, trained through the Triton tree attention (interpreter).

Dimension key: S packed tree positions, D width.
"""

import numpy as np
import torch
from g2rpo_kernels.tree_attention import TilePlan
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel

from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.load import select_tree_attention
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import TreePlan
from tree_models import rows


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=0.5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    select_tree_attention(model)
    return model


def hidden_and_gradient(model: PreTrainedModel, plan: TreePlan, attention: str) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    hidden_SD = tree_hidden(model, plan, attention=attention).hidden_SD  # type: ignore[arg-type]
    (hidden_SD * torch.linspace(-1, 1, hidden_SD.numel()).view_as(hidden_SD)).sum().backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return hidden_SD.detach(), torch.cat(grads)


def test_model_on_triton_equals_the_reference_and_shares_its_lists(monkeypatch) -> None:
    built = []
    build = TilePlan._build
    monkeypatch.setattr(TilePlan, "_build", lambda *args: built.append(args[-1]) or build(*args))
    model = gemma()
    (plan,) = plan_trees(rows(True)[0], impl="python")
    wanted, wanted_grad = hidden_and_gradient(model, plan, "reference")
    assert built == []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        got, grad = hidden_and_gradient(model, plan, "triton")
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
        torch.testing.assert_close(grad, wanted_grad, rtol=0, atol=1e-6 * float(wanted_grad.abs().max()))
        assert sorted(built, key=str) == [6, None]
        built.clear()
    assert np.diff(plan.end_S).any()
    assert wanted_grad.abs().max() > 0.1
