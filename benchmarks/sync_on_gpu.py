"""Weight sync between two processes, timed: a trainer packs an arena, a reader replays its copy plan.

    python benchmarks/sync_on_gpu.py [--device cuda|cpu] [--layout 8b|0.6b|0.2b|tiny] [--syncs N] [--out FILE]

Needs torch, no engine. On a GPU: memory by cudaMalloc and CUDA IPC, the trainer with expandable_segments on,
float32 masters packed to bfloat16 (bfloat16 masters where float32 ones do not fit), the tensors of an 8B and
a 0.6B model; then 0.2B of them through pinned host memory. Device times are of CUDA events, each process's
own; `device_ms` is their sum, `to_copy` its ratio to one plain copy of the same bytes (`copy_ms`), which is
wanted below `target_to_copy`. On a CPU: anonymous memory. A kind of memory that is refused is recorded with
the reason. Exits 1 where one was, where something grew, or a value did not arrive.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from g2rpo_fast.rollout.sync import Arena, ArenaReader, CopyPlan, Kind, Manifest
from provenance import commit, machine, versions

TARGET_TO_COPY = 1.5
COPIES = 5
SETTLED = 10
"""Syncs after which nothing may grow."""
ALLOCATOR = dict.fromkeys(("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), "expandable_segments:True")
PATIENCE_S = 60
ALLOWED = {"files": 0, "rss": 32 << 20, "gpu": 0}
"""Bytes or files: what an interpreter's heap may do; nothing on the GPU."""
STAMP = "model.norm.weight"
OPEN = "open"
EXACT = 256
"""bfloat16 has every integer below."""
MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
PAD_VOCAB = 64


@dataclass(frozen=True)
class Layout:
    """A dense model: widths of the stream, the MLP, all query heads, all key heads, one head."""

    layers: int
    width: int
    inner: int
    query: int
    key: int
    head: int
    vocab: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        d = self.width
        shapes = {
            "model.embed_tokens.weight": (self.vocab, d),
            STAMP: (d,),
            "lm_head.weight": (self.vocab, d),
        }
        for layer in range(self.layers):
            block = {
                "self_attn.q_proj": (self.query, d), "self_attn.k_proj": (self.key, d),
                "self_attn.v_proj": (self.key, d), "self_attn.o_proj": (d, self.query),
                "self_attn.q_norm": (self.head,), "self_attn.k_norm": (self.head,),
                "mlp.gate_proj": (self.inner, d), "mlp.up_proj": (self.inner, d),
                "mlp.down_proj": (d, self.inner), "input_layernorm": (d,), "post_attention_layernorm": (d,),
            }  # fmt: skip
            shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        return shapes


LAYOUTS = {
    "8b": Layout(36, 4096, 12_288, 4096, 1024, 128, 151_936),
    "0.6b": Layout(28, 1024, 3072, 2048, 1024, 128, 151_936),
    "0.2b": Layout(12, 1024, 3072, 1024, 512, 128, 32_000),
    "tiny": Layout(2, 64, 96, 64, 32, 16, 1000),
}
CASES: dict[str, tuple[tuple[Kind, str], ...]] = {
    "cuda": (("cuda", "8b"), ("cuda", "0.6b"), ("host", "0.2b")),
    "cpu": (("memfd", "0.2b"),),
}
"""Device -> kinds of memory and layouts."""


class Stopwatch:
    """Milliseconds of what is enqueued between `start` and `stop`, or of the call itself on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        )
        self.seconds = [0.0, 0.0]

    def mark(self, end: int) -> None:
        if self.events:
            self.events[end].record()
        self.seconds[end] = time.perf_counter()

    def ms(self) -> float:
        if self.events:
            self.events[1].synchronize()
            return self.events[0].elapsed_time(self.events[1])
        return (self.seconds[1] - self.seconds[0]) * 1e3


def timed(device: torch.device, call: Callable[[], object]) -> float:
    watch = Stopwatch(device)
    watch.mark(0)
    call()
    watch.mark(1)
    return watch.ms()


class Fused:
    """The reader's parameters as an inference engine has them: merged by rows, the vocabulary padded."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        shapes = layout.shapes()
        self.device = device
        self.parameters: list[Tensor] = []
        self.padding: list[Tensor] = []
        self.views: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            kinds = next((kinds for kinds in MERGED if any(kind in name for kind in kinds)), None)
            names = [name.replace(kind_of(name, kinds), kind) for kind in kinds] if kinds else [name]
            if name == names[0]:
                pad = PAD_VOCAB if shape[0] == layout.vocab else 1
                self.merge({part: shapes[part] for part in names}, pad)

    def merge(self, shapes: dict[str, tuple[int, ...]], pad: int) -> None:
        rows = sum(shape[0] for shape in shapes.values())
        rest = next(iter(shapes.values()))[1:]
        whole = torch.empty(-(-rows // pad) * pad, *rest, dtype=torch.bfloat16, device=self.device)
        self.parameters.append(whole)
        self.padding.append(whole[rows:])
        start = 0
        for name, shape in shapes.items():
            self.views[name] = whole[start : start + shape[0]]
            start += shape[0]

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        for rows in self.padding:
            rows.fill_(0)
        for name, tensor in tensors:
            self.views[name].copy_(tensor)


def kind_of(name: str, kinds: tuple[str, ...]) -> str:
    return next(kind for kind in kinds if kind in name)


def own_state(device: torch.device) -> dict[str, int]:
    """What may not grow: open files, resident bytes, and on a GPU bytes in use by anybody."""
    resident = Path("/proc/self/statm").read_text().split()[1]
    state = {"files": len(os.listdir("/proc/self/fd")), "rss": int(resident) * os.sysconf("SC_PAGE_SIZE")}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        state["gpu"] = total - free
    return state


def read(connection: Connection, address: dict[str, Any], layout: Layout, device: torch.device) -> None:
    """The engine's side: for each (slot, version) waits, replays, and answers when the copies are done."""
    torch.set_num_threads(1)
    try:
        reader = ArenaReader.open(address, device=device)
    except RuntimeError as error:
        connection.send(str(error))
        return
    model = Fused(layout, device)
    connection.send(OPEN)
    plan: CopyPlan | None = None
    while (order := connection.recv()) is not None:
        slot, version, checked = order
        reader.wait(slot, version, checksum=checked)
        plan = plan or CopyPlan.record(model.load, reader, model.parameters)
        answer: dict[str, Any] = {"replay_ms": timed(device, partial(plan.replay, slot))}
        if checked:
            equal = all(
                torch.equal(model.views[name], tensor.to(device)) for name, tensor in reader.named(slot)
            )
            load_ms = timed(device, partial(model.load, reader.named(slot)))
            answer["load_ms"] = load_ms if equal else math.nan
        answer |= {"stamp": float(model.views[STAMP][0]), "state": own_state(device)}
        connection.send(answer)
    connection.send({"copies": len(plan or []), "bytes": plan.nbytes if plan else 0})


def masters_of(layout: Layout, device: torch.device) -> dict[str, Tensor]:
    """The trainer's parameters: float32 if arena (4 bytes a parameter), reader (2) and they (4) fit."""
    shapes = layout.shapes()
    dtype, count = torch.float32, sum(math.prod(shape) for shape in shapes.values())
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        dtype = torch.float32 if free > 10.5 * count else torch.bfloat16
        if free < 8.5 * count:
            raise SystemExit(f"sync_on_gpu.py: wanted {8.5 * count:.2e} bytes of {device}, got {free:.2e}")
    return {name: torch.randn(shape, dtype=dtype, device=device) for name, shape in shapes.items()}


def ask(connection: Connection, question: object) -> Any:
    connection.send(question)
    return receive(connection)


def receive(connection: Connection) -> Any:
    if not connection.poll(PATIENCE_S):
        raise SystemExit(f"sync_on_gpu.py: the reader did not answer within {PATIENCE_S} s")
    return connection.recv()


def train(kind: Kind, layout: str, device: torch.device, syncs: int) -> dict[str, Any]:
    """The trainer's side: `syncs` times another first element of one tensor, pack, send, acknowledgement."""
    masters = masters_of(LAYOUTS[layout], device)
    manifest = Manifest.of(masters.items(), torch.bfloat16)
    context = get_context("forkserver")
    ours, theirs = context.Pipe()
    try:
        arena = Arena.create(manifest, kind=kind, device=device)
        order = (theirs, arena.address(), LAYOUTS[layout], device)
    except RuntimeError as error:
        return {"refused": str(error)}
    reader = context.Process(target=read, args=order, daemon=True)
    reader.start()
    theirs.close()
    if (said := receive(ours)) != OPEN:
        return {"refused": said}
    rounds = [one_sync(arena, masters, ours, v, checked=v in (1, syncs - 1)) for v in range(syncs)]
    plan = ask(ours, None)
    arena.close()
    reader.join(PATIENCE_S)
    copy_ms = copy_of(manifest.nbytes, device)
    figures = summary(rounds, manifest.nbytes)
    dtype = str(next(iter(masters.values())).dtype).removeprefix("torch.")
    return {
        "layout": layout, "masters": dtype, "tensors": len(masters), "copies": plan["copies"],
        "parameters": sum(tensor.numel() for tensor in masters.values()), "bytes": manifest.nbytes,
        "arena_bytes": 2 * manifest.slot_bytes, "syncs": syncs, "copy_ms": copy_ms,
        "to_copy": figures["device_ms"] / copy_ms, **figures,
    }  # fmt: skip


def copy_of(nbytes: int, device: torch.device) -> float:
    """Milliseconds of the best of `COPIES` copies of so many random bytes within the device."""
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return min(timed(device, lambda: target.copy_(source)) for _ in range(COPIES))


def start_server() -> None:
    """The process that readers are forked from: imports while the trainer sets up; has no GPU context."""
    for name in ALLOCATOR:
        os.environ.pop(name, None)  # readers have settings of their own
    get_context("forkserver").set_forkserver_preload(["g2rpo_fast.rollout.sync"])
    forkserver.ensure_running()


def one_sync(
    arena: Arena, masters: dict[str, Tensor], reader: Connection, version: int, checked: bool
) -> dict[str, Any]:
    device = arena.device
    with torch.no_grad():
        masters[STAMP][0] = version % EXACT
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    watch, start = Stopwatch(device), time.perf_counter()
    watch.mark(0)
    report = arena.pack(masters.items(), version, checksum=checked)
    watch.mark(1)
    answer = ask(reader, (report.slot, version, checked))
    wall_ms = (time.perf_counter() - start) * 1e3
    return answer | {
        "checked": checked, "pack_ms": watch.ms(), "wall_ms": wall_ms,
        "arrived": answer["stamp"] == version % EXACT, "own": own_state(device),
    }  # fmt: skip


def expandable_segments(device: torch.device) -> bool:
    """Does PyTorch's allocator of this process really use them?"""
    if device.type == "cpu":
        return False
    kept = torch.empty(1 << 20, device=device)
    return kept.numel() > 0 and all(part["is_expandable"] for part in torch.cuda.memory_snapshot())


def summary(rounds: list[dict[str, Any]], nbytes: int) -> dict[str, Any]:
    """Medians and worst of the rounds without a checksum, and growth after the first `SETTLED`."""
    plain = [each for each in rounds[min(2, len(rounds) - 1) :] if not each["checked"]] or rounds
    figures: dict[str, Any] = {}
    for name in ("pack_ms", "replay_ms", "wall_ms"):
        values = sorted(each[name] for each in plain)
        median = statistics.median(values)
        figures[name] = {
            "median": median, "least": values[0], "most": values[-1], "GB_per_s": nbytes / median / 1e6,
        }  # fmt: skip
    figures["load_ms"] = min(each["load_ms"] for each in rounds if each["checked"])
    figures["device_ms"] = figures["pack_ms"]["median"] + figures["replay_ms"]["median"]
    settled = rounds[min(SETTLED, len(rounds) - 1)]
    figures["growth"] = {
        f"{side}_{key}": rounds[-1][part][key] - settled[part][key]
        for side, part in (("trainer", "own"), ("reader", "state"))
        for key in settled[part]
    }
    figures["arrived"] = all(each["arrived"] for each in rounds) and not math.isnan(figures["load_ms"])
    return figures


def write(path: Path, figures: dict[str, Any]) -> None:
    command = "python benchmarks/sync_on_gpu.py " + " ".join(sys.argv[1:])
    record = {"name": path.stem, "command": command.strip(), "machine": machine(), "versions": versions()}
    text = json.dumps(record | {"commit": commit(), "figures": figures}, indent=1)
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def complaints(figures: dict[str, Any]) -> list[str]:
    """What went wrong with one kind of memory."""
    if "refused" in figures:
        return [f"refused: {figures['refused']}"]
    grown = {key: value for key, value in figures["growth"].items() if value > ALLOWED[key.split("_")[1]]}
    return ([f"grew by {grown}"] if grown else []) + ([] if figures["arrived"] else ["values did not arrive"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--layout", choices=LAYOUTS, help="default: as above")
    parser.add_argument("--syncs", type=int, default=100)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/weight_sync_DEVICE.json")
    given = parser.parse_args()
    kind = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)  # read once, early
    torch.set_num_threads(1)
    device = torch.device("cuda:0" if kind == "cuda" else "cpu")
    figures: dict[str, Any] = {
        "target_to_copy": TARGET_TO_COPY, "expandable_segments": expandable_segments(device), "cases": {},
    }  # fmt: skip
    start_server()
    cases = CASES[kind] if given.layout is None else [(memory, given.layout) for memory, _ in CASES[kind]]
    for memory, layout in cases:
        figures["cases"][f"{memory} {layout}"] = train(memory, layout, device, given.syncs)
        torch.cuda.empty_cache()
    write(given.out or Path(__file__).parent / "results" / f"weight_sync_{kind}.json", figures)
    wrong = [f"{case}: {what}" for case, found in figures["cases"].items() for what in complaints(found)]
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
