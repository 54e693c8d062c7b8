"""vLLM engines in a process of their own, told over a pipe what to do: the other side of the sync tests.

    python tests/with_vllm/engine_child.py FD

The parent is the trainer: it owns the arena, and never imports vLLM. Engines run in the child itself
(no EngineCore process), so that each costs seconds. None is stopped before the child ends: vLLM would take
down what all engines of a process share.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

WORKER = "g2rpo_fast.rollout.vllm.worker.WeightReceiver"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else the engines of two test processes share a core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Sample:
    """One completion."""

    token_ids: tuple[int, ...]
    logp: tuple[float, ...]


class EngineChild:
    """The parent's end."""

    def __init__(self, directory: Path, **environment: str) -> None:
        ours, theirs = socketpair()
        self._log = directory / "engines.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=os.environ | ENVIRONMENT | environment,
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._connection = Connection(ours.detach())

    def start(self, name: str, model_dir: Path, **llm: Any) -> None:
        """An engine called `name`; weights are dummies unless `load_format` says otherwise."""
        self._call("start", name=name, model_dir=str(model_dir), llm=llm)

    def rpc(self, name: str, method: str, *arguments: object) -> Any:
        """`collective_rpc`, the answer of the first worker; the others must agree on all but times."""
        return self._call("rpc", name=name, method=method, arguments=arguments)

    def generate(self, name: str, prompts: list[list[int]], **sampling: Any) -> list[Sample]:
        """All samples of all prompts."""
        found = self._call("generate", name=name, prompts=prompts, sampling=sampling)
        return [Sample(tuple(ids), tuple(logp)) for ids, logp in found]

    def reset(self, name: str) -> None:
        """Forgets keys and values of the prefix cache."""
        self._call("reset", name=name)

    def close(self) -> None:
        self._connection.close()
        self._process.wait(300)

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            self._connection.send((operation, arguments))
            outcome, value = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"engines ended in {operation}: {self._log.read_text()[-3000:]}") from error
        if outcome == "failed":
            raise EngineFailed(value)
        return value


class EngineFailed(Exception):
    """What an engine raised, as text."""


Engines = dict[str, Any]


def start(engines: Engines, name: str, model_dir: str, llm: dict[str, Any]) -> None:
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    settings = {
        "load_format": "dummy",
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 16,
        "block_size": 32,
        "kv_cache_memory_bytes": 16 << 20,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "skip_tokenizer_init": True,
        "worker_extension_cls": WORKER,
        "seed": 0,
    }
    engines[name] = LLM(model=model_dir, **(settings | llm))


def rpc(engines: Engines, name: str, method: str, arguments: tuple[object, ...]) -> Any:
    first, *others = engines[name].collective_rpc(method, args=arguments)
    assert all(other["rung"] == first["rung"] for other in others), others
    return first


def generate(
    engines: Engines, name: str, prompts: list[list[int]], sampling: dict[str, Any]
) -> list[tuple[list[int], list[float]]]:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    params = SamplingParams(logprobs=0, detokenize=False, ignore_eos=True, **sampling)
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = engines[name].generate(inputs, params, use_tqdm=False)
    return [
        (list(c.token_ids), [at[t].logprob for at, t in zip(c.logprobs, c.token_ids, strict=True)])
        for output in outputs
        for c in output.outputs
    ]


def reset(engines: Engines, name: str) -> None:
    assert engines[name].reset_prefix_cache()


OPERATIONS: dict[str, Callable[..., Any]] = {
    "start": start,
    "rpc": rpc,
    "generate": generate,
    "reset": reset,
}


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    engines: Engines = {}
    while True:
        try:
            operation, arguments = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            connection.send(("done", OPERATIONS[operation](engines, **arguments)))
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
