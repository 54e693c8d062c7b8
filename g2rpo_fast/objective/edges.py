"""Per-token numbers of rows → per-edge numbers of a packed tree: sums and means over each edge's members.

Members of an edge share their prefix and their token, so the engine's log-probability of it is one number,
up to the engine's rounding: the mean over the members that sampled it is taken. It then stands for members
that were given the token, too.

Dimension key: R rows, N tokens of all rows, T trained edges, M (edge, member) pairs, B rows of the plan.
"""

from __future__ import annotations

import numpy as np
import torch
from g2rpo_kernels import Edges, edge_coefficients
from g2rpo_kernels.linear_policy_loss.bins import row_cuts

from g2rpo_fast.types import Doubles, Floats, Longs, Sequences, TreePlan


def edges_of(
    plan: TreePlan,
    sequences: Sequences,
    advantage_N: Floats | Doubles,
    weight_N: Floats | Doubles,
    *,
    rollout_logp_N: Floats | Doubles | None = None,
    device: torch.device | str = "cpu",
) -> Edges:
    """The loss's constants for one micro-batch, in float64 on `device`, but for old_logp and ref_logp.

    Args:
        plan: edges and members, as indices into `sequences.ids_N`.
        advantage_N, weight_N: per token of `sequences`; only trained tokens are read.
        rollout_logp_N: the engine's log-probabilities, NaN where nothing was sampled.
    """
    member_M = plan.member_M
    advantage_M = torch.tensor(advantage_N[member_M], dtype=torch.float64)
    weight_M = torch.tensor(weight_N[member_M], dtype=torch.float64)
    member_ptr_T1 = torch.tensor(plan.member_ptr_T1, dtype=torch.int64)
    a_pos_T, a_neg_T, weight_T = edge_coefficients(advantage_M, weight_M, member_ptr_T1)
    rollout_logp_T = None
    if rollout_logp_N is not None:
        rollout_logp_T = torch.from_numpy(_mean_of_known(rollout_logp_N[member_M], plan.member_ptr_T1))
    members = Edges(
        a_pos_T=a_pos_T,
        a_neg_T=a_neg_T,
        weight_T=weight_T,
        rollout_logp_T=rollout_logp_T,
        member_ptr_T1=member_ptr_T1,
        member_row_M=torch.from_numpy(_plan_rows(plan, sequences)),
        member_advantage_M=advantage_M,
        member_weight_M=weight_M,
        num_rows=len(plan.row_B),
    )
    if torch.device(device).type != "cpu":  # found on the host, or the device would be waited for
        members = members._replace(row_cuts=row_cuts(members)).cast(torch.float64, torch.device(device))
    return members


def _plan_rows(plan: TreePlan, sequences: Sequences) -> Longs:
    """[M] each member's row, as an index into `plan.row_B`."""
    row_M = np.searchsorted(sequences.ptr_R1, plan.member_M, side="right") - 1
    order_B = np.argsort(plan.row_B, kind="stable")
    sorted_B = plan.row_B[order_B]
    place_M = np.searchsorted(sorted_B, row_M)
    assert bool(np.isin(row_M, sorted_B).all()), "a member's row is not in the plan"
    return order_B[place_M].astype(np.int64)


def _mean_of_known(value_M: Floats | Doubles, ptr_T1: Longs) -> Doubles:
    """[T] mean over each edge's members that are not NaN; NaN where all are."""
    num_edges = len(ptr_T1) - 1
    edge_M = np.repeat(np.arange(num_edges), np.diff(ptr_T1))
    known_M = ~np.isnan(value_M)
    count_T = np.bincount(edge_M[known_M], minlength=num_edges)
    total_T = np.bincount(edge_M[known_M], weights=value_M[known_M], minlength=num_edges)
    return np.where(count_T > 0, total_T / np.maximum(count_T, 1), np.nan)
