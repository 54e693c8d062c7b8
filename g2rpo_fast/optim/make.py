"""Optimisers of other libraries, put together for a model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from g2rpo_fast.optim import OptimConfig
from g2rpo_fast.optim.rounded import Rounded
from g2rpo_fast.optim.several import Several

Groups = list[dict[str, Any]]
"""As PyTorch's optimisers take them."""
Make = Callable[[Groups], Optimizer]
LEAST_8BIT = 4096
"""Parameters with fewer numbers keep float32 moments. bitsandbytes' own default."""
BLOCK_8BIT = 256
"""Numbers of an 8-bit moment that share one float32 scale, in bitsandbytes."""
FLOAT32 = 4


def optimizer_of(model: nn.Module, config: OptimConfig) -> Optimizer:
    """See `make_optimizer`."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() >= 2]
    others = [p for p in trainable if p.dim() < 2]
    inner = inner_matrices(model) if config.kind == "muon" else []
    taken = {id(p) for p in inner}
    groups: Groups = [
        {"params": [p for p in matrices if id(p) not in taken], "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    parts: list[tuple[Make, Groups]] = [(adamw(config), groups)]
    if inner:
        parts.append((muon(config), [{"params": inner, "weight_decay": config.weight_decay}]))
    made = [Rounded(make, of_part) if has_half(of_part) else make(of_part) for make, of_part in parts]
    return made[0] if len(made) == 1 else Several(made)


def has_half(groups: Groups) -> bool:
    return any(p.dtype == torch.bfloat16 for group in groups for p in group["params"])


def adamw(config: OptimConfig) -> Make:
    """With moments in float32 or in 8 bits, paged or not."""
    given: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    if config.kind in ("adamw", "muon"):
        return lambda groups: AdamW(groups, **given, fused=True)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

    kinds: dict[str, Any] = {
        "adamw_8bit": AdamW8bit,
        "paged_adamw": PagedAdamW32bit,
        "paged_adamw_8bit": PagedAdamW8bit,
    }
    given["weight_decay"] = 0.0  # a group says otherwise
    return lambda groups: kinds[config.kind](groups, **given, min_8bit_size=LEAST_8BIT)


def muon(config: OptimConfig) -> Make:
    """With learning rates that mean what they mean to AdamW: 0.2 sqrt(larger side) times the orthogonal
    factor, whose numbers' mean square is then AdamW's (arXiv 2502.16982, section 2.2)."""
    given: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "adjust_lr_fn": "match_rms_adamw"}
    return lambda groups: Muon(groups, **given)


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices but for embeddings and the LM head, and for stacks of them (experts): what Muon
    is for."""
    outer = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    if head is not None:
        outer.add(id(head.weight))
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in outer]


def moment_bytes(model: nn.Module, config: OptimConfig, *, resident: bool = False) -> int:
    """Of all moments, once every parameter has had a step; `resident`: of those that must lie on the device,
    which paged ones leave where its memory is short."""
    if resident and config.kind.startswith("paged"):
        return 0
    inner = {id(p) for p in inner_matrices(model)} if config.kind == "muon" else set()

    def of(p: nn.Parameter) -> int:
        if id(p) in inner:
            return FLOAT32 * p.numel()
        if config.kind.endswith("8bit") and p.numel() >= LEAST_8BIT:
            return 2 * (p.numel() + FLOAT32 * -(-p.numel() // BLOCK_8BIT))
        return 2 * FLOAT32 * p.numel()

    return sum(of(p) for p in model.parameters() if p.requires_grad)
