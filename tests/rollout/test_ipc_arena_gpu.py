"""The weight arena on a GPU: two processes, cudaMalloc and IPC, events, no growth, an exporter that dies."""

from __future__ import annotations

import gc
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from arena_peers import (
    answer,
    arena_of,
    ask,
    assert_equal_to_weights,
    peer,
    serve_owner,
    serve_reader,
    weights,
)
from g2rpo_fast.rollout.sync import Arena, ArenaReader, CopyPlan, Kind, Manifest, checksum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS: list[Kind] = ["cuda", "host"]
LARGE = 1 << 26
"""Elements: enough that a copy is still running when its enqueueing has returned."""


def gpu_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_reads_every_version_in_both_slots(kind: Kind):
    arena = arena_of(kind, "cuda")
    with peer(serve_reader, arena.address(), "cuda") as (_, reader):
        assert answer(reader) == "open"
        for version in range(1, 6):
            report = arena.pack(weights(version, "cuda").items(), version, checksum=version % 2 == 1)
            assert report.slot == (version - 1) % 2
            assert ask(reader, "wait", report.slot, version, version % 2 == 1) is None
            assert_equal_to_weights(ask(reader, "values", report.slot), version)
        assert ask(reader, "values", 0)["norm"][0] == 0.03662109375
        assert "wanted version 4, complete, got version 5" in ask(reader, "wait", 0, 4, False)
    arena.close()


def test_views_are_the_memory_itself():
    arena = arena_of("cuda", "cuda")
    first, second = arena.views(0), arena.views(1)
    assert second[0].data_ptr() - first[0].data_ptr() == arena.manifest.slot_bytes
    assert first[0].data_ptr() % 256 == 0
    assert first[0].device == torch.device("cuda", torch.cuda.current_device())
    arena.pack(weights(3, "cuda").items(), 3)
    assert torch.equal(first[1], weights(3, "cuda")["norm"].bfloat16())
    assert not second[1].any()


def test_checksum_on_a_gpu_equals_the_cpu():
    tensor = torch.randint(-(2**62), 2**62, (1 << 20,), generator=torch.Generator().manual_seed(0))
    for part in (tensor, tensor[:1], tensor.view(torch.uint8)[:-3], tensor.view(torch.int32)[1:]):
        assert checksum(part.cuda()) == checksum(part, "cpp") == checksum(part, "torch")


def serve_plan(connection: Connection, address: dict[str, Any]) -> None:
    """Answers (slot, version) with the least and the greatest value of the copied parameter."""
    reader = ArenaReader.open(address, device=torch.device("cuda"))
    target = torch.zeros(LARGE, dtype=torch.bfloat16, device="cuda")
    plan: CopyPlan | None = None
    connection.send("open")
    while True:
        slot, version = connection.recv()
        reader.wait(slot, version)
        if plan is None:
            plan = CopyPlan.record(lambda named: [target.copy_(t) for _, t in named], reader, [target])
        plan.replay(slot)
        connection.send((float(target.min()), float(target.max()), len(os.listdir("/proc/self/fd"))))


def test_the_event_orders_the_readers_copy_behind_the_owners():
    """Both streams busy, nobody synchronises between pack and message: the reader sees whole versions."""
    weight = torch.zeros(LARGE, device="cuda")
    arena = Arena.create(
        Manifest.of([("w", weight)], torch.bfloat16), kind="cuda", device=torch.device("cuda")
    )
    with peer(serve_plan, arena.address()) as (_, reader):
        assert answer(reader) == "open"
        for version in range(20):
            torch.cuda._sleep(100_000_000)  # some 50 ms
            weight.fill_(version)
            report = arena.pack([("w", weight)], version)
            assert report.seconds < 0.03 or version < 2
            assert ask(reader, report.slot, version)[:2] == (version, version)


def expand(connection: Connection) -> None:
    """An owner with expandable segments: says whether they are on, its address, then packs as it is told."""
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    weight = torch.zeros(LARGE, device="cuda")
    manifest = Manifest.of([("w", weight)], torch.bfloat16)
    arena = Arena.create(manifest, kind="cuda", device=torch.device("cuda"))
    connection.send((all(s["is_expandable"] for s in torch.cuda.memory_snapshot()), arena.address()))
    while True:
        (version,) = connection.recv()
        weight.fill_(version)
        report = arena.pack([("w", weight)], version, checksum=version % 10 == 0)
        connection.send((report.slot, len(os.listdir("/proc/self/fd"))))


def test_a_hundred_syncs_with_expandable_segments_do_not_grow():
    with peer(expand) as (_, owner):
        expandable, address = answer(owner)
        assert expandable
        with peer(serve_plan, address) as (_, reader):
            assert answer(reader) == "open"
            marks = []
            for version in range(100):
                slot, owner_files = ask(owner, version)
                least, most, reader_files = ask(reader, slot, version)
                assert (least, most) == (version, version)
                if version in (19, 99):
                    marks.append((owner_files, reader_files, gpu_bytes()))
    assert marks[0] == marks[1]


def test_an_owner_that_dies_is_noticed_and_a_new_one_can_be_opened():
    with peer(serve_owner, "cuda", "cuda") as (process, owner):
        address = answer(owner)
        reader = ArenaReader.open(address, device=torch.device("cuda"))
        assert ask(owner, 7) == 0
        reader.wait(0, 7, checksum=True)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not reader.owner_alive
    with pytest.raises(RuntimeError, match=r"wanted version 8, complete, got version 7.*its owner has ended"):
        reader.wait(0, 8)
    reader.close()
    with pytest.raises(RuntimeError, match="has ended"):
        ArenaReader.open(address, device=torch.device("cuda"))
    with peer(serve_owner, "cuda", "cuda") as (_, owner):
        reader = ArenaReader.open(answer(owner), device=torch.device("cuda"))
        assert ask(owner, 9) == 0
        reader.wait(0, 9, checksum=True)
        reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_arena_gives_its_memory_back(kind: Kind):
    def rounds() -> int:
        weight = torch.ones(LARGE, device="cuda")
        manifest = Manifest.of([("w", weight)], torch.bfloat16)
        arena = Arena.create(manifest, kind=kind, device=torch.device("cuda"))
        arena.pack([("w", weight)], 1)
        view = arena.views(0)[0]
        torch.cuda.synchronize()
        arena.close()
        arena.close()
        assert float(view[-1]) == 1.0
        del view, arena
        gc.collect()
        torch.cuda.synchronize()
        return gpu_bytes()

    rounds()
    time.sleep(0.1)
    assert rounds() == rounds()


def test_the_exporters_own_process_and_another_gpu_are_refused():
    arena = arena_of("cuda", "cuda")
    address = arena.address()
    with pytest.raises(RuntimeError, match="cannot be opened in the process that exported it"):
        ArenaReader.open(address, device=torch.device("cuda"))
    elsewhere = address | {"memory": address["memory"] | {"device_uuid": "another"}}
    with peer(serve_reader, elsewhere, "cuda") as (_, reader):
        assert "wanted the GPU of its memory, another, got cuda:0, which is " in answer(reader)
