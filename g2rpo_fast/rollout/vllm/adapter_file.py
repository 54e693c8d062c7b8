"""Adapters for vLLM's LoRA, which reads files: the trainer's side, an anonymous file in memory.

A new one for each version, since vLLM may have the last one mapped; the memory goes with whoever holds it
last. It has no name, so that a crash leaves nothing behind, and no limit such as that of /dev/shm.
"""

from __future__ import annotations

import os
import time

import torch
from safetensors.torch import save
from torch import nn

from g2rpo_fast.adapters.beside import lora_config, lora_tensors
from g2rpo_fast.rollout.vllm.messages import Adapters


class AdapterFile:
    """The last version sent; held until the next one or `close`."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.nbytes, self.seconds = 0, 0.0
        """Of the last `write`: the tensors' bytes, wall clock."""

    def write(self, model: nn.Module, dtype: torch.dtype) -> Adapters:
        """The adapters of `model` as `dtype`, for the engine process of this machine to read."""
        began = time.perf_counter()
        tensors = lora_tensors(model, dtype)
        self.close()
        self._descriptor = os.memfd_create("g2rpo-adapters")
        with open(self._descriptor, "wb", closefd=False) as file:
            file.write(save(tensors))
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())
        self.seconds = time.perf_counter() - began
        return Adapters(
            path=f"/proc/{os.getpid()}/fd/{self._descriptor}",
            config=lora_config(model),
            num_maps=len(tensors) // 2,
        )

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
