"""What the rows of a wave have sampled so far, on the host, and which of them are done.

Tokens arrive in blocks of a few steps, so that the device is not asked after every one. A row's later tokens
of a block are discarded once it has ended: where it ends does not depend on the blocks.

Dimension key: R rows of the wave, T steps of one block, B rows still in the batch; L layers with experts, K
experts of one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2rpo_fast.rollout.stop_text import StopText
from g2rpo_fast.rollout.text_decoder import Decode
from g2rpo_fast.types import (
    Bools,
    Completion,
    Experts,
    FinishReason,
    Floats,
    Longs,
    Report,
    Request,
    Sampling,
)


class Reporter:
    """Tells of all waves of a call what each tells of itself.

    Args:
        empty: requests for no tokens, which are done from the start.
    """

    def __init__(self, report: Report, *, empty: int = 0) -> None:
        self._report = report
        self._rows, self._tokens = empty, 0

    def __call__(self, length_R: Longs, limit_R: Longs, ended_R: Bools) -> None:
        """Tokens that the rows of the present wave have and may have, and which have ended.

        A row that goes on counts by the tokens that it has of those that it may have."""
        done, tokens = float(np.where(ended_R, 1.0, length_R / limit_R).sum()), int(length_R.sum())
        self._report(self._rows + done, tokens=self._tokens + tokens)
        if ended_R.all():
            self._rows, self._tokens = self._rows + len(ended_R), self._tokens + tokens


class Progress:
    """Tokens and log-probabilities of a wave, row by row."""

    def __init__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        decode: Decode,
        reporter: Reporter | None = None,
    ) -> None:
        self._reporter = reporter
        self._given_R = [list(request.given_ids) for request in requests]
        self._limit_R = np.array([request.max_tokens for request in requests])
        self._stop_ids = np.array(sampling.stop_token_ids, dtype=np.int64)
        self._stop_text = StopText(sampling.stop_strings, decode) if sampling.stop_strings else None
        num_steps = int(self._limit_R.max())
        self._token_RT = np.zeros((len(requests), num_steps), dtype=np.int64)
        self._logp_RT = np.zeros((len(requests), num_steps), dtype=np.float32)
        self._expert_RTLK: Experts | None = None
        self._length_R = np.zeros(len(requests), dtype=np.int64)
        self._stopped_R = np.zeros(len(requests), dtype=np.bool_)
        self._ended_R = np.zeros(len(requests), dtype=np.bool_)
        self.batch_B: Longs = np.arange(len(requests))
        """Which row of the wave each row of the batch is."""
        self.step = 0

    @property
    def alive_B(self) -> Longs:
        """Rows of the batch that have not ended."""
        return np.flatnonzero(~self._ended_R[self.batch_B])

    @property
    def steps_left(self) -> int:
        """Most tokens that a row may still sample."""
        return int(self._limit_R[~self._ended_R].max(initial=self.step)) - self.step

    def keep(self, rows: Longs) -> None:
        """The batch now has these of its rows only."""
        self.batch_B = self.batch_B[rows]

    def add(self, token_TB: Longs, logp_TB: Floats, *, expert_TBLK: Experts | None = None) -> None:
        """Takes in the next steps of every row of the batch, at most `steps_left` of them."""
        steps = slice(self.step, self.step + len(token_TB))
        if expert_TBLK is not None:
            if self._expert_RTLK is None:
                self._expert_RTLK = np.zeros((*self._token_RT.shape, *expert_TBLK.shape[2:]), np.int16)
            self._expert_RTLK[self.batch_B, steps] = expert_TBLK.swapaxes(0, 1)
        self._token_RT[self.batch_B, steps] = token_TB.T
        self._logp_RT[self.batch_B, steps] = logp_TB.T
        alive = self.alive_B
        rows, token_BT = self.batch_B[alive], token_TB[:, alive].T
        last = self.step + len(token_TB)
        stop_B = np.full(len(rows), last + 1)  # length with the stop token; beyond the block: none
        if self._stop_ids.size:
            hit_BT = np.isin(token_BT, self._stop_ids)
            stop_B = np.where(hit_BT.any(1), self.step + hit_BT.argmax(1) + 1, stop_B)
        if self._stop_text is not None:
            stop_B = np.minimum(stop_B, [self._text_stop(self._stop_text, row, last) for row in rows])
        end_B = np.minimum(stop_B, self._limit_R[rows])
        ended = end_B <= last
        self._length_R[rows] = np.minimum(end_B, last)
        self._ended_R[rows] = ended
        self._stopped_R[rows] = ended & (stop_B <= end_B)
        self.step = last
        if self._reporter is not None:
            self._reporter(self._length_R, self._limit_R, self._ended_R)

    def _text_stop(self, stop_text: StopText, row: int, last: int) -> int:
        """Length with the token behind the first `step` that completes a stop string, else `last + 1`."""
        given = self._given_R[row]
        sampled = self._tokens(row, min(last, int(self._limit_R[row])))
        length = stop_text.length_at_stop(given + sampled, len(given) + self.step)
        return last + 1 if length is None else length - len(given)

    def _tokens(self, row: int, length: int) -> list[int]:
        return self._token_RT[row, :length].tolist()

    def completion(self, row: int, request: int, weight_version: int) -> Completion:
        """What a row of the wave has sampled; `request` names it in errors.

        Raises:
            FloatingPointError: a log-probability is not a number: the model's logits were NaN or infinite.
        """
        length = self._length_R[row]
        logp = self._logp_RT[row, :length].copy()
        if not np.isfinite(logp).all():
            step = int(np.flatnonzero(~np.isfinite(logp))[0])
            raise FloatingPointError(
                f"request {request}: wanted finite logits, got NaN or infinity at token {step}"
            )
        reason: FinishReason = "stop" if self._stopped_R[row] else "length"
        return Completion(
            token_ids=tuple(self._tokens(row, length)),
            logp=logp,
            finish_reason=reason,
            weight_version=weight_version,
            experts=None if self._expert_RTLK is None else self._expert_RTLK[row, :length].copy(),
        )
