"""Other processes for tests of the weight arena: what they run, and how they are asked.

From a fork server, not from the test's own process: they share nothing with it but what they open.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2rpo_fast.rollout.sync import Arena, ArenaReader, Kind, Manifest

PATIENCE_S = 300
SHAPES = {"embed": (37, 8), "norm": (8,), "gate": (5, 3, 8), "bias": ()}


def weights(seed: int, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float32).to(device).requires_grad_()
        for name, shape in SHAPES.items()
    }


def assert_equal_to_weights(got: dict[str, Any], seed: int) -> None:
    """The values of `weights(seed)`, after a sending in bfloat16."""
    for name, tensor in weights(seed).items():
        assert np.array_equal(got[name], tensor.detach().bfloat16().float().numpy()), name


def arena_of(kind: Kind = "memfd", device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Arena:
    manifest = Manifest.of(weights(0).items(), dtype)
    return Arena.create(manifest, kind=kind, device=torch.device(device))


@contextmanager
def peer(serve: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that runs `serve(connection, *arguments)`; killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["g2rpo_fast.rollout.sync"])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def ask(connection: Connection, *question: Any) -> Any:
    """The answer; an exception of the peer as `Type: message`."""
    connection.send(question)
    return answer(connection)


def answer(connection: Connection) -> Any:
    assert connection.poll(PATIENCE_S), "no answer from the other process"
    return connection.recv()


def serve_reader(connection: Connection, address: dict[str, Any], device: str = "cpu") -> None:
    """Answers ("wait" | "close", ...) by calling the reader, ("values", slot) with copies on the CPU."""
    try:
        reader = ArenaReader.open(address, device=torch.device(device))
    except RuntimeError as error:
        connection.send(f"RuntimeError: {error}")
        return
    connection.send("open")
    while True:
        verb, *arguments = connection.recv()
        try:
            if verb == "values":
                copies = {name: view.float().cpu().numpy() for name, view in reader.named(*arguments)}
                connection.send(copies)
            elif verb == "wait":
                slot, version, with_checksum = arguments
                connection.send(reader.wait(slot, version, checksum=with_checksum))
            elif verb == "alive":
                connection.send(reader.owner_alive)
        except RuntimeError as error:
            connection.send(f"RuntimeError: {error}")


def serve_owner(connection: Connection, kind: Kind = "memfd", device: str = "cpu") -> None:
    """Owns an arena, sends its address, then packs weights(seed) as version `seed` for every seed it gets."""
    arena = arena_of(kind, device)
    connection.send(arena.address())
    while True:
        (seed,) = connection.recv()
        report = arena.pack(weights(seed, device).items(), seed, checksum=True)
        connection.send(report.slot)
