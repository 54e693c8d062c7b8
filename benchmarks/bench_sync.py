"""Weights of a 221M-parameter model (443 MB in bfloat16) from a trainer to vLLM in another process, on a CPU.

    plan                arena, recorded copies, one foreach copy
    layerwise           the same arena, vLLM's layerwise reload into packed weights: what `auto` is on a CPU
    handles, layerwise  a shared-memory handle per tensor per sync, as vLLM's own `ipc` transfer has them
                        (there of CUDA IPC, here file descriptors of torch.multiprocessing), and the reload
    handles, in place   the same handles, `model.load_weights` on plain weights

The trainer has float32 masters; casting and packing (or copying each tensor to shared memory) is its part.
Taken in turn; times are of the wall clock, since two processes share them. Needs vLLM's CPU build.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from socket import socketpair
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from g2rpo_fast.rollout.sync import Arena, Manifest
from timing import spread_ms

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM (make vllm-test installs it)")

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
SIZES = {
    True: {"vocab_size": 50_000, "hidden_size": 1024, "num_hidden_layers": 12, "intermediate_size": 3584},
    False: {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96},
}
Sync = Callable[[], dict[str, float]]
"""One sync: seconds of the trainer's part, of the engine's, and in all."""


def config_of(full: bool) -> Qwen3Config:
    size: dict[str, Any] = SIZES[full]
    config = Qwen3Config(
        **size,
        num_attention_heads=16 if full else 4,
        num_key_value_heads=8 if full else 2,
        head_dim=64 if full else 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen3ForCausalLM"]
    return config


class Engines:
    """The process of `sync_engine.py`."""

    def __init__(self, config: Qwen3Config, directory: Path) -> None:
        config.save_pretrained(directory)
        ours, theirs = socketpair()
        child = str(Path(__file__).with_name("sync_engine.py"))
        key = multiprocessing.current_process().authkey.hex()
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, child, str(theirs.fileno()), key],
                env=os.environ | ENVIRONMENT,
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._log = directory / "log"
        self._connection = Connection(ours.detach())
        for name in ("plain", "packed"):
            self._call("start", name=name, model_dir=str(directory))

    def rpc(self, name: str, method: str, *arguments: object) -> dict[str, Any]:
        return self._call("rpc", name=name, method=method, arguments=arguments)

    def close(self) -> None:
        self._connection.close()
        self._process.wait(60)

    def _call(self, operation: str, **arguments: Any) -> Any:
        self._connection.send((operation, arguments))
        try:
            return self._connection.recv()
        except EOFError as error:
            raise RuntimeError(f"{operation}: {self._log.read_text()[-3000:]}") from error


class ArenaSide:
    """Sync through the arena."""

    def __init__(self, engines: Engines, name: str, rung: str, model: Qwen3ForCausalLM) -> None:
        manifest = Manifest.of(model.named_parameters(), torch.bfloat16)
        self._engines, self._name, self._model, self._version = engines, name, model, 0
        self._arena = Arena.create(manifest, kind="memfd", device=torch.device("cpu"))
        assert engines.rpc(name, "g2rpo_attach", self._arena.address(), rung)["rung"] == rung

    def __call__(self) -> dict[str, float]:
        self._version += 1
        start = time.perf_counter()
        report = self._arena.pack(self._model.named_parameters(), self._version)
        answer = self._engines.rpc(self._name, "g2rpo_update", report.slot, self._version, False)
        return {
            "trainer": report.seconds,
            "engine": answer["seconds"],
            "all": time.perf_counter() - start,
        }


class HandleSide:
    """Sync by a handle per tensor."""

    def __init__(self, engines: Engines, name: str, model: Qwen3ForCausalLM, *, layerwise: bool) -> None:
        self._engines, self._name, self._model, self._layerwise = engines, name, model, layerwise

    def __call__(self) -> dict[str, float]:
        start = time.perf_counter()
        shared = [(name, p.detach().to(torch.bfloat16).share_memory_()) for name, p in self._named()]
        handles = bytes(ForkingPickler.dumps(shared))
        sent = time.perf_counter()
        answer = self._engines.rpc(self._name, "bench_handles", handles, self._layerwise)
        end = time.perf_counter()
        return {"trainer": sent - start, "engine": answer["seconds"], "all": end - start}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._model.named_parameters())


def copy_gb_per_s(nbytes: int) -> float:
    """Bytes read and written by a copy within this process, best of five, wall clock, one thread."""
    source = torch.ones(nbytes, dtype=torch.uint8)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * nbytes / min(seconds)


def figures_of(runs: list[dict[str, float]], nbytes: int, ceiling: float) -> dict[str, Any]:
    """Payload per second of the engine's part; its share of a copy, which reads and writes each byte."""
    parts = {part: [run[part] for run in runs] for part in ("trainer", "engine", "all")}
    engine = statistics.median(parts["engine"])
    return {
        **{part: spread_ms(seconds) for part, seconds in parts.items()},
        "engine_gb_per_s": 1e-9 * nbytes / engine,
        "engine_percent_of_copy": 100 * 2e-9 * nbytes / engine / ceiling,
    }


@torch.no_grad()
def check_values(engines: Engines, sides: dict[str, Sync], model: Qwen3ForCausalLM) -> None:
    """New weights arrive by each way into plain weights, the same."""
    found = []
    for name, change in (("plan", 1.0), ("handles, in place", 2.0), ("plan", 1.0)):
        for parameter in model.parameters():
            parameter.mul_(change)
        sides[name]()
        found.append(engines.rpc("plain", "g2rpo_checksums"))
    assert found[0] != found[1] == found[2]


def test_sync(benchmark_mode: bool, record: Callable[[str, dict], None], tmp_path: Path) -> None:
    """The four ways, interleaved; the first two rounds (first touch of the memory) are not counted."""
    torch.set_num_threads(1)
    config = config_of(benchmark_mode)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    nbytes = 2 * sum(p.numel() for p in model.parameters())
    engines = Engines(config, tmp_path)
    sides: dict[str, Sync] = {
        "plan": ArenaSide(engines, "plain", "plan", model),
        "layerwise": ArenaSide(engines, "packed", "layerwise", model),
        "handles, layerwise": HandleSide(engines, "packed", model, layerwise=True),
        "handles, in place": HandleSide(engines, "plain", model, layerwise=False),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for round_ in range(13 if benchmark_mode else 3):
        for name, sync in sides.items():
            run = sync()
            if round_ >= 2:
                runs[name].append(run)
    check_values(engines, sides, model)
    engines.close()
    ceiling = copy_gb_per_s(nbytes)
    figures = {name: figures_of(run, nbytes, ceiling) for name, run in runs.items()}
    record(
        "weight_sync_vllm_cpu",
        {
            "parameters": nbytes // 2,
            "tensors": len(list(model.parameters())),
            "payload_mb": 1e-6 * nbytes,
            "copy_gb_per_s": ceiling,
            "rounds": len(runs["plan"]),
            "sides": figures,
        },
    )
