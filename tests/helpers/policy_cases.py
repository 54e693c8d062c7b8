"""Surrogates, penalties and a packed batch whose edges are shared, for tests of the policy loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from g2rpo_kernels import Cispo, Clip, Edges, Reinforce, Sapo, Values, edge_coefficients
from torch import Tensor

from budget import Tolerance
from drawn import normal

B, L, V, D = 6, 5, 13, 7
EPS = Tolerance(rtol=1e-10, atol=1e-12)


@dataclass(frozen=True, kw_only=True)
class Soft(Clip):
    """tanh(slope (r - 1)) / slope: somebody's own, no clip although it inherits a name and scalars."""

    slope: float = 3.0

    def __call__(self, ratio: Tensor, logp: Tensor) -> Values:
        value = torch.tanh(self.slope * (ratio - 1)) / self.slope
        return Values(value, value)


SURROGATES = [
    Clip(),
    Clip(low=0.2, high=0.28, dual=1.5),
    Cispo(low=1.0, high=0.3),
    Sapo(),
    Reinforce(),
]
PENALTIES = [
    {},
    {"kl": "k1", "kl_coef": 0.1},
    {"kl": "k2", "kl_coef": 0.1, "entropy_coef": 0.02},
    {"kl": "k3", "kl_coef": 0.1, "importance_cap": 1.2},
    {"entropy_coef": 0.02, "importance_cap": 1.2, "importance_low": 0.8},
    {"kl": "k3", "kl_coef": 0.1, "importance_cap": 1.3, "importance_low": 0.7, "importance_mask": True},
]


def shared_case() -> tuple[Edges, Tensor, Tensor, Tensor, Edges, Tensor]:
    """Edges with 1 to 4 members of mixed sign, and the same with each member an edge of its own."""
    generator = torch.Generator().manual_seed(11)
    num_edges, num_rows = 30, 7
    counts = torch.randint(1, 5, (num_edges,), generator=generator)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    edge_M = torch.repeat_interleave(counts)
    num_members = len(edge_M)
    row_M = torch.randint(num_rows, (num_members,), generator=generator)
    advantage_M = normal(num_members, seed=12)
    weight_M = torch.rand(num_members, generator=generator, dtype=torch.float64)
    assert (
        edge_coefficients(advantage_M, weight_M, ptr)[0] * edge_coefficients(advantage_M, weight_M, ptr)[1]
        != 0
    ).sum() > 5
    old, ref, rollout = (-2 + 0.5 * normal(num_edges, seed=s) for s in (13, 14, 15))
    target = torch.randint(V, (num_edges,), generator=generator)
    source = torch.randint(9, (num_edges,), generator=generator)
    members: dict[str, Any] = {
        "member_row_M": row_M,
        "member_advantage_M": advantage_M,
        "member_weight_M": weight_M,
    }
    logps: dict[str, Any] = {"old_logp_T": old, "ref_logp_T": ref, "rollout_logp_T": rollout}
    shared = Edges(
        *edge_coefficients(advantage_M, weight_M, ptr),
        **logps,
        member_ptr_T1=ptr,
        **members,
        num_rows=num_rows,
    )
    each = torch.arange(num_members + 1)
    replicated = Edges(
        *edge_coefficients(advantage_M, weight_M, each),
        **{name: value[edge_M] for name, value in logps.items()},
        member_ptr_T1=each,
        **members,
        num_rows=num_rows,
    )
    return shared, source, target, edge_M, replicated, normal(9, D, seed=16)
