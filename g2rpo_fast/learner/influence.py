"""How much a step on each token would raise right responses of its group: inner products of gradients.

    s_k = sum over right rows i of the group of 1/|y_i| sum_k' <e_k' - pi_k', e_k - pi_k> <h_k', h_k>
        = (e_k - pi_k) M h_k^T,    M [V, D] = sum of 1/|y_i| (e_k' - pi_k')^T h_k'

h = the hidden state that predicts a token, e - pi = its one-hot less the policy's distribution: their outer
product is the gradient of its log-probability with respect to the LM head (THR, arXiv 2510.03669). Only
tokens that occur in the group have a row of M: others' shares of pi are left out, as in the paper's efficient
form.

Dimension key: T edges of a stream, E of a group, V tokens that occur in it, D width, M (edge, member) pairs,
B rows of the batch, N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from g2rpo_fast.learner.policy import Policy, Stream
from g2rpo_fast.model.head import head_of
from g2rpo_fast.objective.batch import TrainBatch
from g2rpo_fast.types import Bools, Doubles


@dataclass(frozen=True)
class Seen:
    """A stream's edges under the policy."""

    stream: Stream
    hidden_TD: Tensor
    lse_T: Tensor
    """Of the logits at the policy's temperature."""


def influence(policy: Policy, seen: Sequence[Seen], batch: TrainBatch, right_B: Bools) -> Doubles:
    """[N] s of each trained token, along the batch's tokens; NaN elsewhere. 0 in groups without a right row.

    Args:
        seen: all streams of the batch. A group may lie in several.
        right_B: which of the batch's rows are right.
    """
    out_N = np.full(len(batch.sequences.ids_N), np.nan)
    ptr_B1, group_B = batch.sequences.ptr_R1, batch.sequences.group_R
    count_B = np.maximum(np.add.reduceat(batch.sequences.trained_N.astype(np.int64), ptr_B1[:-1]), 1)
    share_B = right_B / count_B
    parts = [_edges(one, ptr_B1, group_B, share_B) for one in seen]
    values = [torch.zeros_like(share_T) for _, share_T in parts]
    for group in np.unique(group_B):
        chosen = [torch.from_numpy(np.flatnonzero(group_T == group)) for group_T, _ in parts]
        at = [index.to(value.device) for index, value in zip(chosen, values, strict=True)]
        found_E = _of_group(policy, seen, [share_T[i] for (_, share_T), i in zip(parts, at, strict=True)], at)
        for value, index, found in zip(values, at, found_E.split([len(i) for i in at]), strict=True):
            value[index] = found
    for one, value_T in zip(seen, values, strict=True):
        one.stream.scatter(value_T, out_N)
    return out_N


def _edges(
    seen: Seen, ptr_B1: np.ndarray, group_B: np.ndarray, share_B: Doubles
) -> tuple[np.ndarray, Tensor]:
    """(group_T, share_T): an edge's group, and the sum of 1/|y_i| over its right members."""
    plan = seen.stream.plan
    row_M = np.searchsorted(ptr_B1, plan.member_M, side="right") - 1
    share_T = np.bincount(seen.stream.edge_M, share_B[row_M], minlength=len(plan.target_T))
    group_T = group_B[row_M[plan.member_ptr_T1[:-1]]]
    return group_T, torch.from_numpy(share_T).to(seen.hidden_TD)


def _of_group(policy: Policy, seen: Sequence[Seen], share: Sequence[Tensor], at: Sequence[Tensor]) -> Tensor:
    """[E] s of a group's edges, those of each stream in turn."""
    head = head_of(policy.model)
    share_E = torch.cat(list(share))
    hidden_ED = torch.cat([one.hidden_TD[i] for one, i in zip(seen, at, strict=True)])
    lse_E = torch.cat([one.lse_T[i] for one, i in zip(seen, at, strict=True)])
    target_E = torch.cat([one.stream.target_T[i] for one, i in zip(seen, at, strict=True)])
    ids_V, place_E = target_E.unique(return_inverse=True)
    logit_EV = head.scale * hidden_ED @ head.weight_VD[ids_V].to(hidden_ED).T
    if head.bias_V is not None:
        logit_EV = logit_EV + head.bias_V[ids_V].to(hidden_ED)
    if head.softcap is not None:
        logit_EV = head.softcap * torch.tanh(logit_EV / head.softcap)
    error_EV = -(logit_EV / policy.temperature - lse_E[:, None]).exp()
    error_EV[torch.arange(len(place_E), device=place_E.device), place_E] += 1
    moment_VD = (error_EV * share_E[:, None]).T @ hidden_ED
    return ((error_EV @ moment_VD) * hidden_ED).sum(1)
