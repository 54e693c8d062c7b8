"""The engine process: `python -m g2rpo_fast.rollout.vllm.host SOCKET HEART PARENT`.

One thread, one loop: a command of the trainer if one is waiting, else one step of vLLM. So a sync is a
command like any other and lands between two steps; whatever is sampled after it carries the new weights'
version. A command that fails is reported and ends the process: nothing goes on with weights in doubt. When
the trainer is gone, so is this. A second thread only beats (`liveness.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from g2rpo_fast.rollout.stop_text import StopText
from g2rpo_fast.rollout.text_decoder import text_decoder
from g2rpo_fast.rollout.vllm.batch import Batch
from g2rpo_fast.rollout.vllm.channel import Channel, PeerDead
from g2rpo_fast.rollout.vllm.launch import MODEL_PREFIX
from g2rpo_fast.rollout.vllm.liveness import start_heart
from g2rpo_fast.rollout.vllm.lora import ADAPTER_ID
from g2rpo_fast.rollout.vllm.messages import Adapters, Launch, Progress
from g2rpo_fast.types import Request, Sampling

_PR_SET_PDEATHSIG = 1


class Host:
    """vLLM and at most one batch."""

    def __init__(self, launch: Launch) -> None:
        from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        self.lora = _adapter_request("g2rpo") if launch.llm.get("enable_lora") else None
        if self.lora is not None:
            _check_served(launch.model_dir)
        try:
            self.llm: Any = LLM(model=launch.model_dir, **launch.llm)
        except ValueError as error:
            if self.lora is None or "LoRA" not in str(error):
                raise
            raise ValueError(
                f"vllm.adapters: wanted merged, got lora, which vLLM refuses: {error}"
            ) from error
        self.engine: Any = self.llm.llm_engine
        self.decode = text_decoder(AutoTokenizer.from_pretrained(launch.model_dir))
        self.version = -1
        self.batch: Batch | None = None
        self.batch_id = 0
        self.asleep = False
        self.tokens, self.busy_s = 0, 0.0

    @property
    def generating(self) -> bool:
        return self.batch is not None and self.batch.unfinished

    def attach(self, address: dict[str, Any], rung: str) -> dict[str, Any]:
        """Opens the trainer's arena in every worker; one worker's answer, of one that refused if any did."""
        answers: list[dict[str, Any]] = self.llm.collective_rpc("g2rpo_attach", args=(address, rung))
        return next((answer for answer in answers if answer["rung"] is None), answers[0])

    def detach(self) -> None:
        """Closes the arena in every worker."""
        self.llm.collective_rpc("g2rpo_detach")

    def update(
        self, version: int, slot: int | None, checksum: bool, adapters: Adapters | None = None
    ) -> str | None:
        """Takes the weights of `slot`, adapters, or both. Keys and values of the old ones are forgotten, in
        flight too. Why vLLM does not compute with the adapters; None = it does."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        if slot is not None:
            self.llm.collective_rpc("g2rpo_update", args=(slot, version, checksum))
        refused = None if adapters is None else self._adapt(adapters)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError(f"version {version}: vLLM did not reset its prefix cache")
        self.version = version
        return refused

    def _adapt(self, adapters: Adapters) -> str | None:
        """Puts adapters in the place of the last ones, for rows in flight too; what `left_out` says."""
        with tempfile.TemporaryDirectory(prefix=MODEL_PREFIX) as directory:
            (Path(directory) / "adapter_config.json").write_text(json.dumps(adapters.config))
            (Path(directory) / "adapter_model.safetensors").symlink_to(adapters.path)
            self.engine.add_lora(_adapter_request(directory, load_inplace=True))
        answers: list[str | None] = self.llm.collective_rpc("g2rpo_adapted", args=(adapters.num_maps,))
        return next(filter(None, answers), None)

    def add(self, requests: dict[int, Request], sampling: Sampling) -> None:
        """Begins a batch; keys are the requests' places in it."""
        assert not self.generating, "a batch is in flight"
        stop_text = StopText(sampling.stop_strings, self.decode) if sampling.stop_strings else None
        self.batch = Batch(requests, sampling, stop_text)
        self.batch_id += 1
        for index, request in requests.items():
            self.engine.add_request(
                f"{self.batch_id}-{index}",
                {"prompt_token_ids": list(request.prompt_ids)},
                _params(request, sampling),
                lora_request=self.lora,
            )

    def poll(self, wait_s: float) -> Progress:
        """Generates until the batch is done, at most `wait_s`; what is new since the last poll."""
        until = time.monotonic() + wait_s
        while self.generating and time.monotonic() < until:
            self.step()
        progress = Progress(
            finished=self.batch.take_finished() if self.batch else {},
            tokens=self.tokens,
            busy_s=self.busy_s,
        )
        self.tokens, self.busy_s = 0, 0.0
        return progress

    def release(self, level: int) -> None:
        """Level 1 gives back the KV cache, 2 the weights too; until the next update."""
        self.llm.sleep(level=level)
        if level == 1:
            self.llm.wake_up(tags=["weights"])
        self.asleep = True

    def step(self) -> None:
        """One step of vLLM; its tokens go into the batch."""
        assert self.batch is not None
        began = time.perf_counter()
        for output in self.engine.step():
            index = int(output.request_id.split("-")[1])
            if index not in self.batch.rows:
                continue
            new = output.outputs[0]
            tokens = list(new.token_ids)
            logp = [at[token].logprob for at, token in zip(new.logprobs or (), tokens, strict=True)]
            self.tokens += len(tokens)
            done = self.batch.add(index, tokens, logp, self.version, ended=output.finished)
            if done and not output.finished:
                self.engine.abort_request([output.request_id])
        self.busy_s += time.perf_counter() - began


COMMANDS: dict[str, Callable[..., Any]] = {
    "attach": Host.attach,
    "detach": Host.detach,
    "update": Host.update,
    "add": Host.add,
    "poll": Host.poll,
    "release": Host.release,
}


def _adapter_request(directory: str, *, load_inplace: bool = False) -> Any:
    """What vLLM knows the adapters by. Requests name no directory: it was read when they were taken in."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return LoRARequest("g2rpo", ADAPTER_ID, directory, load_inplace=load_inplace)


def _check_served(model_dir: str) -> None:
    """ValueError for a model that vLLM knows and gives no adapters."""
    from vllm.model_executor.models import (  # pyright: ignore[reportMissingImports]
        ModelRegistry,
        supports_lora,
    )

    (architecture,) = json.loads((Path(model_dir) / "config.json").read_bytes())["architectures"]
    known = ModelRegistry.models.get(architecture)
    if known is not None and not supports_lora(known.load_model_cls()):
        raise ValueError(
            f"vllm.adapters: wanted merged with a {architecture} (vLLM serves it no adapters), got lora"
        )


def _params(request: Request, sampling: Sampling) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def serve(channel: Channel, parent: int) -> None:
    """Builds vLLM, then obeys until the trainer is gone."""
    launch: Launch = channel.receive()
    try:
        if os.getppid() != parent:  # it ended before this process could ask to be told
            raise PeerDead
        host = _reported(channel, partial(Host, launch))
    finally:
        shutil.rmtree(launch.model_dir, ignore_errors=True)
    channel.send(("done", None))
    while True:
        if host.generating and not channel.readable:
            _reported(channel, host.step)
            continue
        command, arguments = channel.receive()
        channel.send(("done", _reported(channel, partial(COMMANDS[command], host, **arguments))))


def _reported(channel: Channel, action: Callable[[], Any]) -> Any:
    """The action's result; an exception is told to the trainer before it ends this process."""
    try:
        return action()
    except Exception as error:
        traceback.print_exc()
        channel.send(("failed", f"{type(error).__name__}: {error}"))
        raise


def _end_with_parent() -> None:
    """SIGTERM when the trainer ends, also where this process is not reading its commands."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    heart = int(sys.argv[2])
    os.set_inheritable(heart, False)
    start_heart(heart)
    _end_with_parent()
    try:
        serve(Channel(end), int(sys.argv[3]))
    except (PeerDead, SystemExit):
        # Not through the interpreter's own end: it takes seconds, in which vLLM would kill its workers. Left
        # alone they notice that this process is gone, and remove their shared memory.
        os._exit(0)


if __name__ == "__main__":
    main()
