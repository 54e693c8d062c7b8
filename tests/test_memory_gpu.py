"""The memory of an update's forward and backward pass on a GPU: below what is counted for it, and not far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from g2rpo_kernels import Edges, Objective, linear_policy_loss
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from g2rpo_fast.memory import Shape, fixed_bytes, free_bytes, position_bytes, shape_of
from g2rpo_fast.model import ModelConfig, compute_context
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.head import head_of
from g2rpo_fast.model.load import checkpoint_layers, fuse_ops, select_tree_attention
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
POSITIONS = 8192
CONFIG = Qwen3Config(
    vocab_size=32_768, hidden_size=1024, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
)  # fmt: skip


def model_on_gpu(config: ModelConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).eval()
    select_tree_attention(model)
    model = model.cuda()
    fuse_ops(model, config.fused_ops)
    if config.gradient_checkpointing:
        checkpoint_layers(model, num_layers=config.checkpointed_layers, offload=config.offload_activations)
    return model


def forward_and_backward(model: PreTrainedModel, config: ModelConfig) -> None:
    """Fifteen rows of 1,024 tokens, of which they share the first 512."""
    rows = [[3] * 512 + [5 + row] * (POSITIONS // 16) for row in range(15)]
    sequences = Sequences(
        ids_N=np.array([i for row in rows for i in row], np.int32),
        ptr_R1=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        trained_N=np.array([place >= 512 for row in rows for place in range(len(row))]),
        group_R=np.zeros(len(rows), np.int32),
    )
    (plan,) = plan_trees(sequences)
    assert POSITIONS - 32 < len(plan.token_S) <= POSITIONS
    head = head_of(model)
    with compute_context(model, config):
        hidden_SD = tree_hidden(model, plan).hidden_SD
    source_T, target_T = (torch.from_numpy(x).long().cuda() for x in (plan.source_T, plan.target_T))
    ones_T = torch.ones(len(target_T), device="cuda")
    out = linear_policy_loss(
        hidden_SD,
        head.weight_VD,
        target_T,
        Edges(ones_T, 0 * ones_T, ones_T),
        Objective(),
        source_T=source_T,
        product_dtype=torch.bfloat16,
    )
    out.loss.backward()


def test_what_waits_in_the_host_s_memory_is_not_on_the_gpu() -> None:
    """The same gradients, and a layer's input less for each layer: of all but the one under way."""
    peaks, gradients = [], []
    for offload in (False, True):
        config = ModelConfig(gradient_checkpointing=True, offload_activations=offload)
        model = model_on_gpu(config)
        forward_and_backward(model, config)
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_and_backward(model, config)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        gradients.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
        del model
    for plain, away in zip(*gradients, strict=True):
        assert torch.equal(plain, away)
    inputs = (CONFIG.num_hidden_layers - 2) * 4 * CONFIG.hidden_size * POSITIONS
    print(f"{peaks[0] / 1e9:.2f} GB, offloaded {peaks[1] / 1e9:.2f}")
    assert peaks[1] < peaks[0] - inputs / 2


@pytest.mark.parametrize("fused_ops", ["auto", "off"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_needs_no_more_than_is_counted(checkpointing: bool, fused_ops: str) -> None:
    config = ModelConfig(gradient_checkpointing=checkpointing, fused_ops=fused_ops)  # type: ignore[arg-type]
    model = model_on_gpu(config)
    forward_and_backward(model, config)  # workspaces that stay
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward_and_backward(model, config)
    used = torch.cuda.max_memory_allocated() - before
    shape: Shape = shape_of(model, compute_dtype=torch.bfloat16, checkpointing=checkpointing)
    moments = 8 * shape.num_parameters  # of AdamW, which no step has made here
    counted = fixed_bytes(shape) - moments + POSITIONS * position_bytes(shape)
    print(f"{used / 1e9:.2f} of {counted / 1e9:.2f} GB, checkpointing {checkpointing}, fused ops {fused_ops}")
    assert counted / 3 < used < counted
    assert free_bytes(model.device) > 0
