"""The engine process and the arena that its workers read: started, fed with weights, ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.rollout.sync import Arena, Manifest, PackReport
from g2rpo_fast.rollout.vllm.config import VllmConfig
from g2rpo_fast.rollout.vllm.launch import engine_dtype, environment, make_launch
from g2rpo_fast.rollout.vllm.process import EngineHung, EngineProcess
from g2rpo_fast.types import EngineError


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
        self._model_dir = ""
        self._arena: Arena | None = None
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
        self._process = EngineProcess(launch, variables, self._log_path)
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

    def ask(self, phase: str, timeout_s: float, command: str, **arguments: object) -> Any:
        """The answer to a command. EngineError says after which step; the process is then gone."""
        where = f"{phase} after step {self.version} (weight version {self.version})"
        if self._process is None:
            raise EngineError(f"vLLM engine: wanted one running for {where}, got none")
        try:
            return self._process.request(command, phase=where, timeout_s=timeout_s, **arguments)
        except EngineError:
            self.stop()
            raise

    def stalled(self, phase: str, seconds: float) -> NoReturn:
        """Ends a process that answers and gets nowhere."""
        pid = self.pid
        self.stop()
        raise EngineHung(
            f"vLLM engine hangs in {phase} after step {self.version} (process {pid}): it answers and has "
            f"sampled nothing for {seconds:g} s"
        )

    def push(self, version: int) -> PackReport:
        """The model's parameters become the engine's weights. Raises EngineError."""
        self.version = version
        report = self._pack()
        if self.fresh:
            report = self._attach(report)
        self.ask(
            "sync",
            self._config.sync_timeout_s,
            "update",
            slot=report.slot,
            version=version,
            checksum=self._config.checksum,
        )
        return report

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

    def _pack(self) -> PackReport:
        if self._arena is None:
            self._arena = self._make_arena("cuda" if self._model.device.type == "cuda" else "memfd")
        return self._arena.pack(self._model.named_parameters(), self.version, checksum=self._config.checksum)

    def _make_arena(self, kind: Any) -> Arena:
        dtype = engine_dtype(self._config, self._model.device)
        manifest = Manifest.of(self._model.named_parameters(), dtype)
        return Arena.create(manifest, kind=kind, device=self._model.device)

    def _attach(self, report: PackReport) -> PackReport:
        """Opens the arena in the workers; where CUDA IPC is refused, one in pinned host memory instead."""
        answer = self._offer()
        refused = dict(answer["refused"])
        if answer["rung"] is None and self._model.device.type == "cuda":
            assert self._arena is not None
            self._arena.close()
            self._arena = self._make_arena("host")
            report = self._pack()
            answer = self._offer()
            refused |= answer["refused"]
        why = "".join(f"; not {name}: {reason}" for name, reason in refused.items())
        if answer["rung"] is None:
            self.stop()
            raise EngineError(f"vLLM engine: its workers cannot read the arena of weights{why}")
        self.rung = answer["rung"]
        self._show(f"weight sync: {self.rung}, {answer['bytes'] / 1e6:.1f} MB a sync{why}")
        return report

    def _offer(self) -> dict[str, Any]:
        assert self._arena is not None
        return self.ask(
            "attach",
            self._config.sync_timeout_s,
            "attach",
            address=self._arena.address(),
            rung=self._config.rung,
        )

    def _wait_gone(self) -> None:
        """Two engines do not share a GPU: the workers of the last one end before the next one starts."""
        if self._ending is not None:
            self._ending.wait_gone()
            self._ending = None

    def _forget_directory(self) -> None:
        shutil.rmtree(self._model_dir, ignore_errors=True)
