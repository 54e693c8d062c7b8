"""Memory of a run by what it is for, and its peak: sizes are known, what a position keeps is measured.

Dimension key: S positions, D width, V vocabulary, L layers, K KV heads, E head width, B rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from g2rpo_kernels.linear_logprob.chunks import CHUNK_BYTES as CPU_CHUNK_BYTES
from g2rpo_kernels.linear_logprob.chunks import DEVICE_CHUNK_BYTES

from g2rpo_fast.adapters.base import num_weights
from g2rpo_fast.assemble import Parts
from g2rpo_fast.forecast.rollout import num_positions
from g2rpo_fast.learner import Policy
from g2rpo_fast.memory import FLOAT32, Shape, gradient_bytes, moments_of
from g2rpo_fast.model.checkpointing import keeping_all
from g2rpo_fast.models import shape_in
from g2rpo_fast.rollout import RolloutConfig
from g2rpo_fast.rollout.local.cache import GROWTH
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Request, Sequences, TreePlan

PROBE = 48
"""Positions of the smaller of two forward passes whose kept tensors are counted."""


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    program: int
    """Python, its libraries, data: the process but for what follows."""
    weights: int
    reference: int
    moments: int
    gradients: int
    kept: int
    """Of the largest micro-batch, for the backward pass."""
    loss: int
    """A chunk of logits, and gradients of the head and the hidden states."""
    cache: int
    """Keys and values of prefixes and rows while sampling, logits, and the decoder's copy of the weights."""
    so_far: int
    """The most that the process had before the run's first step: loading, a warm start."""

    @property
    def peak(self) -> int:
        """The sum: what one phase frees lies in pieces that the next can rarely use (measured on CPUs)."""
        model = self.weights + self.reference + self.moments + self.gradients
        return max(self.program + model + self.kept + self.loss + self.cache, self.so_far)


def kept_bytes(policy: Policy, vocabulary: int) -> float:
    """What the backbone keeps of one position for its backward pass: the tensors that autograd saves in a
    forward of 2 n positions, less those in one of n.

    With gradient checkpointing each layer's input, and all of one layer; of layers that are not checkpointed,
    all.
    """
    less, more = (saved_bytes(policy, PROBE * times, vocabulary) for times in (1, 2))
    each = (more - less) / PROBE
    if not policy.compute.gradient_checkpointing:
        return each
    text = policy.model.config.get_text_config()
    layers, width = int(text.num_hidden_layers), int(text.hidden_size)
    again = policy.compute.checkpointed_layers or layers
    kept = 0 if policy.compute.offload_activations else FLOAT32 * width
    return again * kept + (layers - again) * each / layers + 2 * each / layers


def saved_bytes(policy: Policy, length: int, vocabulary: int) -> int:
    """Bytes saved for backward without checkpointing, each storage once, parameters left out."""
    ids_N = (np.arange(length + 1) % vocabulary).astype(np.int32)
    row = Sequences(
        ids_N=ids_N,
        ptr_R1=np.array([0, length + 1], np.int64),
        trained_N=np.arange(length + 1) > 0,
        group_R=np.zeros(1, np.int32),
    )
    (plan,) = plan_trees(row, whole=True)
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with keeping_all(policy.model), torch.enable_grad(), hooks:
        policy.hidden(plan)
    return sum(storage.nbytes() for storage in kept.values())


def memory_of(
    parts: Parts, plans: Sequence[Sequence[TreePlan]], requests: Sequence[Request], process: Process
) -> Memory:
    """Of a run whose largest step has these micro-batches and these requests.

    Args:
        process: as it was with the model and without moments or anything of a step.
    """
    model, shape = parts.learner.model, shape_in(parts.config, parts.learner.model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    numbers = sum(num_weights(p) for p in model.parameters())
    every = [plan for of_step in plans for plan in of_step]
    positions = max((len(plan.token_S) for plan in every), default=0)
    edges = max((len(plan.target_T) for plan in every), default=0)
    reference = weights if parts.learner.reference not in (None, model) else 0
    on_cpu = model.device.type == "cpu"
    return Memory(
        program=max(process.in_use - weights - reference, 0) if on_cpu else 0,
        so_far=process.most if on_cpu else 0,
        weights=weights,
        reference=reference,
        moments=moments_of(shape),
        gradients=gradient_bytes(shape, whole=any(len(of_step) > 1 for of_step in plans)),
        kept=int(positions * kept_bytes(parts.learner.policy, shape.vocabulary)),
        loss=_loss_bytes(shape, model.device, positions, edges),
        cache=_sampling_bytes(numbers, shape, requests, parts.config.rollout),
    )


def _loss_bytes(shape: Shape, device: torch.device, positions: int, edges: int) -> int:
    """A chunk of logits; d head in float32, where it is trained; hidden states, their rows and gradients."""
    bound = CPU_CHUNK_BYTES if device.type == "cpu" else DEVICE_CHUNK_BYTES
    logits = min(edges * shape.vocabulary * FLOAT32, bound)
    head = shape.vocabulary if shape.trains_head else 0
    return logits + FLOAT32 * shape.width * (head + 2 * positions + edges)


def _sampling_bytes(numbers: int, shape: Shape, requests: Sequence[Request], config: RolloutConfig) -> int:
    """Of the local engine: its decoder's copy of the weights; keys and values of prefixes, twice, and of
    rows; logits, thrice. vLLM has its own process."""
    if config.engine != "local" or not requests:
        return 0
    key_bytes = FLOAT32 if shape.compute_bytes > 2 else shape.compute_bytes
    position = 2 * shape.num_layers * shape.num_kv_heads * shape.head_width * key_bytes
    rows = min(len(requests), config.max_rows)
    slots = -(-(1 + max(request.max_tokens for request in requests)) // GROWTH) * GROWTH
    prefixes = num_positions([request.prompt_ids for request in requests])
    logits = 3 * FLOAT32 * rows * shape.vocabulary
    copies = shape.compute_bytes * numbers
    return copies + position * (2 * prefixes + rows * slots) + logits


@dataclass(frozen=True)
class Process:
    """Bytes of this process in memory; 0 where the system does not tell."""

    in_use: int
    """Now, without what it freed and kept for its next tensors."""
    most: int
    """That it ever had."""


def this_process() -> Process:
    """Hands what is freed back to the system to see the rest (Linux with glibc)."""
    most = _status("VmHWM")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return Process(in_use=_status("VmRSS"), most=most)


def _status(name: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
