"""Token budgets from memory: the arithmetic, what models really keep, and that a run keeps its number."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from causal_types import tiny_model
from g2rpo_fast.memory import (
    CPU_BUDGET,
    LEAST,
    SHARE,
    Shape,
    budget_of,
    fixed_bytes,
    layer_bytes,
    position_bytes,
    shape_of,
)
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.model.forward import tree_hidden
from g2rpo_fast.model.padded import PADDING
from g2rpo_fast.models import STATES, more_than_counted
from g2rpo_fast.run_directory import open_directory
from g2rpo_fast.train import train
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Sequences
from runs import tiny_config, without_times
from wide_models import wide

QWEN3_06B = Shape(
    num_parameters=596_049_920,
    num_layers=28,
    width=1024,
    inner=3072,
    num_heads=16,
    num_kv_heads=8,
    head_width=128,
    vocabulary=151_936,
    compute_bytes=2,
    checkpointing=False,
)
GB = 10**9
GROUP = 512 + 16 * 512


def budget(shape: Shape, free_bytes: float, *, tree: int = GROUP, groups: int = 16) -> int:
    return budget_of(shape, free_bytes=int(free_bytes), largest_tree=tree, batch_positions=groups * tree)


def test_bytes_of_qwen3_06b():
    """2.4 MB a position; 8.3 GB of gradients, moments and products' weights, 1.2 of heads, 1.5 of logits."""
    assert layer_bytes(QWEN3_06B) == 16 * 1024 + 10 * 1024 + 6 * 3072 + 4 * 3072 + 64 + 8 * 3072
    assert position_bytes(QWEN3_06B) == 29 * layer_bytes(QWEN3_06B) + 24 * 1024 == 2_402_112
    assert fixed_bytes(QWEN3_06B) == 14 * 596_049_920 + 8 * 151_936 * 1024 + 1_500_000_000
    recomputing = dataclasses.replace(QWEN3_06B, checkpointing=True)
    assert position_bytes(recomputing) == 28 * 4096 + 2 * layer_bytes(QWEN3_06B) + 24 * 1024 == 303_232


def test_bytes_of_qwen3_06b_with_liger_s_operators():
    """A step on an H200 took 61.6 GB at 34,816 positions."""
    fused = dataclasses.replace(QWEN3_06B, fused=True)
    assert layer_bytes(fused) == 12 * 1024 + 2 * 3072 + 4 * 3072 + 64 + 6 * 3072 == 49_216
    assert position_bytes(fused) == 29 * 49_216 + 24 * 1024 == 1_451_840
    assert 61.6 * GB < 4 * 596_049_920 + fixed_bytes(fused) + 34_816 * position_bytes(fused) < 65 * GB
    assert budget(fused, 77.6 * GB) == 35 * LEAST


def test_adapters_leave_more_room():
    """10.1M parameters of LoRA at rank 16, on float32 weights that are rounded, and on those that were: no d
    head, no gradients or moments of what is frozen."""
    adapters = dataclasses.replace(QWEN3_06B, num_parameters=10_092_544, trains_head=False)
    assert fixed_bytes(adapters) == 14 * 10_092_544 + 1_500_000_000
    on_float32 = dataclasses.replace(adapters, num_frozen=596_049_920)
    assert fixed_bytes(on_float32) == fixed_bytes(adapters) + 2 * 596_049_920
    assert budget(on_float32, 77.6 * GB) == 24 * LEAST > budget(QWEN3_06B, 77.6 * GB)


def test_fewer_bits_and_steps_in_the_backward_pass_leave_more_room():
    """Of the same weights: moments in 8 bits, weights that are their own rounding, gradients of one layer."""
    numbers = 596_049_920
    plain = fixed_bytes(QWEN3_06B)
    eight = dataclasses.replace(QWEN3_06B, moment_bytes=2 * numbers)
    assert fixed_bytes(eight) == plain - 6 * numbers
    half = dataclasses.replace(eight, num_half=numbers)
    assert fixed_bytes(half) == plain - 8 * numbers
    layer = 15_700_000
    within = dataclasses.replace(half, num_layer=layer)
    assert fixed_bytes(within) == fixed_bytes(half)  # of several micro-batches, all gradients are there
    alone = 4 * (numbers - 27 * layer)
    assert fixed_bytes(within, whole=False) == plain - 12 * numbers + alone
    assert budget(within, 30 * GB) == budget(half, 30 * GB)  # the step is larger than one micro-batch
    for step in (8000, 8300):
        sizes = {"largest_tree": 2000, "batch_positions": 9 * step, "step_positions": step}
        assert budget_of(half, free_bytes=30 * GB, **sizes) < 8000
        assert budget_of(within, free_bytes=30 * GB, **sizes) >= step
    tight = {"free_bytes": plain - 11 * numbers + 4 * GB, "largest_tree": 1200, "batch_positions": 99_999}
    assert budget_of(half, **tight) == LEAST  # gradients of all weights leave no room
    assert budget_of(within, **tight) == 1200


def test_some_layers_computed_again_and_what_waits_in_the_host_s_memory():
    layer = layer_bytes(QWEN3_06B)
    recomputing = dataclasses.replace(QWEN3_06B, checkpointing=True)
    some = dataclasses.replace(recomputing, num_recomputed=10)
    assert position_bytes(some) == 10 * 4096 + 20 * layer + 24 * 1024
    assert position_bytes(dataclasses.replace(some, num_recomputed=28)) == position_bytes(recomputing)
    away = dataclasses.replace(recomputing, offloaded=True)
    assert position_bytes(away) == position_bytes(recomputing) - 28 * 4096


def test_layers_that_keep_states_and_padding_are_given_more():
    plain, hybrid = (tiny_model(name) for name in ("qwen3", "lfm2"))
    assert [more_than_counted(model, shares=True) for model in (plain, hybrid)] == [1.0, STATES]
    assert [more_than_counted(model, shares=False) for model in (plain, hybrid)] == [
        PADDING,
        STATES * PADDING,
    ]


def test_budgets_of_qwen3_06b():
    """A card of 80 GB less 2.4 GB of weights: two groups of 16 x 512 at once, no group split."""
    assert budget(QWEN3_06B, 77.6 * GB) == 21 * LEAST
    assert budget(QWEN3_06B, 77.6 * GB) > 2 * GROUP
    assert budget(dataclasses.replace(QWEN3_06B, checkpointing=True), 77.6 * GB) == 16 * GROUP
    assert budget(dataclasses.replace(QWEN3_06B, checkpointing=True), 77.6 * GB, groups=64) == 171 * LEAST
    assert budget(QWEN3_06B, 20 * GB) == 2 * LEAST


def test_a_budget_never_splits_a_tree_that_fits():
    needed = fixed_bytes(QWEN3_06B) + position_bytes(QWEN3_06B) * GROUP / SHARE
    assert GROUP % LEAST
    assert budget(QWEN3_06B, needed + 10) == GROUP
    assert budget(QWEN3_06B, needed - 2 * position_bytes(QWEN3_06B)) == GROUP // LEAST * LEAST
    assert budget(QWEN3_06B, needed / 2) < GROUP // 2


@pytest.mark.parametrize("free", [0, 5 * GB, 10_600_000_000])
def test_a_budget_is_never_below_the_least_nor_above_the_batch(free: int):
    assert budget(QWEN3_06B, free) == LEAST
    assert budget(QWEN3_06B, 10**15) == 16 * GROUP
    assert budget(QWEN3_06B, free, tree=9, groups=2) == LEAST


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_keep_what_is_counted(kind: type, dtype: torch.dtype):
    """Every tensor saved for the backward pass of a tree forward, its storage counted once."""
    model, length = wide(kind), 64
    ids_N = np.arange(length + 1, dtype=np.int32) % 60
    row = Sequences(
        ids_N=ids_N, ptr_R1=np.array([0, length + 1]), trained_N=ids_N > 0, group_R=np.zeros(1, np.int32)
    )
    (plan,) = plan_trees(row)
    kept: dict[int, torch.Tensor] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    mixed = dtype != torch.float32
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", dtype, enabled=mixed),
    ):
        tree_hidden(model, plan, attention="cascade")
    linears = [m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    saved = sum(x.untyped_storage().nbytes() for x in kept.values())
    saved -= mixed * dtype.itemsize * sum(linears)  # weights in the dtype of products
    shape = shape_of(model, compute_dtype=dtype, checkpointing=False)
    assert 0.75 * 4 * layer_bytes(shape) < saved / length < position_bytes(shape)


def test_shapes_come_from_the_configuration():
    shape = shape_of(wide(Qwen3Config), compute_dtype=torch.bfloat16, checkpointing=True)
    sizes = (shape.num_layers, shape.width, shape.inner, shape.num_heads, shape.num_kv_heads)
    assert sizes == (4, 128, 384, 4, 2)
    assert (shape.head_width, shape.vocabulary, shape.compute_bytes, shape.checkpointing) == (32, 64, 2, True)
    assert shape.num_parameters == sum(p.numel() for p in wide(Qwen3Config).parameters())
    experts = wide(Qwen3MoeConfig, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=3)
    assert shape_of(experts, compute_dtype=torch.float32, checkpointing=False).inner == 3 * 48
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=8))
    shape = shape_of(gpt2, compute_dtype=torch.float32, checkpointing=False)
    assert (shape.inner, shape.num_kv_heads, shape.head_width) == (64, 2, 8)


def test_a_run_keeps_the_budget_that_it_began_with(tmp_path):
    """None is the number it stands for, to the bit; a continuation without one takes the run's own."""
    lines: list[str] = []
    short = {"run": {"steps": 2}}
    by_itself = train(tiny_config(tmp_path / "a", **short), show=lines.append)
    said = train(
        tiny_config(tmp_path / "b", **short, tree={"token_budget": CPU_BUDGET}), show=lambda line: None
    )
    first, second = (without_times(read_metrics(r.metrics_path)) for r in (by_itself, said))
    assert first == second
    assert any(f"micro-batches of up to {CPU_BUDGET} positions" in line for line in lines)
    stored = json.loads((tmp_path / "a" / "config.json").read_text())
    assert stored["tree"]["token_budget"] == CPU_BUDGET == 8192

    small = train(tiny_config(tmp_path / "c", **short, tree={"token_budget": 300}), show=lambda line: None)
    more = tiny_config(tmp_path / "c", run={"steps": 3})
    assert more.tree.token_budget is None
    train(more, show=lambda line: None)
    records = read_metrics(small.metrics_path)
    assert [r["update/micro_batches"] > 1 for r in records[1:]] == [True] * 3
    open_directory(tiny_config(tmp_path / "c", run={"steps": 3}, tree={"token_budget": 8192}), lines.append)
    assert lines[-1] == "note: goes on with another tree.token_budget: 300 -> 8192 (recorded in changes.json)"
