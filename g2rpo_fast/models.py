"""A run's models: the policy, its reference, and how large their micro-batches may be on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.adapters.attach import add_adapters
from g2rpo_fast.adapters.merged import has_adapters
from g2rpo_fast.backbone import num_positions
from g2rpo_fast.config import Config
from g2rpo_fast.memory import CPU_BUDGET, Shape, budget_of, free_bytes, shape_of
from g2rpo_fast.model import compute_dtype
from g2rpo_fast.model.balance import balance_of
from g2rpo_fast.model.export import make_exportable
from g2rpo_fast.model.hook import follows_trees
from g2rpo_fast.model.liger_ops import is_fused
from g2rpo_fast.model.load import load_model, noise_of
from g2rpo_fast.model.padded import PADDING
from g2rpo_fast.model.recurrent.install import keeps_states
from g2rpo_fast.model.vocabulary import check_vocabulary
from g2rpo_fast.optim.in_backward import largest_layer
from g2rpo_fast.optim.make import moment_bytes
from g2rpo_fast.recipe import Recipe
from g2rpo_fast.types import Prompt

STATES = 2.2
"""Models of gated delta-net and Mamba-2 keep 1.7 to 2.1 times what is counted of layers with attention,
measured on a CPU in bfloat16; of short convolutions less."""


def load_policy(
    config: Config,
    path: str,
    device: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    show: Callable[[str], None],
) -> PreTrainedModel:
    """The model to train, of which these prompts and this tokenizer can be asked, and which can be saved."""

    def unshared(reason: str) -> None:
        if config.tree.sharing == "auto":
            show(f"model: trains on unshared rows (tree.sharing = auto), as prefix trees do not fit {reason}")

    must_share = config.tree.sharing == "required"
    model = load_model(path, config.model, device, must_share=must_share, unshared=unshared)
    if config.adapter.on:
        base = str(Path(path).resolve()) if Path(path).is_dir() else path
        dtype = compute_dtype(model, config.model)
        add_adapters(model, config.adapter, base=base, seed=config.run.seed, compute_dtype=dtype)
    if noise := noise_of(model.config):
        named = ", ".join(f"{name} = {value}" for name, value in noise.items())
        show(f"model: {named} is off in training: a token has one log-probability in every pass")
    if balance := balance_of(model, config.model):
        show(f"model: experts are balanced by a loss, times {balance.coefficient:g}")
    check_lengths(config, prompts, num_positions(model.config))
    check_vocabulary(model, tokenizer, prompts)
    for line in make_exportable(model, tokenizer):
        show(line)
    return model


def load_reference(
    config: Config, recipe: Recipe, path: str, model: PreTrainedModel
) -> PreTrainedModel | None:
    """The frozen policy of a KL term, where there is one. Of a model with adapters it is the model itself:
    without them, no second copy."""
    if not recipe.needs_reference:
        return None
    if has_adapters(model):
        return model
    return load_model(path, config.model, str(model.device)).requires_grad_(False)


def token_budget(config: Config, model: PreTrainedModel, prompts: Sequence[Prompt]) -> int:
    """Of a run that begins: what this device's memory holds beside what is in it."""
    if model.device.type != "cuda":
        return CPU_BUDGET
    shape = shape_in(config, model)
    longest = max(prompt.most_tokens for prompt in prompts)
    tree = longest + config.rollout.group_size * config.rollout.max_tokens
    shares = config.tree.settled(follows_trees=follows_trees(model)).shares
    if not shares:
        tree = config.rollout.group_size * (longest + config.rollout.max_tokens)
    return budget_of(
        shape,
        free_bytes=int(free_bytes(model.device) / more_than_counted(model, shares=shares)),
        largest_tree=tree,
        batch_positions=config.run.prompts_per_step * tree,
        step_positions=-(-config.run.prompts_per_step // config.optim.minibatches) * tree,
    )


def shape_in(config: Config, model: PreTrainedModel) -> Shape:
    """Of the model as this run trains it."""
    return shape_of(
        model,
        compute_dtype=compute_dtype(model, config.model),
        checkpointing=config.model.gradient_checkpointing,
        num_recomputed=config.model.checkpointed_layers,
        offloaded=config.model.offload_activations,
        moment_bytes=moment_bytes(model, config.optim, resident=True),
        num_layer=largest_layer(model) if config.optim.in_backward else None,
        fused=is_fused(model),
    )


def more_than_counted(model: PreTrainedModel, *, shares: bool) -> float:
    """How many times the bytes that `memory` counts a position takes: padding, or layers that keep states."""
    return (1.0 if shares else PADDING) * (STATES if keeps_states(model.config) else 1.0)


def find_device(name: str) -> str:
    """What `run.device` means here. Raises ValueError where there is no such device."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if found else "cpu"
    there = ["cpu", *(["cuda"] if found else []), *(f"cuda:{index}" for index in range(found))]
    if name not in there:
        raise ValueError(f"run.device: wanted auto or one of {', '.join(there)}, got {name}")
    return name


def check_lengths(config: Config, prompts: Sequence[Prompt], positions: int) -> None:
    """No sequence may outgrow the model."""
    longest = max(prompts, key=lambda prompt: prompt.most_tokens)
    wanted = positions - longest.most_tokens
    if config.rollout.max_tokens > wanted:
        raise ValueError(
            f"rollout.max_tokens: wanted at most {wanted} (the model has {positions} positions, prompt "
            f"{longest.id} takes {longest.most_tokens}), got {config.rollout.max_tokens}"
        )
