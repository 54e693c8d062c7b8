"""A model's own loader, recorded once and replayed as one foreach copy.

A loader of an inference engine merges q, k and v, cuts tensor-parallel shards, pads vocabularies; in the end
it only copies pieces of its arguments to pieces of its parameters. Run once on a slot of the arena under a
dispatch mode, each `copy_` from the slot's memory gives a pair (destination, source); the same piece of the
other slot is a slot's length further. The plan is refused unless those copies, with constants that the loader
filled in, write every byte of every parameter, each byte from one source, and nothing else read the arena or
wrote a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g2rpo_fast.rollout.sync.coverage import bytes_inside, bytes_of, joined, runs_of
from g2rpo_fast.rollout.sync.host_memory import SLOTS
from g2rpo_fast.rollout.sync.pack import copy_all
from g2rpo_fast.rollout.sync.reader import ArenaReader

aten = torch.ops.aten
FILLS = {aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}


class PlanRefused(Exception):
    """The loader does something that copies alone do not repeat; the message says what."""


class Recorder(TorchDispatchMode):
    """Sees every operation of a loader: copies from the arena, fills, and whatever copies do not repeat."""

    def __init__(self, slot: tuple[int, int], parameters: list[Tensor]) -> None:
        """`slot`: the addresses [begin, end) that the loader reads."""
        super().__init__()
        self.begin, self.end = slot
        self.storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.filled: list[Tensor] = []
        self.others: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten.copy_.default and self.reads(args[1]):
            self.pairs.append((args[0].detach(), args[1].detach()))
        elif func is aten._foreach_copy_.default and all(map(self.reads, args[1])):
            self.pairs += [(to.detach(), of.detach()) for to, of in zip(args[0], args[1], strict=True)]
        elif func in FILLS:
            self.fill(args[0])
        elif not func.is_view and any(map(self.reads, tree_leaves((args, kwargs)))):
            self.others.append(f"{func} of the arena")
        elif any(map(self.in_a_parameter, written(func, args, kwargs))):
            self.others.append(f"{func} to a parameter")
        return func(*args, **kwargs)

    def reads(self, value: object) -> bool:
        """Does a tensor have elements in the slot?"""
        return elements_in_memory(value) and self.begin <= value.data_ptr() < self.end

    def in_a_parameter(self, value: object) -> bool:
        return elements_in_memory(value) and value.untyped_storage().data_ptr() in self.storages

    def fill(self, target: Tensor) -> None:
        """A constant stays where it is; the plan has nothing to do, unless it undoes what was copied."""
        if not elements_in_memory(target):
            return
        self.filled.append(target.detach())
        copied = joined([runs_of(to) for to, _ in self.pairs if may_overlap(to, target)])
        if bytes_inside(runs_of(target), copied):
            self.others.append("a fill over what was copied before")


def elements_in_memory(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.device.type != "meta" and value.numel() > 0


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    return tree_leaves([given.get(argument.name) for argument in func._schema.arguments if argument.is_write])


def may_overlap(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class CopyPlan:
    """Pairs of destination and source, for both slots. Keeps the arena mapped for as long as it lives."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], slot_bytes: int, parameters: list[Tensor]) -> None:
        self._targets = [to for to, _ in pairs]
        self._sources = [[moved(of, slot * slot_bytes) for _, of in pairs] for slot in range(SLOTS)]
        self._parameters = parameters
        self._addresses = [parameter.data_ptr() for parameter in parameters]
        self.nbytes = sum(to.nbytes for to in self._targets)
        """Copied by one replay."""

    @staticmethod
    def record(
        load: Callable[[Iterable[tuple[str, Tensor]]], object],
        reader: ArenaReader,
        parameters: Iterable[Tensor],
    ) -> CopyPlan:
        """Runs the loader on slot 0, which the parameters hold afterwards, and keeps its copies.

        `parameters`: all that must follow the arena; one that comes twice (tied) counts once. PlanRefused
        where the loader computes, changes a dtype, leaves bytes of a parameter out, or writes some twice: the
        model is then loaded, or half-loaded, but there is no plan.
        """
        every = list(parameters)
        begin = reader.bytes_B.data_ptr()
        slot = (begin, begin + reader.manifest.slot_bytes)
        with torch.no_grad(), Recorder(slot, every) as recorder:
            load(reader.named(0))
        kept = list({(parameter.data_ptr(), parameter.shape): parameter for parameter in every}.values())
        pairs = checked_pairs(recorder)
        check_coverage(pairs, recorder.filled, kept)
        return CopyPlan(pairs, reader.manifest.slot_bytes, kept)

    def __len__(self) -> int:
        return len(self._targets)

    @torch.no_grad()
    def replay(self, slot: int) -> None:
        """Copies a slot to the parameters: enqueued on the current stream on a GPU, done on a CPU.

        RuntimeError where a parameter's memory is no longer the one that was recorded.
        """
        for place, (parameter, address) in enumerate(zip(self._parameters, self._addresses, strict=True)):
            if parameter.data_ptr() != address:
                raise RuntimeError(
                    f"copy plan: parameter {place} {tuple(parameter.shape)}: wanted it where it was "
                    "recorded, got it elsewhere: record the plan again"
                )
        copy_all(self._targets, self._sources[slot])


def moved(piece: Tensor, nbytes: int) -> Tensor:
    """The same piece further on in its storage, which as_strided's offset counts from (not from the view)."""
    offset = piece.storage_offset() + nbytes // piece.element_size()
    return piece.as_strided(piece.shape, piece.stride(), offset)


def checked_pairs(recorder: Recorder) -> list[tuple[Tensor, Tensor]]:
    """The copies, each once; PlanRefused where copies alone would not repeat the loader."""
    if recorder.others:
        raise PlanRefused(f"the loader does more than copy: {', '.join(dict.fromkeys(recorder.others))}")
    pairs: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
    for to, of in recorder.pairs:
        if to.dtype != of.dtype:
            raise PlanRefused(
                f"the loader changes a dtype: {of.dtype} {tuple(of.shape)} of the arena to {to.dtype}"
            )
        of = of.expand(to.shape)
        key = (to.data_ptr(), tuple(to.shape), to.stride(), of.data_ptr(), of.stride())
        pairs[key] = (to, of)
    if not pairs:
        raise PlanRefused("the loader copies nothing from the arena")
    return list(pairs.values())


def check_coverage(
    pairs: list[tuple[Tensor, Tensor]], filled: list[Tensor], parameters: list[Tensor]
) -> None:
    """Every byte of the parameters is written, and none by two copies."""
    try:
        copied = [runs_of(to) for to, _ in pairs]
        union = joined([*copied, *(runs_of(target) for target in filled)])
        wanted = [runs_of(parameter) for parameter in parameters]
    except ValueError as error:
        raise PlanRefused(f"the loader scatters: {error}") from error
    if bytes_of(joined(copied)) != sum(map(bytes_of, copied)):
        raise PlanRefused("the loader copies to the same place twice")
    got = [bytes_inside(runs, union) for runs in wanted]
    left_out = [place for place, parameter in enumerate(parameters) if got[place] < parameter.nbytes]
    if left_out:
        first = parameters[left_out[0]]
        raise PlanRefused(
            f"the loader's copies cover {sum(got)} of {sum(map(bytes_of, wanted))} bytes of the parameters: "
            f"{len(left_out)} have gaps, the first number {left_out[0]}, {tuple(first.shape)} {first.dtype}"
        )
