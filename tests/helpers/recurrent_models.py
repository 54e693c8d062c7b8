"""A tree that branches where recurrent layers are easily wrong, and what each of its paths gives alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from packaging import version
from torch import Tensor

from causal_types import CAUSAL_TYPES, VOCAB, tiny_model
from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Longs, Sequences, TreePlan

DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
NEMOTRON: dict[str, Any] = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {},
    "lfm2_moe": {},
    "qwen3_next": DELTA,
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA,
    "olmo_hybrid": DELTA,
    "kimi_linear": {},
    "nemotron_h": NEMOTRON | {"chunk_size": 8},
    "bamba": {"mamba_chunk_size": 8},
    "granitemoehybrid": {"mamba_chunk_size": 8},
    "falcon_h1": {"mamba_chunk_size": 8},
    "mamba2": {"chunk_size": 8},
    "zamba2": {"chunk_size": 8},
}
"""Types of models with layers whose state forks. Gated delta-net has chunks of 64 in any configuration."""
HAND_ON = ("falcon_h1", "mamba2", "nemotron_h")
"""From transformers 5.17 their layers hand a forward's keywords on to their mixers; before, none share."""
OLD = HAND_ON if version.parse(transformers.__version__) < version.parse("5.17") else ()
SHARE = {*FAMILIES} & {*CAUSAL_TYPES} - {*OLD}
FAMILIES = {name: extra for name, extra in FAMILIES.items() if name in SHARE}


def recurrent_model(family: str, **extra: Any) -> Any:
    model = tiny_model(family, **FAMILIES[family] | extra)
    model.set_experts_implementation("eager")  # the others have no float64
    return model


def forking_plan() -> TreePlan:
    """Two trees, seven nodes deep. They branch one token after another and three tokens later, which
    convolutions reach across; after a node of 64, a chunk, and one of 65; and within chunks."""
    rng = np.random.default_rng(1)

    def some(count: int) -> list[int]:
        return rng.integers(3, VOCAB, count).tolist()

    trunk, chunk, one, other, two = some(64), some(65), some(1), some(1), some(2)
    first = [
        [*trunk, *chunk, *some(5)],
        [*trunk, *chunk, *some(30)],
        [*trunk, *one, *other, *some(9)],
        [*trunk, *one, *some(3), *other],
        [*trunk, *one, *other, *two, *some(4)],
        [*trunk, *one, *other, *two, *one],
        [*trunk[:3], *some(4)],
        [*trunk[:1], *some(90)],
        some(5),
    ]
    second = some(64)
    return _plan([*first, [*second, *some(3)], [*second, *some(20)]], [0] * len(first) + [1] * 2)


def random_plan(seed: int) -> TreePlan:
    """Rows that each leave an earlier one of their group at random, mostly late."""
    rng = np.random.default_rng(seed)
    rows, groups = [], []
    for group in range(3):
        of_group: list[list[int]] = []
        for _ in range(int(rng.integers(2, 9))):
            stem = of_group[int(rng.integers(len(of_group)))] if of_group else []
            cut = len(stem) - int(rng.integers(min(len(stem), 12))) if stem else 0
            of_group.append(stem[:cut] + rng.integers(3, VOCAB, int(rng.integers(1, 24))).tolist())
        rows += of_group
        groups += [group] * len(of_group)
    return _plan(rows, groups)


def _plan(rows: list[list[int]], groups: list[int]) -> TreePlan:
    ids_N = np.array([token for row in rows for token in row], np.int32)
    sequences = Sequences(
        ids_N=ids_N,
        ptr_R1=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        trained_N=np.zeros(len(ids_N), np.bool_),
        group_R=np.array(groups, np.int32),
    )
    (plan,) = plan_trees(sequences, whole=True)
    return plan


def path_of(plan: TreePlan, last: int) -> Longs:
    """Stream positions of the path that ends at `last`."""
    path = [j for j in range(last + 1) if plan.end_S[j] > last]
    return np.array(path[-int(plan.position_S[last]) - 1 :])


def alone(model: Any, plan: TreePlan) -> Tensor:
    """[S, D] hidden states of each position's path, by itself, by the model's own forward."""
    rows: dict[int, Tensor] = {}
    for last in sorted(plan.last_B.tolist(), reverse=True):
        path = path_of(plan, last)
        ids = torch.from_numpy(plan.token_S[path]).long()[None]
        hidden_SD = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        rows |= {int(place): row for place, row in zip(path, hidden_SD) if int(place) not in rows}
    return torch.stack([rows[place] for place in range(len(plan.token_S))])


def mixed(hidden_SD: Tensor) -> Tensor:
    """A number that every position has its own part in."""
    generator = torch.Generator().manual_seed(0)
    weight_SD = torch.randn(hidden_SD.shape, generator=generator, dtype=torch.float64)
    return (hidden_SD * weight_SD.to(hidden_SD.dtype)).sum() + (hidden_SD**2 * weight_SD.cos()).sum()


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
