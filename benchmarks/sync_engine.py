"""The engine's side of the sync benchmark: a process with two vLLM engines that takes weights in four ways.

    python benchmarks/sync_engine.py FD AUTHKEY

One engine has its weights as plain tensors (as on CUDA), the other packed for vLLM's CPU kernels (as vLLM
leaves them); a plan and an in-place load need the first, a layerwise reload works on the second.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from g2rpo_fast.rollout.vllm.layerwise import layerwise_reload
from g2rpo_fast.rollout.vllm.worker import WeightReceiver

SETTINGS = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 8,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "skip_tokenizer_init": True,
    "worker_extension_cls": "sync_engine.BenchReceiver",
}


class BenchReceiver(WeightReceiver):
    """Our receiver, and one for a handle per tensor."""

    def bench_handles(self: Any, pickled: bytes, layerwise: bool) -> dict[str, float]:
        """Opens every tensor's handle and loads: by vLLM's layerwise reload, or in place."""
        started = time.perf_counter()
        named: list[tuple[str, Any]] = pickle.loads(pickled)
        opened = time.perf_counter()
        if layerwise:
            layerwise_reload(self.get_model(), self.vllm_config, named, device=self.device)
        else:
            self.get_model().load_weights(named)
        return {"open_s": opened - started, "seconds": time.perf_counter() - started}


def start(engines: dict[str, Any], name: str, model_dir: str) -> None:
    from vllm import LLM

    engines[name] = LLM(model=model_dir, **SETTINGS)


def rpc(engines: dict[str, Any], name: str, method: str, arguments: tuple[object, ...]) -> Any:
    answer = engines[name].collective_rpc(method, args=arguments)[0]
    gc.collect()  # of the tensors opened: the trainer's memory is freed with them
    return answer


OPERATIONS: dict[str, Callable[..., Any]] = {"start": start, "rpc": rpc}


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    multiprocessing.current_process().authkey = bytes.fromhex(sys.argv[2])  # for file-descriptor handles
    engines: dict[str, Any] = {}
    while True:
        try:
            operation, arguments = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(OPERATIONS[operation](engines, **arguments))


if __name__ == "__main__":
    main()
