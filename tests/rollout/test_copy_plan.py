"""Copy plans from a loader like vLLM's: merged and padded parameters, shards, both slots, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from g2rpo_fast.rollout.sync import Arena, ArenaReader, CopyPlan, Manifest, PlanRefused
from g2rpo_fast.rollout.sync.coverage import bytes_inside, bytes_of, joined, runs_of

CPU = torch.device("cpu")
WIDTH, HEADS, KV, INNER, VOCAB = 8, 8, 4, 12, 70
PADDED = 128
Named = Iterable[tuple[str, Tensor]]


def checkpoint(seed: int, dtype: torch.dtype = torch.float32, *, tied: bool = True) -> dict[str, Tensor]:
    """A block as a trainer names it; a tied head is not among the parameters."""
    shapes = {
        "embed": (VOCAB, WIDTH), "q_proj": (HEADS, WIDTH), "k_proj": (KV, WIDTH), "v_proj": (KV, WIDTH),
        "o_proj": (WIDTH, HEADS), "gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH),
        "down_proj": (WIDTH, INNER), "norm": (WIDTH,),
    } | ({} if tied else {"lm_head": (VOCAB, WIDTH)})  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


class Fused(nn.Module):
    """One rank's share of the block as an inference engine holds it: q, k, v and gate, up merged by rows,
    the next matrix cut by columns, the vocabulary padded and cut."""

    def __init__(self, rank: int = 0, ranks: int = 1, *, tied: bool = True) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.embed = self.empty(PADDED // ranks, WIDTH)
        self.qkv = self.empty((HEADS + 2 * KV) // ranks, WIDTH)
        self.o = self.empty(WIDTH, HEADS // ranks)
        self.gate_up = self.empty(2 * INNER // ranks, WIDTH)
        self.down = self.empty(WIDTH, INNER // ranks)
        self.norm = self.empty(WIDTH)
        self.lm_head = self.embed if tied else self.empty(PADDED // ranks, WIDTH)

    def empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)

    def shard(self, tensor: Tensor, dim: int) -> Tensor:
        size = tensor.shape[dim] // self.ranks
        return tensor.narrow(dim, self.rank * size, size)

    def load_vocabulary(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        rows = len(parameter)
        loaded = loaded[self.rank * rows : (self.rank + 1) * rows]
        parameter[: len(loaded)].data.copy_(loaded)
        parameter[len(loaded) :].data.fill_(0)

    def load(self, tensors: Named) -> None:
        merged = {
            "q_proj": (self.qkv, 0, HEADS), "k_proj": (self.qkv, HEADS, KV),
            "v_proj": (self.qkv, HEADS + KV, KV),
            "gate_proj": (self.gate_up, 0, INNER), "up_proj": (self.gate_up, INNER, INNER),
        }  # fmt: skip
        for name, loaded in tensors:
            if name in merged:
                parameter, start, rows = merged[name]
                into = parameter.data.narrow(0, start // self.ranks, rows // self.ranks)
                into.copy_(self.shard(loaded, 0))
            elif name in ("embed", "lm_head"):
                self.load_vocabulary(getattr(self, name), loaded)
            elif name in ("o_proj", "down_proj"):
                getattr(self, name.removesuffix("_proj")).data.copy_(self.shard(loaded, 1))
            else:
                self.norm.data.copy_(loaded)

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: parameter.clone() for name, parameter in self.named_parameters()}


def opened(*versions: dict[str, Tensor]) -> tuple[Arena, ArenaReader]:
    arena = Arena.create(Manifest.of(versions[0].items(), None), kind="memfd", device=CPU)
    for version, tensors in enumerate(versions):
        arena.pack(tensors.items(), version)
    return arena, ArenaReader.open(arena.address(), device=CPU)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_replay_equals_the_loader_in_both_slots(rank: int, ranks: int, tied: bool):
    versions = [checkpoint(seed, tied=tied) for seed in range(2)]
    arena, reader = opened(*versions)
    model = Fused(rank, ranks, tied=tied)
    plan = CopyPlan.record(model.load, reader, model.parameters())
    padding = (PADDED // ranks - min(PADDED // ranks, VOCAB - rank * PADDED // ranks)) * WIDTH * 4
    assert len(plan) == len(versions[0]) == (9 if tied else 10)
    assert plan.nbytes == sum(p.nbytes for p in model.parameters()) - padding * (1 if tied else 2)
    for version, slot in ((0, 0), (1, 1), (2, 0), (3, 1)):
        tensors = checkpoint(version, tied=tied)
        if version > 1:
            assert arena.pack(tensors.items(), version).slot == slot
        reader.wait(slot, version)
        plan.replay(slot)
        fresh = Fused(rank, ranks, tied=tied)
        fresh.load(tensors.items())
        assert fresh.state.keys() == model.state.keys()
        for name, parameter in fresh.state.items():
            assert torch.equal(model.state[name], parameter), name
    assert float(model.norm[0]) == pytest.approx(0.7329604625701904)


def test_the_other_slot_is_a_slot_further_in_storage_also_for_bfloat16_and_views():
    """An offset counted from a view, not from the storage, reads the wrong slot and nothing says so."""
    versions = [checkpoint(seed, torch.bfloat16) for seed in range(2)]
    _, reader = opened(*versions)
    target = torch.zeros(3, 2, dtype=torch.bfloat16)

    def load(tensors: Named) -> None:
        target.copy_(dict(tensors)["down_proj"][2:5, 7:11:2])

    plan = CopyPlan.record(load, reader, [target])
    for slot, tensors in enumerate(versions):
        plan.replay(slot)
        assert torch.equal(target, tensors["down_proj"][2:5, 7:11:2])


def test_a_loader_that_fills_first_and_copies_by_foreach_is_recorded():
    versions = [checkpoint(seed) for seed in range(2)]
    _, reader = opened(*versions)
    parameters = [torch.full((9, 8), torch.nan), torch.full((8,), torch.nan)]

    def load(tensors: Named) -> None:
        named = dict(tensors)
        parameters[0].zero_()
        torch._foreach_copy_([parameters[0][:8], parameters[1]], [named["q_proj"], named["norm"]])  # pyright: ignore[reportPrivateImportUsage]

    plan = CopyPlan.record(load, reader, parameters)
    plan.replay(1)
    assert torch.equal(parameters[0][:8], versions[1]["q_proj"])
    assert torch.equal(parameters[1], versions[1]["norm"])
    assert not parameters[0][8:].any()


def test_an_expanded_source_and_a_strided_target_are_replayed():
    versions = [checkpoint(seed) for seed in range(2)]
    _, reader = opened(*versions)
    target = torch.full((8, 16), torch.nan)

    def load(tensors: Named) -> None:
        named = dict(tensors)
        target[:, 0::2].copy_(named["q_proj"].t())
        target[:, 1::2].copy_(named["norm"])

    CopyPlan.record(load, reader, [target]).replay(1)
    assert torch.equal(target[:, 0::2], versions[1]["q_proj"].t())
    assert torch.equal(target[:, 1::2], versions[1]["norm"].expand(8, 8))


PARAMETER = Callable[[nn.Parameter, Tensor], object]


def scaled(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data.copy_(loaded * 2)


def scaled_afterwards(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data.copy_(loaded)
    parameter.data.mul_(2)


def filled_afterwards(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data.copy_(loaded)
    parameter.data[3:].fill_(1)


def aliased(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data = loaded


def twice(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data.copy_(loaded)
    parameter.data[:4].copy_(loaded[4:])


def partly(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data[:7].copy_(loaded[:7])


def through_another(parameter: nn.Parameter, loaded: Tensor) -> None:
    staging = torch.empty_like(parameter)
    staging.copy_(loaded)
    parameter.data.copy_(staging)


def measured(parameter: nn.Parameter, loaded: Tensor) -> None:
    parameter.data.copy_(loaded)
    vars(parameter)["scale"] = loaded.abs().max()


def written_to_the_arena(parameter: nn.Parameter, loaded: Tensor) -> None:
    loaded.add_(1)
    parameter.data.copy_(loaded)


def nothing(parameter: nn.Parameter, loaded: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (scaled, r"more than copy: aten\.mul\.Tensor of the arena"),
        (scaled_afterwards, r"more than copy: aten\.mul_\.Tensor to a parameter"),
        (filled_afterwards, "more than copy: a fill over what was copied before"),
        (aliased, "copies nothing"),
        (twice, "copies to the same place twice"),
        (partly, r"cover 28 of 32 bytes of the parameters: 1 have gaps, the first number 0, \(8,\)"),
        (through_another, r"more than copy: aten\.copy_\.default to a parameter"),
        (measured, r"more than copy: aten\.abs\.default of the arena"),
        (written_to_the_arena, r"more than copy: aten\.add_\.Tensor of the arena"),
        (nothing, "copies nothing"),
    ],
)  # fmt: skip
def test_a_loader_that_does_more_or_less_than_copy_is_refused(loader: PARAMETER, message: str):
    tensors = {"norm": checkpoint(0)["norm"]}
    _, reader = opened(tensors)
    parameter = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)
    with pytest.raises(PlanRefused, match=message):
        CopyPlan.record(lambda named: [loader(parameter, t) for _, t in named], reader, [parameter])


def test_a_dtype_that_changes_is_refused():
    _, reader = opened({"norm": checkpoint(0, torch.bfloat16)["norm"]})
    parameter = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)
    with pytest.raises(PlanRefused, match=r"changes a dtype: torch.bfloat16 \(8,\) .* to torch.float32"):
        CopyPlan.record(lambda named: [parameter.copy_(t) for _, t in named], reader, [parameter])


def test_a_parameter_that_no_tensor_reaches_is_refused():
    model = Fused(tied=False)
    _, reader = opened(checkpoint(0, tied=True))
    with pytest.raises(PlanRefused, match=r"1 have gaps, the first number 6, \(128, 8\)"):
        CopyPlan.record(model.load, reader, model.parameters())


def test_a_parameter_that_moved_is_noticed():
    model = Fused()
    _, reader = opened(checkpoint(0), checkpoint(1))
    plan = CopyPlan.record(model.load, reader, model.parameters())
    model.norm.data = model.norm.data.clone()
    with pytest.raises(RuntimeError, match=r"parameter 5 \(8,\): wanted it where it was recorded"):
        plan.replay(1)


def test_a_plan_keeps_the_memory_when_its_reader_is_closed():
    versions = [checkpoint(0), checkpoint(1)]
    arena, reader = opened(*versions)
    model = Fused()
    plan = CopyPlan.record(model.load, reader, model.parameters())
    reader.close()
    arena.close()
    plan.replay(1)
    assert torch.equal(model.norm, versions[1]["norm"])


Block = tuple[int, int | None, int]
"""(elements, place of the tensor that they are copied from or None for a constant, first element there)."""
SIZES = (5, 9, 300)


@st.composite
def blocks(draw: st.DrawFn) -> list[Block]:
    """A parameter cut into blocks, at least one of them copied."""
    some = st.tuples(st.integers(1, 5), st.sampled_from([None, 0, 1, 2]), st.integers(0, 200))
    drawn = [*draw(st.lists(some, max_size=8)), (5, 1, 2)]
    order = draw(st.permutations(drawn))
    return [(n, place, 0 if place is None else first % (SIZES[place] - n + 1)) for n, place, first in order]


def load_blocks(cut: list[Block], parameter: Tensor, tensors: list[Tensor]) -> None:
    start = 0
    for elements, place, first in cut:
        into = parameter[start : start + elements]
        start += elements
        if place is None:
            into.fill_(-1)
        else:
            into.copy_(tensors[place][first : first + elements])


@given(cut=blocks(), gap=st.integers(1, 9))
def test_any_cut_is_replayed_and_any_gap_is_refused(cut: list[Block], gap: int):
    versions = [[100.0 * seed + torch.arange(n) + 1000 * n for n in SIZES] for seed in range(2)]
    arena, reader = opened(*({str(n): t for n, t in zip(SIZES, tensors)} for tensors in versions))
    whole = torch.full((sum(elements for elements, *_ in cut),), torch.nan)

    def load(named: Named) -> None:
        load_blocks(cut, whole, [tensor for _, tensor in named])

    plan = CopyPlan.record(load, reader, [whole])
    for slot in (1, 0):
        plan.replay(slot)
        expected = torch.empty_like(whole)
        load_blocks(cut, expected, versions[slot])
        assert torch.equal(whole, expected)

    longer = torch.full((len(whole) + gap,), torch.nan)
    with pytest.raises(PlanRefused, match=f"cover {4 * len(whole)} of {4 * len(longer)} bytes"):
        CopyPlan.record(lambda named: load_blocks(cut, longer, [t for _, t in named]), reader, [longer])
    reader.close()
    arena.close()


@st.composite
def pieces(draw: st.DrawFn) -> Iterator[Tensor]:
    """Views of a 24-element tensor: cut, stepped, transposed."""
    base = torch.arange(24, dtype=torch.int16).reshape(draw(st.sampled_from([(24,), (4, 6), (2, 3, 4)])))
    for dim in range(base.dim()):
        start = draw(st.integers(0, base.shape[dim]))
        step = draw(st.integers(1, 3))
        base = base[(slice(None),) * dim + (slice(start, None, step),)]
    return base.permute(*draw(st.permutations(range(base.dim()))))  # pyright: ignore[reportReturnType]


@given(piece=pieces(), other=st.sets(st.integers(0, 23)))
def test_runs_are_the_bytes_of_the_elements(piece: Tensor, other: set[int]):
    begin = piece.untyped_storage().data_ptr()
    inside = {int(element) for element in piece.flatten()}
    runs = runs_of(piece)
    got = {at for start, end in (runs - begin) for at in range(start, end)}
    assert got == {2 * element + byte for element in inside for byte in (0, 1)}
    assert bytes_of(joined([runs])) == bytes_of(runs) == piece.nbytes
    first = begin + 2 * np.array(sorted(other), dtype=np.int64)
    taken = np.stack([first, first + 2], axis=1)
    assert bytes_inside(runs, joined([taken])) == 2 * len(inside & other)
