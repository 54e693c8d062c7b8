"""The weight arena between real processes, over anonymous memory."""

from __future__ import annotations

import gc
import json
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arena_peers import (
    SHAPES,
    answer,
    arena_of,
    ask,
    assert_equal_to_weights,
    peer,
    serve_owner,
    serve_reader,
    weights,
)
from g2rpo_fast import _C
from g2rpo_fast.rollout.sync import Arena, ArenaReader, Kind, Manifest, checksum, pack
from g2rpo_fast.rollout.sync.arena import slot_bytes

CPU = torch.device("cpu")


def arena_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("g2rpo-arena")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024


def test_manifest_aligns_every_tensor():
    manifest = Manifest.of(weights(0).items(), torch.bfloat16)
    assert [(e.name, e.offset, e.nbytes) for e in manifest.entries] == [
        ("embed", 0, 592), ("norm", 768, 16), ("gate", 1024, 240), ("bias", 1280, 2),
    ]  # fmt: skip
    assert (manifest.slot_bytes, manifest.nbytes) == (1536, 850)
    assert {e.dtype for e in manifest.entries} == {torch.bfloat16}


def test_manifest_keeps_dtypes_and_integers():
    tensors = {"weight": torch.zeros(3, dtype=torch.float16), "count": torch.zeros(2, dtype=torch.int64)}
    assert [e.dtype for e in Manifest.of(tensors.items(), None).entries] == [torch.float16, torch.int64]
    assert [e.dtype for e in Manifest.of(tensors.items(), torch.float32).entries] == [
        torch.float32,
        torch.int64,
    ]


def test_manifest_survives_json_and_needs_no_memory():
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in SHAPES.items()}
    manifest = Manifest.of(tensors.items(), torch.bfloat16)
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint
    assert manifest.fingerprint != Manifest.of(tensors.items(), None).fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["w", "bfloat16", [4], 0, 8], ["v", "bfloat16", [4], 0, 8]], "v: wanted .* at or behind 8, got 0"),
        ([["w", "bfloat16", [4], 8, 8]], "w: wanted a multiple of 256 .*got 8"),
        ([["w", "bfloat16", [4], 0, 4]], "w: wanted 8 bytes, got 4"),
        ([["w", "complex64", [4], 0, 32]], "w: wanted one of float64.*got complex64"),
        ([["w", "int8", [4], 0, 4], ["w", "int8", [4], 256, 4]], "wanted each name once, got w twice"),
        ([["w", "int8", [300], 256, 300]], "slot_bytes: wanted a multiple of 256 of at least 556, got 512"),
        ([], "wanted tensors with elements, got none"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(rows: list[Any], message: str):
    with pytest.raises(ValueError, match=message):
        Manifest.from_json({"entries": rows, "slot_bytes": 512})


@given(data=st.binary(max_size=300), cut=st.integers(0, 9))
def test_checksum_equals_its_twin(data: bytes, cut: int):
    tensor = torch.frombuffer(bytearray(data + bytes(10)), dtype=torch.uint8)[cut : cut + len(data)]
    assert checksum(tensor, "cpp") == checksum(tensor, "torch")


@given(data=st.binary(min_size=1, max_size=100), place=st.integers(0), bit=st.integers(0, 7))
def test_checksum_sees_every_flipped_bit(data: bytes, place: int, bit: int):
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    before = checksum(tensor)
    tensor[place % len(data)] ^= 1 << bit
    assert checksum(tensor) != before


def test_checksum_sees_swapped_words_flipped_signs_and_length():
    words = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert checksum(words) == 0x87C7283F0E22B07B
    others = [words.flip(0), words.roll(1), -words, words[:7], torch.cat([words, torch.zeros(1)])]
    others.append(torch.tensor([-1.0, -2.0, *range(3, 9)], dtype=torch.float64))
    sums = {checksum(other) for other in others}
    assert len(sums) == len(others)
    assert checksum(words) not in sums


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_checksum_is_the_same_on_any_number_of_threads(threads: int):
    array = np.arange(1_000_003, dtype=np.uint8)
    assert _C.checksum(array, threads) == checksum(torch.from_numpy(array), "torch")


def test_another_process_reads_every_version_in_both_slots():
    arena = arena_of()
    with peer(serve_reader, json.loads(json.dumps(arena.address()))) as (_, reader):
        assert answer(reader) == "open"
        for version in range(1, 6):
            report = arena.pack(weights(version).items(), version, checksum=version % 2 == 1)
            assert (report.slot, report.version, report.nbytes) == ((version - 1) % 2, version, 850)
            assert ask(reader, "wait", report.slot, version, version % 2 == 1) is None
            assert_equal_to_weights(ask(reader, "values", report.slot), version)
        assert ask(reader, "values", 0)["norm"][0] == 0.03662109375
        assert ask(reader, "wait", 0, 4, False) == (
            "RuntimeError: arena slot 0: wanted version 4, complete, got version 5, complete"
        )
        assert ask(reader, "wait", 1, 4, True) == (
            "RuntimeError: arena slot 1: wanted a checksum of version 4, got none: it was packed without"
        )
    arena.close()


def test_a_slot_never_filled_or_left_half_way_is_not_read():
    arena = arena_of()
    reader = ArenaReader.open(arena.address(), device=CPU)
    with pytest.raises(RuntimeError, match="slot 1: wanted version 1, complete, got nothing, never filled"):
        reader.wait(1, 1)
    tensors = weights(1)
    del tensors["gate"]
    with pytest.raises(ValueError, match="wanted 4 tensors, got all but gate"):
        arena.pack(tensors.items(), 1)
    with pytest.raises(RuntimeError, match="slot 0: wanted version 1, complete, got version 1, incomplete"):
        reader.wait(0, 1)
    assert arena.pack(weights(1).items(), 1).slot == 0
    reader.wait(0, 1)


def test_a_corrupted_byte_is_named_by_both_checksums():
    arena = arena_of()
    reader = ArenaReader.open(arena.address(), device=CPU)
    arena.pack(weights(3).items(), 3, checksum=True)
    reader.wait(0, 3, checksum=True)
    raw = slot_bytes(reader.manifest, reader.bytes_B, 0)
    wanted = checksum(raw)
    raw[1000] ^= 4
    with pytest.raises(
        RuntimeError, match=f"version 3: wanted checksum {wanted:016x}, got {checksum(raw):016x}"
    ):
        reader.wait(0, 3, checksum=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": torch.zeros(5, 8, 3)}, r"gate: wanted shape \(5, 3, 8\), got \(5, 8, 3\)"),
        ({"extra": torch.zeros(2)}, "wanted the 4 tensors it was made for, got another, extra"),
        ({"norm": torch.zeros(8, device="meta")}, "norm: wanted it on cpu, got it on meta"),
        ({"norm": torch.zeros(8, dtype=torch.int32)}, "norm: wanted torch.bfloat16, got torch.int32"),
    ],
)
def test_a_parameter_that_changed_is_named(change: dict[str, Tensor], message: str):
    arena = arena_of()
    with pytest.raises(ValueError, match=message):
        arena.pack((weights(1) | change).items(), 1)


def test_a_parameter_that_comes_twice_or_was_renamed_is_named():
    arena = arena_of()
    tensors = weights(1)
    with pytest.raises(ValueError, match="wanted each tensor once, got embed twice"):
        arena.pack([*tensors.items(), ("embed", tensors["embed"])], 1)
    tensors["weight"] = tensors.pop("norm")
    with pytest.raises(ValueError, match="got another, weight"):
        arena.pack(tensors.items(), 1)


def test_full_tensors_made_on_the_way_are_let_go(monkeypatch: pytest.MonkeyPatch):
    """As of FSDP: a bucket of them lives at once, whatever the model's size."""
    monkeypatch.setattr(pack, "BUCKET_BYTES", 4000)
    names = [f"layer{i}" for i in range(20)]
    source = torch.randn(20, 250)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def gathered() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for name, row in zip(names, source, strict=True):
            memory = row.numpy().copy()
            alive.append(weakref.ref(memory))
            most = max(most, sum(ref() is not None for ref in alive))
            yield name, torch.from_numpy(memory)
            del memory

    manifest = Manifest.of(zip(names, source, strict=True), torch.bfloat16)
    arena = Arena.create(manifest, kind="memfd", device=CPU)
    arena.pack(gathered(), 1)
    assert torch.equal(torch.stack(arena.views(0)), source.bfloat16())
    assert 4 <= most <= 5


def test_a_killed_owner_leaves_its_readers_the_memory_and_nothing_else():
    with peer(serve_owner) as (_, owner):  # starts the fork server, which has files of its own
        answer(owner)
    gc.collect()
    shared, before = set(os.listdir("/dev/shm")), (open_files(), arena_mappings())
    with peer(serve_owner) as (process, owner):
        address = answer(owner)
        reader = ArenaReader.open(address, device=CPU)
        assert ask(owner, 7) == 0
        assert reader.owner_alive
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not reader.owner_alive
        reader.wait(0, 7, checksum=True)
        assert_equal_to_weights({name: view.float().numpy() for name, view in reader.named(0)}, 7)
        with pytest.raises(RuntimeError, match=r"got version 7, complete; its owner has ended"):
            reader.wait(0, 8)
        with pytest.raises(RuntimeError, match=rf"owner \(process {process.pid}\) has ended"):
            ArenaReader.open(address, device=CPU)
    assert arena_mappings() > 0
    reader.close()
    del reader
    gc.collect()
    assert (open_files(), arena_mappings()) == before
    assert set(os.listdir("/dev/shm")) <= shared


def test_a_killed_reader_does_not_trouble_the_owner():
    arena = arena_of()
    arena.pack(weights(1).items(), 1)
    for version in (2, 3):
        with peer(serve_reader, arena.address()) as (process, reader):
            assert answer(reader) == "open"
            process.kill()
            process.join()
        report = arena.pack(weights(version).items(), version)
        with peer(serve_reader, arena.address()) as (_, reader):
            assert answer(reader) == "open"
            assert_equal_to_weights(ask(reader, "values", report.slot), version)


def test_closing_twice_is_closing_once_and_a_closed_arena_says_so():
    gc.collect()
    files, mappings = open_files(), arena_mappings()
    arena = arena_of()
    reader = ArenaReader.open(arena.address(), device=CPU)
    arena.pack(weights(1).items(), 1, checksum=True)
    address = arena.address()
    arena.close()
    arena.close()
    with pytest.raises(RuntimeError, match="arena: it is closed"):
        arena.address()
    with pytest.raises(RuntimeError, match="arena: it is closed"):
        arena.pack(weights(2).items(), 2)
    with pytest.raises(RuntimeError, match=r"arena: .* has ended or closed it"):
        ArenaReader.open(address, device=CPU)
    reader.wait(0, 1, checksum=True)
    kept = reader.views(0)[1]
    reader.close()
    reader.close()
    with pytest.raises(RuntimeError, match="this reader is closed"):
        reader.wait(0, 1)
    assert torch.equal(kept, weights(1)["norm"].detach().bfloat16())
    del arena, reader, kept
    gc.collect()
    assert (open_files(), arena_mappings()) == (files, mappings)


def test_a_hundred_pushes_do_not_grow():
    tensors = {"weight": torch.randn(1 << 20), "bias": torch.randn(1000)}
    manifest = Manifest.of(tensors.items(), torch.bfloat16)
    arena = Arena.create(manifest, kind="memfd", device=CPU)
    reader = ArenaReader.open(arena.address(), device=CPU)
    target = [torch.empty_like(view) for view in reader.views(0)]
    marks = []
    for version in range(100):
        report = arena.pack(tensors.items(), version, checksum=True)
        reader.wait(report.slot, version, checksum=True)
        pack.copy_all(target, reader.views(report.slot))
        if version in (9, 99):
            marks.append((open_files(), arena_mappings(), resident_bytes()))
    assert marks[0][:2] == marks[1][:2]
    assert marks[1][2] - marks[0][2] < manifest.slot_bytes


def test_an_address_that_is_not_this_arena_is_refused():
    arena, other = arena_of(), arena_of(dtype=torch.float32)
    address, wrong = arena.address(), other.address()
    with pytest.raises(RuntimeError, match=r"is another file than the arena's, which has 3072 bytes"):
        ArenaReader.open(address | {"memory": address["memory"] | {"inode": 1}}, device=CPU)
    with pytest.raises(RuntimeError, match=r"layout: wanted fingerprint .*, got"):
        ArenaReader.open(address | {"manifest": wrong["manifest"]}, device=CPU)
    with pytest.raises(RuntimeError, match="control page: wanted G2Arena1"):
        ArenaReader.open(address | {"control": address["memory"]}, device=CPU)
    with pytest.raises(RuntimeError, match=r"wanted the PID namespace of its owner .* its PID namespace"):
        ArenaReader.open(address | {"pid_namespace": 5}, device=CPU)


def test_slots_and_kinds_that_are_none_are_refused():
    arena = arena_of()
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"slot: wanted 0 or 1, got {wrong}"):
            arena.views(wrong)
    with pytest.raises(ValueError, match=r"kind: wanted one of memfd, .*got 'file'"):
        arena.create(arena.manifest, kind="file", device=CPU)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"kind='memfd': wanted tensors on the CPU, got device meta"):
        arena.create(arena.manifest, kind="memfd", device=torch.device("meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
@pytest.mark.parametrize("kind", ["cuda", "host"])
def test_a_gpu_that_is_not_there_is_an_error_that_says_so(kind: Kind):
    with pytest.raises(
        ValueError, match=rf"kind='{kind}': wanted a usable GPU, got none \(torch .* is built"
    ):
        arena_of(kind, "cuda")
    with pytest.raises(ValueError, match=f"kind='{kind}': wanted a CUDA device, got cpu"):
        arena_of(kind, "cpu")


def test_a_cuda_runtime_that_is_not_there_or_is_none_is_an_error_that_says_what_was_tried():
    with pytest.raises(RuntimeError, match=r"wanted the CUDA runtime .*\n  libcudart\.so\.99: .*\n  /no/lib"):
        _C.CudaRuntime.load(["libcudart.so.99", "/no/libcudart.so"])
    with pytest.raises(RuntimeError, match=r"libc\.so\.6 has no cudaGetDevice"):
        _C.CudaRuntime.load(["libc.so.6"])
