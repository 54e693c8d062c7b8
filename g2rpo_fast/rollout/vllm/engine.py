"""The `vllm` engine in the trainer's process: it owns the arena of weights and one engine process.

    sync(v):  pack a slot of the arena -> command -> workers copy, caches reset -> acknowledgement

A failed update is fatal for the engine process: it is killed and a new one gets the same weights; the rows in
flight begin anew. The second failure in a row is an EngineError, as is an engine that dies or hangs while
generating. The first weights of every new process are checked by a probe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from g2rpo_fast.adapters.beside import trial_adapters
from g2rpo_fast.adapters.merged import has_adapters
from g2rpo_fast.rollout.requests import check_requests
from g2rpo_fast.rollout.vllm.config import COLDEST, OF_EXPERTS, VllmConfig
from g2rpo_fast.rollout.vllm.launch import dtype_name, engine_dtype, max_model_len
from g2rpo_fast.rollout.vllm.link import AdaptersRefused, Link, Sent
from g2rpo_fast.rollout.vllm.probe import check_probe, probe_requests
from g2rpo_fast.rollout.vllm.process import EngineHung
from g2rpo_fast.rollout.vllm.versions import require_vllm
from g2rpo_fast.types import Completion, EngineError, Floats, Report, Request, Sampling

POLL_S = 0.5
"""Longest wait for one report of the engine while it generates."""

LogpFunction = Callable[[Sequence[tuple[tuple[int, ...], tuple[int, ...]]]], list[Floats]]
"""(prompt ids, token ids) pairs to the trainer's log-probabilities of the tokens, at temperature 1."""


@dataclass
class Flight:
    """The batch being generated."""

    sampling: Sampling
    left: dict[int, Request]
    """Requests not answered yet, by their place."""
    answers: dict[int, Completion] = field(default_factory=dict)


@dataclass
class Costs:
    """Since the last `metrics`."""

    tokens: int = 0
    busy_s: float = 0.0
    sync_s: float = 0.0
    pack_s: float = 0.0
    sync_bytes: int = 0


class VllmEngine:
    """Implements `types.Engine`.

    Args:
        model: its parameters are what `sync` sends.
        tokenizer: decodes for stop strings.
        logp: the trainer's log-probabilities, for the probe.
        logp_dtype: of the matrix products that they come from.
        max_rows: most rows decoded at once.
        threads: CPU threads if `config.threads` is None.
        log_path: the engine process's output is appended there.
        show: is told the rung in use and why the engine was restarted.

    Raises:
        ValueError: vLLM is missing or of another version, or settings that the device cannot follow.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: VllmConfig,
        *,
        logp: LogpFunction,
        logp_dtype: torch.dtype = torch.float32,
        max_rows: int,
        threads: int,
        log_path: Path,
        show: Callable[[str], None],
    ) -> None:
        on = model.device.type
        if config.sleep != "off" and on != "cuda":
            raise ValueError(f"vllm.sleep: wanted off on {on} (vLLM sleeps on CUDA only), got {config.sleep}")
        check_apart(model, config)
        check_quantised(model, config)
        require_vllm()
        self._max_len = max_model_len(model, config)
        self._model, self._config, self._logp, self._show = model, config, logp, show
        dtypes = engine_dtype(config, model.device), logp_dtype
        self._kind = dtype_name(min(dtypes, key=lambda dtype: dtype.itemsize))
        if config.quantization:
            self._kind = "quantised"
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        self._vocabulary = embedding.shape[0]
        self._flight: Flight | None = None
        self._costs = Costs()
        self._restarts = 0
        self._link = Link(
            model, tokenizer, config, max_rows=max_rows, threads=threads, log_path=log_path, show=show
        )
        self._link.start()

    @property
    def pid(self) -> int | None:
        """The engine process; None when there is none."""
        return self._link.pid

    @property
    def rung(self) -> str:
        """How weights enter vLLM; empty before the first sync."""
        return self._link.rung

    def generate(
        self, requests: list[Request], sampling: Sampling, report: Report | None = None
    ) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            ValueError: what `local` refuses too; a temperature between 0 and 0.01.
            EngineError: the engine died, hangs or failed.
        """
        return self.submit(requests, sampling, report)()

    def submit(
        self, requests: list[Request], sampling: Sampling, report: Report | None = None
    ) -> Callable[[], list[Completion]]:
        """The engine begins at once; the function returned waits for the completions."""
        check_requests(requests, self._vocabulary, self._max_len)
        if 0 < sampling.temperature < COLDEST:
            raise ValueError(f"temperature: wanted 0 or at least {COLDEST}, got {sampling.temperature}")
        if self._flight is not None:
            raise ValueError("submit: wanted at most one batch in flight, got a second")
        flight = Flight(sampling, {i: r for i, r in enumerate(requests) if r.max_tokens > 0})
        flight.answers = {
            i: _nothing(self._link.version) for i, r in enumerate(requests) if r.max_tokens == 0
        }
        if flight.left:
            self._take_off(flight)
        return lambda: self._collect(flight, report)

    def sync(self, version: int) -> None:
        """Sends the model's parameters; returns when the engine computes with them.

        Raises:
            EngineError: the engine hangs or cannot start, or a second one failed too.
        """
        self._link.wait_ready()
        began = time.perf_counter()
        flight, self._flight = self._flight, None
        try:
            sent = self._push(version)
        except (EngineHung, AdaptersRefused):
            raise
        except EngineError as error:
            self._restarts += 1
            self._show(f"rollout engine: a new one is started; {str(error).splitlines()[0]}")
            self._link.stop()
            self._link.start()
            self._link.wait_ready()
            sent = self._push(version)
            if flight is not None:
                self._take_off(flight)
        self._flight = flight
        self._costs.sync_s += time.perf_counter() - began
        self._costs.pack_s += sent.pack_s
        self._costs.sync_bytes += sent.nbytes

    def release(self) -> None:
        """Gives back what `vllm.sleep` names until the next sync; nothing while a batch is in flight."""
        level = {"off": 0, "kv": 1, "all": 2}[self._config.sleep]
        if level and self._flight is None:
            self._link.ask("release", self._config.sync_timeout_s, "release", level=level)

    def metrics(self) -> dict[str, float]:
        """`engine/...`: tokens/s while generating, seconds and bytes of syncs, restarts since the start."""
        costs, self._costs = self._costs, Costs()
        return {
            "engine/tokens_per_s": costs.tokens / costs.busy_s if costs.busy_s else 0.0,
            "engine/sync_s": costs.sync_s,
            "engine/pack_s": costs.pack_s,
            "engine/sync_bytes": float(costs.sync_bytes),
            "engine/weight_version": float(self._link.version),
            "engine/restarts": float(self._restarts),
            "engine/rung_plan": float(self._link.rung == "plan"),
        }

    def close(self) -> None:
        """Ends the engine process and frees the arena. May be called again."""
        self._flight = None
        self._link.close()

    def _take_off(self, flight: Flight) -> None:
        """Puts the unanswered requests of a batch in flight."""
        self._link.ask(
            "generation", self._config.stall_s, "add", requests=flight.left, sampling=flight.sampling
        )
        self._flight = flight

    def _collect(self, flight: Flight, report: Report | None) -> list[Completion]:
        """Waits for a batch.

        Raises:
            FloatingPointError: a log-probability is not a number.
        """
        moved, tokens = True, 0
        while flight.left:
            if self._flight is not flight:
                raise EngineError("vLLM engine: the batch was lost with the engine that it was given to")
            try:
                progress = self._link.ask(
                    "generation", self._config.stall_s, "poll", moved=moved, wait_s=POLL_S
                )
            except EngineError:
                self._flight = None
                raise
            self._costs.tokens += progress.tokens
            self._costs.busy_s += progress.busy_s
            for i, completion in progress.finished.items():
                del flight.left[i]
                flight.answers[i] = completion
            moved = bool(progress.tokens or progress.finished)
            tokens += progress.tokens
            if report is not None:
                report(_rows_done(flight, tokens), tokens=tokens)
        self._flight = None
        for i, completion in flight.answers.items():
            _check_finite(i, completion)
        return [flight.answers[i] for i in sorted(flight.answers)]

    def _push(self, version: int) -> Sent:
        if not self._link.fresh:
            return self._link.push(version)
        apart = self._config.adapters == "lora"
        with trial_adapters(self._model) if apart else nullcontext(False) as trial:
            sent = self._link.push(version)
            self._probe()
        if trial:
            sent += self._link.push(version)
        self._link.fresh = False
        return sent

    def _probe(self) -> None:
        """A new engine's first weights: does it compute what the trainer does?"""
        requests = probe_requests(self._vocabulary, self._max_len)
        completions = self.generate(requests, Sampling())
        self._costs = Costs()
        wanted = self._logp(
            [(request.prompt_ids, c.token_ids) for request, c in zip(requests, completions, strict=True)]
        )
        try:
            check_probe(completions, wanted, self._kind)
        except EngineError as error:
            self._link.stop()
            if self._config.adapters == "merged":
                raise
            raise EngineError(f"{error}, or not with its adapters (vllm.adapters = lora)") from error


def check_apart(model: PreTrainedModel, config: VllmConfig) -> None:
    """ValueError where the adapters of this model cannot be sent apart from it on this device."""
    if config.adapters == "merged":
        return
    if not has_adapters(model):
        raise ValueError("vllm.adapters: wanted merged for a model without adapters, got lora")
    if model.device.type == "cuda" and engine_dtype(config, model.device) == torch.float32:
        raise ValueError(
            "vllm.adapters: wanted merged with vllm.dtype = float32 on CUDA (vLLM's kernels of adapters take "
            "2 bytes a number), got lora"
        )


def check_quantised(model: PreTrainedModel, config: VllmConfig) -> None:
    """ValueError where vLLM would quantise nothing of this model, and say nothing either."""
    experts = any(".experts." in name for name, _ in model.named_parameters())
    if config.quantization == OF_EXPERTS and not experts:
        raise ValueError(
            f"vllm.quantization: wanted fp8, fp8_per_channel or none for a {model.config.model_type}, which "
            f"has no experts (all that vLLM quantises by it), got {OF_EXPERTS}"
        )


def _rows_done(flight: Flight, tokens: int) -> float:
    """Requests answered, and of the others their tokens as a share of those that they may have."""
    under_way = tokens - sum(len(completion.token_ids) for completion in flight.answers.values())
    most = sum(request.max_tokens for request in flight.left.values())
    return len(flight.answers) + (len(flight.left) * min(max(under_way, 0) / most, 1.0) if most else 0.0)


def _nothing(version: int) -> Completion:
    """The answer to a request for no tokens."""
    return Completion(
        token_ids=(), logp=np.zeros(0, np.float32), finish_reason="length", weight_version=version
    )


def _check_finite(request: int, completion: Completion) -> None:
    bad = np.flatnonzero(~np.isfinite(completion.logp))
    if len(bad):
        raise FloatingPointError(
            f"request {request}: wanted finite logits, got NaN or infinity at token {bad[0]}"
        )
