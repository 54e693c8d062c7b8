"""The token loss in one pass over row chunks: three products each, gradients ready after forward.

Per chunk: logits, row statistics, c and e by autograd of the loss on vectors, d logits over the logits, d
hidden and d head. A chunk holds whole what is tied; what does not fit a chunk takes a first pass over its
logits, a fourth product.

Dimension key: S positions, D width, V vocabulary, T edges, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from g2rpo_kernels.linear_logprob.attach import hand_over_op
from g2rpo_kernels.linear_logprob.chunks import ChunkBuffer, GradientSums, chunked_stats, even_chunks
from g2rpo_kernels.linear_logprob.linear import Linear, needed
from g2rpo_kernels.linear_policy_loss.bins import whole_row_runs
from g2rpo_kernels.logprob.rows import RowGradients, empty_stats
from g2rpo_kernels.token_loss.own_loss import PLACEHOLDERS, EdgeCoefficients, OwnLoss, Ties, TokenLoss


def token_loss_cpu(given: Linear, own: OwnLoss, ties: Ties, chunk_bytes: int | None) -> TokenLoss:
    """As the reference; never more than `chunk_bytes` of logits. Once differentiable, backward once."""
    tensors = (given.hidden_SD, given.head_VD, given.bias_V)
    needs = needed(tensors)
    if not any(needs):
        with torch.no_grad():
            stats = chunked_stats(given, chunk_bytes)
        return TokenLoss(own.finished(stats.logp_C, stats.entropy_C), stats.logp_C, stats.entropy_C)
    with torch.no_grad():
        work = _Pass(given, own, chunk_bytes, needs)
        work.run()
        gradients = work.sums.finish(given)
    logp_T, entropy_T = work.stats.logp_C, work.stats.entropy_C
    loss = own.finished(logp_T, entropy_T)
    work.coefficients.verdict(ties)
    return TokenLoss(loss + hand_over_op(torch.zeros_like(loss), *tensors, *gradients), logp_T, entropy_T)


class _Pass:
    """One pass over a problem: its buffer, and the statistics and gradients that it fills."""

    def __init__(self, given: Linear, own: OwnLoss, chunk_bytes: int | None, needs: Sequence[bool]) -> None:
        self.linear = given.rounded(given.dtype)
        self.own = own
        self.stats = empty_stats(given.num_rows, given.dtype)
        for value_T, placeholder in zip(self.stats, PLACEHOLDERS, strict=False):
            value_T.fill_(placeholder)
        uses_entropy = own.probe(self.stats.logp_C).e_C is not None
        self.coefficients = EdgeCoefficients(own, self.stats.logp_C, self.stats.entropy_C)
        self.keep_exp = given.softcap is None and not uses_entropy and given.shard is None
        self.buffer = ChunkBuffer(self.linear, chunk_bytes, self.keep_exp)
        self.sums = GradientSums(self.linear, *needs)

    def run(self) -> None:
        """Fills `stats` and `sums`."""
        for run in self._runs():
            chunks = even_chunks(run, self.buffer.most_rows)
            seen = len(chunks) > 1 and self.own.look is None
            # Where the statistics are known beforehand, no sweep of their own leaves exp of the logits.
            self.buffer.keep_exp = self.keep_exp and not seen
            if seen:
                for chunk in chunks:
                    self.buffer.forward(chunk, self.stats)
                self.coefficients.evaluate()
            for chunk in chunks:
                self._chunk(chunk, seen)

    def _runs(self) -> list[slice]:
        most = self.buffer.most_rows
        if self.own.cuts is None or self.own.look is not None:
            return even_chunks(slice(0, self.linear.num_rows), most)
        return whole_row_runs(self.own.cuts, most)

    def _chunk(self, chunk: slice, seen: bool) -> None:
        """The gradients of a chunk, whose statistics and coefficients are known if `seen`."""
        if seen:
            x_CD, row = self.linear.rows(chunk), self.stats.rows(chunk)
            z_CV = self.buffer.logits(chunk, x_CD)
        else:
            x_CD, z_CV, row = self.buffer.forward(chunk, self.stats)
            if self.own.look is None:
                self.coefficients.evaluate()
        c_C, e_C = self.coefficients.rows(chunk)
        if e_C is not None and self.buffer.keep_exp:
            # The loss uses the entropy at these values, though not at the placeholders.
            self.buffer.keep_exp = self.keep_exp = False
            z_CV = self.buffer.logits(chunk, x_CD)
        self.sums.add(self.buffer, chunk, x_CD, z_CV, row, RowGradients(c_C, e_C))
