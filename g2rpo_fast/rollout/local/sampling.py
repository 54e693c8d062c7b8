"""Draws one token per row: temperature, top-k, top-p, inverse of the cumulative distribution.

    p = softmax(truncate(logits / temperature)),   token = min { i : sum_{j <= i} p_j > u },   u ~ U[0, 1)

Truncation is that of transformers: first the k largest logits (ties with the k-th stay), then the fewest
most likely tokens whose probabilities reach top-p.

Dimension key: B rows, V vocabulary, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from g2rpo_fast.types import Floats, Longs, Sampling

DRAWS_BLOCK = 64
"""Steps of uniforms that a row takes from its generator at a time."""


def log_distribution(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities (nats) of the sampling distribution; greedy: those at temperature 1."""
    if sampling.temperature == 0:
        return torch.log_softmax(logits_BV, -1)
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[1]:
        kth_B1 = logits_BV.topk(sampling.top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -math.inf)
    if sampling.top_p < 1:
        logits_BV = _nucleus(logits_BV, sampling.top_p)
    return torch.log_softmax(logits_BV, -1)


def _nucleus(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Drops the least likely tokens while what is dropped sums to at most 1 - top_p; one always stays."""
    ascending_BV, order_BV = logits_BV.sort(-1)
    dropped_BV = ascending_BV.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped_BV[:, -1] = False
    return logits_BV.masked_fill(dropped_BV.scatter(1, order_BV, dropped_BV), -math.inf)


def draw(
    logits_BV: torch.Tensor, uniform_B1: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its log-probability, both [B, 1].

    Args:
        uniform_B1: in [0, 1), the logits' dtype; not read when greedy.
    """
    logp_BV = log_distribution(logits_BV, sampling)
    if sampling.temperature == 0:
        token_B1 = logits_BV.argmax(-1, keepdim=True)
    else:
        cdf_BV = logp_BV.exp().cumsum_(-1)
        # Scaled by the total, which rounding keeps from being 1: the target stays below the last entry.
        token_B1 = torch.searchsorted(cdf_BV, uniform_B1 * cdf_BV[:, -1:], right=True)
        token_B1.clamp_(max=logits_BV.shape[1] - 1)  # only NaN gets here; the NaN log-probability tells
    return token_B1, logp_BV.gather(1, token_B1)


class Draws:
    """Each row's own stream of uniforms: numpy's Philox generator keyed by the row's seed.

    Counter-based, so that row r's t-th uniform depends on its seed and t alone, and one generator serves
    all rows.
    """

    def __init__(self, seeds: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> None:
        self._keys = [(seed % 2**64, seed // 2**64 % 2**64) for seed in seeds]
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._device, self._dtype = device, dtype
        self._step = 0
        self._num_blocks = 0
        self._steps: Sequence[torch.Tensor] = ()

    def next(self) -> torch.Tensor:
        """The rows' next uniforms [B, 1]."""
        if self._step == len(self._steps):
            block_BT = np.stack([self._block(key) for key in self._keys])
            self._hold(torch.from_numpy(np.ascontiguousarray(block_BT.T)).to(self._device, self._dtype))
            self._num_blocks += 1
        self._step += 1
        return self._steps[self._step - 1]

    def keep(self, rows: Longs) -> None:
        """Drops all other rows."""
        self._keys = [self._keys[row] for row in rows]
        if self._step < len(self._steps):
            left_TB = torch.stack([u_B1[:, 0] for u_B1 in self._steps[self._step :]])
            self._hold(left_TB.index_select(1, torch.from_numpy(rows).to(self._device)))

    def _block(self, key: tuple[int, int]) -> Floats:
        # Two float32 draws to a 64-bit word, four words to a count. 24 bits: below 1 in any dtype.
        counter = self._num_blocks * DRAWS_BLOCK // 8
        self._philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": np.array([counter, 0, 0, 0], np.uint64), "key": np.array(key, np.uint64)},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._generator.random(DRAWS_BLOCK, dtype=np.float32)

    def _hold(self, block_TB: torch.Tensor) -> None:
        self._step, self._steps = 0, block_TB.unsqueeze(-1).unbind(0)
