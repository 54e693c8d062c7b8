"""The receiving side of weight sync, inside vLLM's workers (`worker_extension_cls`).

    g2rpo_attach   opens the trainer's arena once and picks the highest rung that passes its checks
    g2rpo_update   one sync: wait for the slot, copy, wait for the copies, answer
    g2rpo_detach   gives the arena back, where no other sync will come through it
    g2rpo_adapted  whether vLLM computes with adapters that it was given beside the weights (`lora.py`)

Rungs, highest first; `auto` takes the first that is not refused and says why the others were:

    plan       a list of copies recorded once from the model's own loader, then one `_foreach_copy_`
    layerwise  vLLM's reload, for quantised and unknown models, and on a CPU, where vLLM computes from packed
               copies (a plan is possible there if asked for by name: `in_place.unpack_linears`)

An arena that cannot be opened is an answer too (`rung` None, `refused` names the kind of arena): the trainer
then offers one of another kind. Weights are undefined between `g2rpo_attach` and the next `g2rpo_update`.

An update is not atomic: after any exception the model may be a mixture, every later call is refused, and the
engine must be started anew. Caches computed from the old weights are the caller's (`reset_prefix_cache`).

Of vLLM this needs `worker_extension_cls`, `collective_rpc`, `Worker.get_model` and `model.load_weights`; the
layerwise rung, and unpacking on a CPU, need what `layerwise.ReloadFunctions` lists.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from g2rpo_fast.rollout.sync import ArenaReader, CopyPlan, PlanRefused, checksum
from g2rpo_fast.rollout.vllm import in_place, layerwise, lora

Rung = Literal["auto", "plan", "layerwise"]
RUNGS = ("auto", "plan", "layerwise")


class WeightReceiver:
    """Methods that vLLM mixes into its worker class; all arguments and answers are plain data."""

    def g2rpo_attach(self: Any, address: dict[str, Any], rung: Rung = "auto") -> dict[str, Any]:
        """Opens the arena at `address` and chooses a rung.

        Answers {"rung": name or None, "refused": {rung or arena kind: why}, "device_uuid", "bytes"}.
        ValueError for a rung asked for by name that is refused, and for a model that no rung is right for.
        """
        attached: Receiver | None = vars(self).get("_g2rpo")
        if attached is not None:
            attached.check_alive()
            attached.close()
        self._g2rpo = Receiver(self)
        return self._g2rpo.attach(address, rung)

    def g2rpo_update(self: Any, slot: int, version: int, checksum: bool = False) -> dict[str, Any]:
        """Makes the weights in `slot` the model's. Answers {"version", "seconds", "rung"} when they are."""
        return _attached(self).update(slot, version, checksum)

    def g2rpo_detach(self: Any) -> None:
        """Closes the arena; the weights stay. The next thing is `g2rpo_attach`, if anything."""
        _attached(self).detach()

    def g2rpo_adapted(self: Any, num_maps: int) -> str | None:
        """Why vLLM does not compute with all the adapted maps that it was given; None = it does."""
        return lora.left_out(self.get_model(), num_maps)

    def g2rpo_checksums(self: Any) -> dict[str, str]:
        """Parameter name -> checksum of what the model now holds ("packed": not readable, see `in_place`)."""
        return _attached(self).checksums()


def _attached(worker: Any) -> Receiver:
    receiver: Receiver | None = vars(worker).get("_g2rpo")
    if receiver is None:
        raise RuntimeError("weight sync: wanted g2rpo_attach first, got none")
    receiver.check_alive()
    return receiver


class Receiver:
    """One worker's arena, plan and fate."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.model: nn.Module = worker.get_model()
        self.device: torch.device = worker.device
        self.reader: ArenaReader | None = None
        self.plan: CopyPlan | None = None
        self.rung: str | None = None
        self.poison: str | None = None

    def attach(self, address: dict[str, Any], rung: Rung) -> dict[str, Any]:
        if rung not in RUNGS:
            raise ValueError(f"rung: wanted one of {', '.join(RUNGS)}, got {rung!r}")
        refused: dict[str, str] = {}
        try:
            self.reader = ArenaReader.open(address, device=self.device)
        except (OSError, RuntimeError) as error:
            refused[str(address.get("kind", "arena"))] = f"{type(error).__name__}: {error}"
        else:
            with lora.without_wrappers(self.model):
                self.rung = self._choose(rung, refused)
        return {
            "rung": self.rung,
            "refused": refused,
            "device_uuid": device_uuid(self.device),
            "bytes": self.reader.manifest.slot_bytes if self.reader else 0,
        }

    def update(self, slot: int, version: int, verify: bool) -> dict[str, Any]:
        started = time.perf_counter()
        reader = self.reader
        if reader is None or self.rung is None:
            raise RuntimeError("weight sync: wanted an arena and a rung, got a refusal at g2rpo_attach")
        try:
            reader.wait(slot, version, checksum=verify)
            with lora.without_wrappers(self.model):
                if self.plan is not None:
                    self.plan.replay(slot)
                else:
                    layerwise.layerwise_reload(
                        self.model, self.worker.vllm_config, reader.named(slot), device=self.device
                    )
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
        except BaseException as error:
            self.poison = f"update to version {version} failed: {type(error).__name__}: {error}"
            raise
        return {"version": version, "seconds": time.perf_counter() - started, "rung": self.rung}

    def checksums(self) -> dict[str, str]:
        packed = {id(layer) for layer in in_place.packed_linears(self.model)}
        return {
            f"{prefix}.{name}": "packed"
            if id(layer) in packed and not value.numel()
            else f"{checksum(value):016x}"
            for prefix, layer in self.model.named_modules()
            for name, value in layer.named_parameters(recurse=False)
        }

    def check_alive(self) -> None:
        if self.poison is not None:
            raise RuntimeError(f"weight sync: this engine must be started anew, {self.poison}")

    def detach(self) -> None:
        self.plan = None  # which keeps the arena mapped
        self.close()
        self.reader = None

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()

    def _choose(self, rung: Rung, refused: dict[str, str]) -> str:
        """The rung that updates will take; the others' reasons go to `refused`."""
        if rung != "layerwise":
            why = self._refusal(unpack=rung == "plan")
            if why is None:
                return "plan"
            if rung == "plan":
                raise ValueError(f"rung 'plan' is refused: {why}")
            refused["plan"] = why
        why = layerwise.refusal(self.model, self.device)
        if why is not None:
            raise ValueError(f"no rung of weight sync is right for this model: {why}")
        in_place.remove_unpacked(self.model)
        return "layerwise"

    def _refusal(self, *, unpack: bool) -> str | None:
        """Records the plan, or says why there is none."""
        if unpack:
            in_place.unpack_linears(self.model, self.worker.model_config)
        return in_place.refusal(self.model, self.worker.model_config.quantization) or self._record()

    def _record(self) -> str | None:
        """Records the plan; why it was refused."""
        assert self.reader is not None
        try:
            with torch.no_grad():
                self.plan = CopyPlan.record(self._load, self.reader, self.model.parameters())
        except PlanRefused as error:
            return str(error)
        return None

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> object:
        return self.model.load_weights(weights)  # pyright: ignore[reportCallIssue]


def device_uuid(device: torch.device) -> str:
    """The device's name in every process: indices differ with CUDA_VISIBLE_DEVICES."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
