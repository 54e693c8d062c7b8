"""The token loss on a GPU in one pass over row chunks: three products each, nothing waits for it.

Per part of a chunk: float32 logits, one launch for statistics, c and e by autograd of the loss on vectors,
one launch for d logits; per chunk d hidden and d head. A loss that does not use the entropy is called once a
chunk: d logits, linear in c, are written for a c of 1, and c multiplies hidden states and d hidden instead.

Four products: what is tied and does not fit a chunk; what is tied, where the loss uses the entropy and a
chunk has several parts; several chunks in float16, whose d logits would vanish unless scaled by the largest
coefficient of all.

Dimension key: S positions, D width, V vocabulary, T edges, C rows of a chunk, Z rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from g2rpo_kernels.linear_logprob.linear import Linear, needed
from g2rpo_kernels.linear_logprob.triton_attach import attach_op
from g2rpo_kernels.linear_logprob.triton_pass import DevicePass
from g2rpo_kernels.linear_policy_loss.bins import whole_row_runs
from g2rpo_kernels.linear_policy_loss.coefficients import Coefficients
from g2rpo_kernels.token_loss.own_loss import PLACEHOLDERS, EdgeCoefficients, OwnLoss, Ties, TokenLoss


def token_loss_triton(given: Linear, own: OwnLoss, ties: Ties, chunk_bytes: int | None) -> TokenLoss:
    """As the reference; never more than `chunk_bytes` of logits and their gradient. Once differentiable."""
    tensors = (given.hidden_SD, given.head_VD, given.bias_V)
    needs = needed(tensors)
    with torch.no_grad():
        work = _Pass(given, own, chunk_bytes, needs)
        if any(needs):
            work.run()
        else:
            work.statistics(work.everything)
    logp_T, entropy_T, _ = work.numbers
    loss = own.finished(logp_T, entropy_T)
    if any(needs):
        gradients = work.sums.finish()
        loss = loss + attach_op(torch.zeros_like(loss), *tensors, work.unscale, *gradients)
        verdict = work.coefficients.verdict(ties)
        loss = loss if verdict is None else loss * verdict
    return TokenLoss(loss, logp_T, entropy_T)


class _Pass(DevicePass):
    """One pass over a problem."""

    def __init__(self, given: Linear, own: OwnLoss, chunk_bytes: int | None, needs: Sequence[bool]) -> None:
        super().__init__(given, chunk_bytes, needs)
        self.own = own
        for value_T, placeholder in zip(self.numbers, PLACEHOLDERS, strict=False):
            value_T.fill_(placeholder)
        self.unscale: Tensor | None = None
        """What takes gradients back that float16 would have lost."""
        if any(needs):
            uses_entropy = own.probe(self.numbers.logp_T).e_C is not None
            self.coefficients = EdgeCoefficients(own, self.numbers.logp_T, self.numbers.entropy_T)
            self.late = not (uses_entropy or self.device_rows.one_part or own.look is not None)

    def run(self) -> None:
        """Fills `numbers` and `sums`."""
        half = self.linear.head_VD.dtype == torch.float16
        by_part = self.device_rows.one_part or (self.own.cuts is None and not half)
        for run in self._runs(half):
            chunks = self.device_rows.chunks(run)
            at_once = len(chunks) == 1 and (self.late or by_part)
            seen = not at_once and self.own.look is None
            if seen:
                self.statistics(run)
                self.coefficients.evaluate()
            for chunk in chunks:
                if at_once and self.late:
                    self._late_chunk(chunk)
                else:
                    self._chunk(chunk, seen)

    def _runs(self, half: bool) -> list[slice]:
        if half and self.linear.num_rows:
            return [self.everything]
        if self.own.cuts is None or self.own.look is not None:
            return self.device_rows.chunks(self.everything)
        return whole_row_runs(self.own.cuts, self.device_rows.most_rows)

    def _chunk(self, chunk: slice, seen: bool) -> None:
        """A chunk whose numbers and coefficients are known if `seen`, else found part by part."""
        x_CD = self.linear.rows(chunk)
        for part in self.device_rows.parts(chunk, x_CD):
            row = self.numbers.rows(part.rows) if seen else self.found(part)
            if not seen and self.own.look is None:
                self.coefficients.evaluate()
            part.gradient(row, *self._scaled(part.rows), None)
        self.sums.add(chunk, x_CD, self.device_rows.dlogits(chunk))

    def _late_chunk(self, chunk: slice) -> None:
        """A chunk whose coefficients are multiplied in at its end."""
        x_CD = self.linear.rows(chunk)
        one_T = torch.ones_like(self.numbers.logp_T)
        for part in self.device_rows.parts(chunk, x_CD):
            part.gradient(self.found(part), one_T[part.rows], None, None)
        if self.coefficients.evaluate().e_C is not None:
            # The loss uses the entropy at these values, though not at the placeholders.
            self._chunk(chunk, seen=True)
        else:
            self.sums.add(chunk, x_CD, self.device_rows.dlogits(chunk), self._scaled(chunk).c_C)

    def _scaled(self, rows: slice) -> Coefficients:
        """Coefficients of some edges; in float16 those of all are known, and the largest becomes about 1."""
        c_C, e_C = self.coefficients.rows(rows)
        if self.linear.head_VD.dtype != torch.float16:
            return Coefficients(c_C, e_C)
        if self.unscale is None:
            exponent = torch.frexp(self.coefficients.largest()).exponent
            self.unscale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
        return Coefficients(c_C / self.unscale, None if e_C is None else e_C / self.unscale)
