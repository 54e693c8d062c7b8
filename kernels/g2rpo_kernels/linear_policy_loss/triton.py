"""The linear policy loss on a GPU in one pass over row chunks: three products each, nothing waits for it.

Per part of a chunk: float32 logits by the vendor's library, then one Triton launch that makes statistics,
coefficients and d logits (token ratios); per chunk d hidden and d head. On Hopper the product's own kernel
makes exponentials of a whole chunk instead, without float32 logits. A sharded vocabulary, and a surrogate
without a device function, take statistics and d logits in two launches, the coefficients between them on
vectors.

Sequence ratios: chunks hold whole rows where the caller says where those may be cut (`Edges.row_cuts`). A
coefficient is then known when all parts of its chunk have gone by: d logits, linear in it, are written for a
coefficient of 1, and it multiplies hidden states and d hidden instead. That needs the same direction for the
whole of d logits, so with an entropy term, and for rows longer than a chunk, the logits are computed twice
(four products), unless the tied part is known beforehand.

Dimension key: S positions, D width, V vocabulary, T trained edges, C rows of a chunk, Z rows of a part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import Linear, gradients_of, needed, tensors_of
from g2rpo_kernels.linear_logprob.triton_attach import attach_op
from g2rpo_kernels.linear_logprob.triton_exponentials import ExponentialPart
from g2rpo_kernels.linear_logprob.triton_pass import DevicePass, Part, empty_numbers
from g2rpo_kernels.linear_policy_loss.arguments import PROBLEM, Problem
from g2rpo_kernels.linear_policy_loss.bins import row_cuts, whole_row_runs
from g2rpo_kernels.linear_policy_loss.coefficients import (
    Coefficients,
    known_beforehand,
    own_coefficients,
    penalty_coefficients,
    tied_coefficient,
)
from g2rpo_kernels.logprob.partials import RowNumbers
from g2rpo_kernels.policy_loss.objective import active_edges
from g2rpo_kernels.policy_loss.records import Edges, Objective, PolicyLoss
from g2rpo_kernels.policy_loss.reference import loss_of
from g2rpo_kernels.policy_loss.triton import policy_rows
from g2rpo_kernels.policy_loss.triton_tiles import exponentials_to_dlogits_


def gradients_triton(*arguments: Any) -> tuple[Tensor, ...]:
    """logp [T], entropy [T], and float32 gradients of (hidden, head, bias), empty where not needed."""
    problem = PROBLEM.unpack(*arguments)
    work = _Pass(problem)
    if not any(problem.needs):
        work.statistics(work.everything)
    elif problem.objective.ratio == "token":
        work.token_ratios()
    else:
        work.sequence_ratios()
    gradients = tensors_of(work.sums.finish(), problem.linear.hidden_SD)
    return work.numbers.logp_T, work.numbers.entropy_T, *gradients


gradients_op = torch.library.custom_op(
    "g2rpo::linear_policy_gradients",
    gradients_triton,
    mutates_args=(),
    schema=f"({PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@gradients_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    given, _, _, _, needs = PROBLEM.unpack(*arguments)
    numbers = empty_numbers(given)
    return numbers.logp_T, numbers.entropy_T, *given.like(needs, torch.float32)


def linear_policy_loss_triton(
    given: Linear, edges: Edges, objective: Objective, chunk_bytes: int | None
) -> PolicyLoss:
    """As the reference; never more than `chunk_bytes` of logits and their gradient. Once differentiable."""
    edges = edges.cast(torch.float32, given.head_VD.device)
    tensors = (given.hidden_SD, given.head_VD, given.bias_V)
    needs = needed(tensors)
    with torch.no_grad():
        scaled, unscale = _scaled(edges) if given.product_dtype == torch.float16 else (edges, None)
        problem = Problem(given, scaled, objective, chunk_bytes, needs)
        logp_T, entropy_T, *found = gradients_op(*PROBLEM.pack(problem))
        out = loss_of(logp_T, entropy_T, edges, objective)
    if not any(needs):
        return out
    loss = attach_op(out.loss, *tensors, unscale, *gradients_of(found, needs))
    return out._replace(loss=loss)


def _scaled(edges: Edges) -> tuple[Edges, Tensor]:
    """Edges whose weights are about 1, and what takes gradients back: powers of two, so nothing is rounded.

    float16 would lose d logits of weights as small as one in a batch of tokens.
    """
    weights = (edges.a_pos_T, edges.a_neg_T, edges.weight_T)
    largest = torch.stack([value_T.abs().amax() for value_T in weights if len(value_T)] or [weights[0].sum()])
    exponent = torch.frexp(largest.amax()).exponent
    scale = torch.ldexp(torch.ones_like(largest[0]), -exponent)
    moved = {name: getattr(edges, name) * scale for name in ("a_pos_T", "a_neg_T", "weight_T")}
    if edges.member_weight_M is not None:
        moved["member_weight_M"] = edges.member_weight_M * scale
    return edges._replace(**moved), 1 / scale


class _Pass(DevicePass):
    """One pass over a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.linear, problem.chunk_bytes, problem.needs)
        self.edges, self.objective = problem.edges, problem.objective

    def token_ratios(self) -> None:
        """Coefficients are each edge's own."""
        one_launch = self.objective.one_launch and self.linear.shard is None
        for chunk in self.device_rows.chunks(self.everything):
            x_CD = self.linear.rows(chunk)
            for part in self.device_rows.parts(chunk, x_CD):
                (self._fused if one_launch else self._own)(part)
            self.sums.add(chunk, x_CD, self.device_rows.dlogits(chunk))

    def _fused(self, part: Part) -> None:
        """d logits of a part in one launch."""
        edges, results = self.edges.rows(part.rows), self.numbers.rows(part.rows)
        if isinstance(part, ExponentialPart):
            given = part.exponentials, part.target_C, edges, self.objective, part.temperature
            exponentials_to_dlogits_(*given, results.logp_T, results.entropy_T)
            return
        rows = policy_rows(part.z_ZV, part.target_Z, edges, self.objective, out=part.dz_ZV, **part.scaling)
        results.logp_T.copy_(rows.logp_T)
        results.entropy_T.copy_(rows.entropy_T)

    def _own(self, part: Part) -> None:
        """The same where the statistics of a row come from several ranks, or no kernel has the surrogate."""
        row = self.found(part)
        edges = self.edges.rows(part.rows)
        part.gradient(row, *own_coefficients(row.logp_T, row.entropy_T, edges, self.objective), None)

    def sequence_ratios(self) -> None:
        """The edges of a row share their coefficient's tied part."""
        known = known_beforehand(self.edges, self.objective)
        late = not (known or self.device_rows.one_part or self.objective.entropy_coef)
        for run in whole_row_runs(self._cuts(known), self.device_rows.most_rows):
            chunks = self.device_rows.chunks(run)
            at_once = len(chunks) == 1 and (late or self.device_rows.one_part)
            if not (known or at_once):
                self.statistics(run)
            tied_T = None if at_once else tied_coefficient(self.numbers.logp_T, self.edges, self.objective)
            for chunk in chunks:
                if at_once and late:
                    self._late_chunk(chunk)
                else:
                    self._tied_chunk(chunk, tied_T)

    def _cuts(self, known: bool) -> tuple[int, ...]:
        anywhere = (self.linear.num_rows,)
        if known:
            return anywhere
        if self.edges.row_cuts is not None:
            return self.edges.row_cuts
        return row_cuts(self.edges) if self.linear.head_VD.device.type == "cpu" else anywhere

    def _tied_chunk(self, chunk: slice, tied_T: Tensor | None) -> None:
        """A chunk whose tied coefficients are known, or will be after its only part."""
        x_CD = self.linear.rows(chunk)
        for part in self.device_rows.parts(chunk, x_CD):
            row = self.found(part)
            if tied_T is None:
                tied_T = tied_coefficient(self.numbers.logp_T, self.edges, self.objective)
            part.gradient(row, *self._with_penalties(part.rows, row, tied_T), None)
        self.sums.add(chunk, x_CD, self.device_rows.dlogits(chunk))

    def _late_chunk(self, chunk: slice) -> None:
        """A chunk of whole rows, their coefficients multiplied in at its end."""
        x_CD = self.linear.rows(chunk)
        one_T = active_edges(self.edges).float()
        for part in self.device_rows.parts(chunk, x_CD):
            part.gradient(self.found(part), one_T[part.rows], None, None)
        tied_T = tied_coefficient(self.numbers.logp_T, self.edges, self.objective)
        late_C, _ = self._with_penalties(chunk, self.numbers.rows(chunk), tied_T)
        self.sums.add(chunk, x_CD, self.device_rows.dlogits(chunk), late_C)

    def _with_penalties(self, rows: slice, row: RowNumbers, tied_T: Tensor) -> Coefficients:
        edges = self.edges.rows(rows)
        return penalty_coefficients(row.logp_T, row.entropy_T, edges, self.objective, tied_T[rows])
