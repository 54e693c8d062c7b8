"""Decoding steps from a CUDA graph: the kernels of one step are recorded once and launched together after.

A step of a small model is some fifty kernels a layer, and launching them one by one from Python takes longer
than they do. With a `StaticCache` every step of one layout is the same kernels on the same addresses. A graph
belongs to one layout of one wave: weights, keys and rows are of that wave, and nothing outlives it. Recording
costs about as much as a plain step.

Dimension key: B rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from g2rpo_fast.rollout.local.cache import Cache
from g2rpo_fast.rollout.local.decoder import FunctionalDecoder
from g2rpo_fast.rollout.local.static_cache import StaticCache

WARM_UP = 2
"""Plain steps before one is recorded: they compile, choose and allocate what is kept, and a layout that lasts
no longer is not worth recording."""
POOL_BYTES = 2 << 30
"""Free memory to record with: what a step allocates. A recording cannot use what PyTorch has cached."""

Step = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """How steps are recorded. A step takes no argument: it reads and writes tensors that stay in place."""

    def warm_up(self, step: Step) -> torch.Tensor:
        """Runs the step where it will be recorded."""
        ...

    def record(self, step: Step) -> Step:
        """The same step, to be run by calling it: it returns one tensor, overwritten by the next call."""
        ...


class CudaRecorder:
    """Records CUDA graphs. One stream for all: cuBLAS keeps a workspace for each that it has seen."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, step: Step) -> torch.Tensor:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            out = step()
        current.wait_stream(self._stream)
        return out

    def record(self, step: Step) -> Step:
        if torch.cuda.mem_get_info(self._stream.device)[0] < POOL_BYTES:
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            graph.capture_begin(capture_error_mode="thread_local")  # others may copy meanwhile
            try:
                out = step()
            finally:
                graph.capture_end()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


class GraphDecoder:
    """A `FunctionalDecoder` whose steps are recorded, for one wave: it holds the wave's `StaticCache`."""

    def __init__(self, decoder: FunctionalDecoder, recorder: Recorder) -> None:
        self._decoder, self._recorder = decoder, recorder
        self.key_order_E = decoder.key_order_E
        self._layout = -1
        self._num_steps = 0
        self._replay: Step | None = None

    def step(self, token_B: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Encodes one token per row; hidden states [B, D] after the final norm, valid until the next step."""
        assert isinstance(cache, StaticCache)
        if cache.num_layouts != self._layout:
            self._layout, self._num_steps, self._replay = cache.num_layouts, 0, None
            self._token_B = torch.empty_like(token_B, memory_format=torch.contiguous_format)
        self._token_B.copy_(token_B)

        def step() -> torch.Tensor:
            return self._decoder.step(self._token_B, cache)

        if self._num_steps < WARM_UP:
            self._num_steps += 1
            return self._recorder.warm_up(step)
        if self._replay is None:
            self._replay = self._recorder.record(step)
        return self._replay()
