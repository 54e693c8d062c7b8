"""The engine process and the arena that its workers read: started, fed with weights, ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.adapters.merged import base_parameters, whole_parameters
from g2rpo_fast.rollout.sync import Arena, Kind, Manifest, PackReport
from g2rpo_fast.rollout.vllm.adapter_file import AdapterFile
from g2rpo_fast.rollout.vllm.config import VllmConfig
from g2rpo_fast.rollout.vllm.launch import engine_dtype, environment, make_launch
from g2rpo_fast.rollout.vllm.messages import Adapters
from g2rpo_fast.rollout.vllm.names import in_checkpoint_names, renames_around_experts
from g2rpo_fast.rollout.vllm.process import EngineProcess
from g2rpo_fast.types import EngineError

ARENAS: dict[str, tuple[Kind, ...]] = {"cuda": ("cuda", "host"), "cpu": ("memfd",)}
"""Kinds of arena by the trainer's device, best first: CUDA IPC, else pinned host memory."""


class AdaptersRefused(EngineError):
    """vLLM leaves adapters out; another engine would do so too."""


@dataclass(frozen=True)
class Sent:
    """What one or more syncs took of the trainer."""

    nbytes: int
    pack_s: float

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.nbytes + other.nbytes, self.pack_s + other.pack_s)


class Link:
    """At most one engine process at a time, and one arena for all of them.

    Attributes:
        rung: how weights enter vLLM; empty before the first `push`.
        fresh: the process has no weights yet.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: VllmConfig,
        *,
        max_rows: int,
        threads: int,
        log_path: Path,
        show: Callable[[str], None],
    ) -> None:
        self._model, self._tokenizer, self._config = model, tokenizer, config
        self._max_rows, self._threads = max_rows, threads
        self._log_path, self._show = log_path, show
        self._process: EngineProcess | None = None
        self._ending: EngineProcess | None = None
        self._based: EngineProcess | None = None
        """Has the base already, where adapters are sent apart."""
        self._model_dir = ""
        self._arena: Arena | None = None
        self._adapters = AdapterFile() if config.adapters == "lora" else None
        self._parameters = whole_parameters if self._adapters is None else base_parameters
        self._dtype = engine_dtype(config, model.device)
        self._renames = renames_around_experts(model)
        self._kinds = ARENAS[model.device.type]
        self._refused: dict[str, str] = {}
        self.version = 0
        self.rung = ""
        self.fresh = True

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begins a new process; `push` waits until it is ready."""
        self._wait_gone()
        launch = make_launch(self._model, self._tokenizer, self._config, max_rows=self._max_rows)
        self._model_dir = launch.model_dir
        variables = environment(self._config, self._model.device, threads=self._threads)
        self._process = EngineProcess(launch, variables, self._log_path, silent_s=self._config.stall_s)
        self.fresh = True

    def wait_ready(self) -> None:
        """Waits for a process that is starting. Raises EngineError: another one would fail likewise."""
        if self._process is None or not self.fresh:
            return
        try:
            self._process.ready(self._config.start_timeout_s)
        except EngineError:
            self.stop()
            raise

    def ask(self, phase: str, idle_s: float, command: str, *, moved: bool = True, **arguments: object) -> Any:
        """The answer to a command (`EngineProcess.request`). EngineError says after which step; the process
        is then gone."""
        where = f"{phase} after step {self.version} (weight version {self.version})"
        if self._process is None:
            raise EngineError(f"vLLM engine: wanted one running for {where}, got none")
        try:
            return self._process.request(command, phase=where, idle_s=idle_s, moved=moved, **arguments)
        except EngineError:
            self.stop()
            raise

    def push(self, version: int) -> Sent:
        """The model's parameters, with adapters merged or beside them, become the engine's. Raises
        EngineError."""
        self.version = version
        if self._adapters is None:
            return self._push_weights()
        sent = Sent(0, 0.0)
        if self._process is not self._based:
            sent = self._push_weights()
            self._let_arena_go()
            self._based = self._process
        adapters = self._adapters.write(self._model, self._dtype)
        why = self._ask_update(None, adapters)
        if why is not None:
            self.stop()
            raise AdaptersRefused(
                f"vllm.adapters: wanted merged, since of these adapters vLLM does not compute all ({why}; "
                "adapter.targets says where they are), got lora"
            )
        return sent + Sent(self._adapters.nbytes, self._adapters.seconds)

    def _push_weights(self) -> Sent:
        report = self._pack()
        if self.fresh:
            report = self._attach(report)
        self._ask_update(report.slot)
        return Sent(report.nbytes, report.seconds)

    def _ask_update(self, slot: int | None, adapters: Adapters | None = None) -> str | None:
        return self.ask(
            "sync",
            self._config.sync_timeout_s,
            "update",
            version=self.version,
            slot=slot,
            checksum=self._config.checksum,
            adapters=adapters,
        )

    def _let_arena_go(self) -> None:
        """The base stays in the engine as it is, and its arena would be as large as two of it."""
        assert self._arena is not None
        self.ask("sync", self._config.sync_timeout_s, "detach")
        self._arena.close()
        self._arena = None

    def stop(self) -> None:
        """Kills the process."""
        if self._process is not None:
            self._process.kill()
            self._ending, self._process = self._process, None
        self._forget_directory()

    def close(self) -> None:
        """Has the process end, and frees the arena."""
        if self._process is not None:
            self._process.close()
            self._ending, self._process = self._process, None
        self._wait_gone()
        self._forget_directory()
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        if self._adapters is not None:
            self._adapters.close()

    def _pack(self) -> PackReport:
        if self._arena is None:
            manifest = Manifest.of(self._named(), self._dtype)
            self._arena, refused = first_arena(manifest, self._kinds, self._model.device)
            self._refused |= refused
        return self._arena.pack(self._named(), self.version, checksum=self._config.checksum)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """What the engine loads: the parameters of the plain model, by names that vLLM knows."""
        named = self._parameters(self._model)
        return in_checkpoint_names(self._model, named) if self._renames else named

    def _attach(self, report: PackReport) -> PackReport:
        """Opens the arena in the workers; where they refuse it, one of the next kind."""
        answer = self._offer()
        while answer["rung"] is None and self._next_kinds():
            report = self._pack()
            answer = self._offer()
        why = "".join(f"; not {name}: {reason}" for name, reason in self._refused.items())
        if answer["rung"] is None:
            self.stop()
            raise EngineError(f"vLLM engine: its workers cannot read the arena of weights{why}")
        self.rung = answer["rung"]
        often = "a sync" if self._adapters is None else "once, then adapters alone"
        said = f"weight sync: {self.rung}, {answer['bytes'] / 1e6:.1f} MB {often}{why}"
        self._show(said)
        with self._log_path.open("a") as log:
            print(said, file=log)
        return report

    def _next_kinds(self) -> bool:
        """Gives up the arena that was refused; whether a kind is left to try."""
        assert self._arena is not None
        left = self._kinds[self._kinds.index(self._arena.kind) + 1 :]
        if left:
            self._kinds = left
            self._arena.close()
            self._arena = None
        return bool(left)

    def _offer(self) -> dict[str, Any]:
        assert self._arena is not None
        answer = self.ask(
            "attach",
            self._config.sync_timeout_s,
            "attach",
            address=self._arena.address(),
            rung=self._config.rung,
        )
        self._refused |= answer["refused"]
        return answer

    def _wait_gone(self) -> None:
        """Two engines do not share a GPU: the workers of the last one end before the next one starts."""
        if self._ending is not None:
            self._ending.wait_gone()
            self._ending = None

    def _forget_directory(self) -> None:
        shutil.rmtree(self._model_dir, ignore_errors=True)


def first_arena(
    manifest: Manifest, kinds: tuple[Kind, ...], device: torch.device
) -> tuple[Arena, dict[str, str]]:
    """An arena of the first kind that this process can make and share, and why not of those before it.

    Raises:
        EngineError: of none.
    """
    refused: dict[str, str] = {}
    for kind in kinds:
        try:
            arena = Arena.create(manifest, kind=kind, device=device)
            arena.address()
        except RuntimeError as error:
            refused[kind] = str(error)
        else:
            return arena, refused
    why = "; ".join(f"{kind}: {reason}" for kind, reason in refused.items())
    raise EngineError(f"vLLM engine: no arena of weights can be shared; {why}")
