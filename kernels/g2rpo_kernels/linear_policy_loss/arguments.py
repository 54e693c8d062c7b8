"""The problem of a linear policy loss as arguments of an operator."""

from __future__ import annotations

from typing import NamedTuple

from g2rpo_kernels.linear_logprob.linear import LINEAR, Linear
from g2rpo_kernels.packing import packing
from g2rpo_kernels.policy_loss.records import OBJECTIVE, Edges, Objective


class Problem(NamedTuple):
    """What an implementation is given."""

    linear: Linear
    edges: Edges
    objective: Objective
    chunk_bytes: int | None
    needs: tuple[bool, ...]
    """Which of hidden, head and bias need a gradient."""


PROBLEM = packing(Problem, linear=LINEAR, edges=packing(Edges), objective=OBJECTIVE)
