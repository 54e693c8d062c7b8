"""The prefix-tree planner: pinned examples, invariants by brute force, and C++ against its Python twin.

Dimension key: as in `g2rpo_fast.tree`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest
import torch
from g2rpo_kernels.tree_attention.cascade.nodes import nodes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from g2rpo_fast.tree import plan_trees
from g2rpo_fast.types import Longs, Sequences, TreePlan

Row = tuple[list[int], list[int]]
"""Token ids, and 0 / 1 per token: trained."""
Impl = Literal["cpp", "python"]

BUDGETS = (None, 1, 3, 8, 20)
MIN_SAVED = (1, 3, 8, 10**9)


def make_sequences(rows: list[Row], groups: list[int] | None = None) -> Sequences:
    return Sequences(
        ids_N=np.array([token for ids, _ in rows for token in ids], dtype=np.int32),
        ptr_R1=np.cumsum([0, *(len(ids) for ids, _ in rows)], dtype=np.int64),
        trained_N=np.array([flag for _, trained in rows for flag in trained], dtype=np.bool_),
        group_R=np.array(groups or [0] * len(rows), dtype=np.int32),
    )


def after(prompt: list[int], *completions: list[int]) -> list[Row]:
    """Rows of one prompt, completions trained."""
    return [(prompt + c, [0] * len(prompt) + [1] * len(c)) for c in completions]


def encoded_len(sequences: Sequences, row: int, whole: bool) -> int:
    begin, end = sequences.ptr_R1[row : row + 2]
    trained = np.flatnonzero(sequences.trained_N[begin:end])
    return int(end - begin) if whole else int(trained[-1]) if len(trained) else 0


def row_paths(sequences: Sequences, plan: TreePlan, whole: bool) -> dict[int, Longs]:
    """Each row's path as the mask shows it, checked against the row's own tokens."""
    index_S = np.arange(len(plan.token_S))
    visible_SS = (index_S[None] <= index_S[:, None]) & (index_S[:, None] < plan.end_S[None])
    paths: dict[int, Longs] = {}
    for row, last in zip(plan.row_B.tolist(), plan.last_B.tolist()):
        path = np.flatnonzero(visible_SS[last])
        begin, length = sequences.ptr_R1[row], encoded_len(sequences, row, whole)
        assert plan.token_S[path].tolist() == sequences.ids_N[begin : begin + length].tolist()
        assert plan.position_S[path].tolist() == list(range(length))
        for i, position in enumerate(path):
            assert np.flatnonzero(visible_SS[position]).tolist() == path[: i + 1].tolist()
        paths[row] = path
    assert set().union(*paths.values()) == set(index_S), "a position that no row needs"
    assert plan.unshared_tokens == sum(map(len, paths.values()))
    check_nodes(plan)
    return paths


def check_nodes(plan: TreePlan) -> None:
    """The nodes tile the stream as the mask shows them."""
    shown = nodes_of(torch.from_numpy(plan.end_S))
    assert plan.node_start_Q.tolist() == shown.start_N.tolist()
    assert plan.node_parent_Q.tolist() == shown.parent_N.tolist()


def check_edges(sequences: Sequences, plan: TreePlan, paths: dict[int, Longs]) -> None:
    assert plan.member_ptr_T1[0] == 0
    assert plan.member_ptr_T1[-1] == len(plan.member_M)
    keys = []
    for edge, (source, target) in enumerate(zip(plan.source_T.tolist(), plan.target_T.tolist())):
        members = plan.member_M[plan.member_ptr_T1[edge] : plan.member_ptr_T1[edge + 1]]
        assert len(members) > 0
        assert (np.diff(members) > 0).all()
        for index in members:
            row = int(np.searchsorted(sequences.ptr_R1, index, side="right")) - 1
            assert sequences.trained_N[index]
            assert sequences.ids_N[index] == target
            assert paths[row][index - sequences.ptr_R1[row] - 1] == source
        keys.append((source, int(members[0])))
    assert keys == sorted(keys)
    assert len(set(zip(plan.source_T.tolist(), plan.target_T.tolist()))) == len(keys)


def check_plans(sequences: Sequences, plans: list[TreePlan], budget: int | None, whole: bool) -> None:
    """What must hold whatever the implementation."""
    for plan in plans:
        size = len(plan.token_S)
        single_path = plan.position_S.tolist() == list(range(size)) and (plan.end_S == size).all()
        assert 0 < size <= (math.inf if budget is None else budget) or single_path
        check_edges(sequences, plan, row_paths(sequences, plan, whole))
    members = sorted(index for plan in plans for index in plan.member_M.tolist())
    assert members == np.flatnonzero(sequences.trained_N).tolist()
    rows = sorted(row for plan in plans for row in plan.row_B.tolist())
    assert rows == [r for r in range(sequences.num_rows) if encoded_len(sequences, r, whole)]


def check_equal(got: list[TreePlan], wanted: list[TreePlan]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        for field in dataclasses.fields(TreePlan):
            x, y = getattr(a, field.name), getattr(b, field.name)
            np.testing.assert_array_equal(x, y, err_msg=field.name)
            assert np.asarray(x).dtype == np.asarray(y).dtype, field.name


def num_positions(plans: list[TreePlan]) -> int:
    return sum(len(plan.token_S) for plan in plans)


def num_prefixes(sequences: Sequences, whole: bool) -> int:
    """Distinct (group, leading tokens): the size of the full tries."""
    prefixes = set()
    for row, group in enumerate(sequences.group_R.tolist()):
        ids = sequences.ids_N[sequences.ptr_R1[row] :].tolist()
        prefixes |= {(group, *ids[:n]) for n in range(1, encoded_len(sequences, row, whole) + 1)}
    return len(prefixes)


EXAMPLE = make_sequences(after([1, 5, 6], [7, 8, 11, 2], [7, 12, 2]))


@pytest.mark.parametrize("impl", ["cpp", "python"])
def test_prefix_tree_example_is_pinned(impl: Impl) -> None:
    (plan,) = plan_trees(EXAMPLE, impl=impl)
    assert plan.token_S.tolist() == [1, 5, 6, 7, 8, 11, 12]
    assert plan.position_S.tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert plan.end_S.tolist() == [7, 7, 7, 7, 6, 6, 7]
    assert plan.source_T.tolist() == [2, 3, 3, 4, 5, 6]
    assert plan.target_T.tolist() == [7, 8, 12, 11, 2, 2]
    assert plan.member_ptr_T1.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert plan.member_M.tolist() == [3, 10, 4, 11, 5, 6, 12]
    assert plan.row_B.tolist() == [0, 1]
    assert plan.last_B.tolist() == [5, 6]
    assert plan.unshared_tokens == 11


@pytest.mark.parametrize("impl", ["cpp", "python"])
def test_prefix_tree_example_whole_and_unshared(impl: Impl) -> None:
    (whole,) = plan_trees(EXAMPLE, whole=True, impl=impl)
    assert whole.token_S.tolist() == [1, 5, 6, 7, 8, 11, 2, 12, 2]
    assert whole.last_B.tolist() == [6, 8]
    # The trunk of four positions saves four: it stays at 4 and is copied at 5.
    (shared,) = plan_trees(EXAMPLE, min_saved=4, impl=impl)
    (copied,) = plan_trees(EXAMPLE, min_saved=5, impl=impl)
    assert shared.token_S.tolist() == [1, 5, 6, 7, 8, 11, 12]
    assert copied.token_S.tolist() == [1, 5, 6, 7, 8, 11, 1, 5, 6, 7, 12]
    assert copied.end_S.tolist() == [6] * 6 + [11] * 5
    assert copied.member_ptr_T1.tolist() == list(range(8))


@pytest.mark.parametrize("impl", ["cpp", "python"])
def test_prefix_tree_over_budget_is_split(impl: Impl) -> None:
    sequences = make_sequences(after([1, 2], [3, 4], [3, 5], [6, 7], [8, 9]))
    plans = plan_trees(sequences, token_budget=4, impl=impl)
    assert [plan.token_S.tolist() for plan in plans] == [[1, 2, 3, 6], [1, 2, 8]]
    assert [plan.row_B.tolist() for plan in plans] == [[0, 1, 2], [3]]
    assert [plan.end_S.tolist() for plan in plans] == [[4, 4, 3, 4], [3, 3, 3]]


@pytest.mark.parametrize("impl", ["cpp", "python"])
def test_prefix_tree_packs_largest_first(impl: Impl) -> None:
    rows = [([group] * (length + 1), [0] * length + [1]) for group, length in enumerate([2, 5, 3, 4])]
    plans = plan_trees(make_sequences(rows, [0, 1, 2, 3]), token_budget=7, impl=impl)
    assert [plan.row_B.tolist() for plan in plans] == [[1, 0], [3, 2]]
    assert plans[0].end_S.tolist() == [5] * 5 + [7] * 2
    assert plans[0].position_S.tolist() == [0, 1, 2, 3, 4, 0, 1]


CASES: dict[str, tuple[Sequences, int]] = {
    "shared first tokens": (make_sequences(after([1, 2], [3, 4, 5], [3, 4, 6], [3, 7, 7], [8, 8])), 6),
    "a prefix of another": (make_sequences(after([1, 2], [3, 4], [3, 4, 5, 6], [3, 4, 5])), 5),
    "the longer one first": (make_sequences(after([1, 2], [3, 4, 5, 6], [3, 4], [3, 9])), 5),
    "identical completions": (make_sequences(after([1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5])), 4),
    "empty completions": (make_sequences(after([1, 2], [], [3, 4], [])), 3),
    "nothing trained": (make_sequences(after([1, 2], [], [])), 0),
    "no rows": (make_sequences([]), 0),
    "empty rows": (make_sequences([([], []), *after([1], [2]), ([], [])]), 1),
    "leaving a trunk": (
        make_sequences(after([1], [2, 3, 4, 5, 6, 7], [2, 9, 9], [2, 3, 4, 8, 8], [2, 3, 8, 8], [9, 9])),
        10,
    ),
    "depth": (
        make_sequences(after([1], [1, 1, 1, 1, 1], [1, 1, 1, 2, 1, 1], [1, 1, 2, 1], [1, 2, 1], [2, 1])),
        10,
    ),
    "several roots": (make_sequences([*after([1, 2], [3, 4]), *after([5, 6], [7, 8], [7, 7])]), 6),
    "groups apart": (make_sequences(after([1, 2], *[[3, 4, 5]] * 7), [9, 4, 9, -2, 4, 9, 9]), 12),
    "gaps in the mask": (
        make_sequences([([1, 2, 3, 4], [0, 1, 0, 1]), ([1, 2, 3], [0, 0, 1]), ([1, 2, 4], [0, 1, 1])]),
        3,
    ),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_prefix_tree_case(case: str, whole: bool) -> None:
    sequences, size = CASES[case]
    full = plan_trees(sequences, whole=whole)
    assert num_positions(full) == num_prefixes(sequences, whole)
    assert whole or num_positions(full) == size
    for budget in BUDGETS:
        for min_saved in MIN_SAVED:
            args = {"token_budget": budget, "min_saved": min_saved, "whole": whole}
            plans = plan_trees(sequences, **args)
            check_plans(sequences, plans, budget, whole)
            check_equal(plans, plan_trees(sequences, **args, impl="python"))


@st.composite
def random_sequences(draw: st.DrawFn) -> Sequences:
    """Rows that leave a common stem anywhere, over a vocabulary of one to three tokens."""
    token = st.integers(0, draw(st.integers(0, 2)))
    stem = draw(st.lists(token, max_size=12))
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 8))):
        ids = stem[: draw(st.integers(0, len(stem)))] + draw(st.lists(token, max_size=8))
        prompt = draw(st.integers(1, 8))
        flags = draw(st.sampled_from([[1], [0], [0, 1, 1]]))
        trained = [flags[i % len(flags)] if i >= prompt else 0 for i in range(len(ids))]
        rows.append((ids, trained))
    groups = [draw(st.integers(0, 2)) for _ in rows]
    return make_sequences(rows, groups)


plan_options = st.fixed_dictionaries(
    {
        "token_budget": st.sampled_from(BUDGETS),
        "min_saved": st.sampled_from([2, *MIN_SAVED]),
        "whole": st.booleans(),
    }
)


@settings(max_examples=400, deadline=None)
@given(sequences=random_sequences(), options=plan_options)
def test_prefix_tree_equals_twin(sequences: Sequences, options: dict) -> None:
    check_equal(plan_trees(sequences, **options), plan_trees(sequences, **options, impl="python"))


@settings(max_examples=200, deadline=None)
@given(sequences=random_sequences(), options=plan_options)
def test_prefix_tree_invariants(sequences: Sequences, options: dict) -> None:
    plans = plan_trees(sequences, **options)
    check_plans(sequences, plans, options["token_budget"], options["whole"])


@settings(max_examples=200, deadline=None)
@given(sequences=random_sequences(), whole=st.booleans())
def test_prefix_tree_size_is_the_number_of_prefixes(sequences: Sequences, whole: bool) -> None:
    sizes = [num_positions(plan_trees(sequences, min_saved=m, whole=whole)) for m in MIN_SAVED]
    assert sizes[0] == num_prefixes(sequences, whole)
    assert sizes == sorted(sizes)


def test_prefix_tree_long_rows_equal_twin() -> None:
    """Runs longer than the blocks in which C++ compares, parting before, at and after the end of one."""
    rng = np.random.default_rng(0)
    stem = rng.integers(0, 9, 400).tolist()
    cuts = (1, 63, 64, 65, 127, 128, 129, 300, 400)
    rows = [row for cut in cuts for row in after(stem[:cut], [9, cut, 7], [8])]
    sequences = make_sequences(rows, [i % 2 for i in range(len(rows))])
    plans = plan_trees(sequences, token_budget=512)
    assert num_positions(plans) == num_prefixes(sequences, False) == 818
    check_equal(plans, plan_trees(sequences, token_budget=512, impl="python"))


def test_prefix_tree_accepts_strided_arrays_and_outlives_its_plans() -> None:
    strided = dataclasses.replace(EXAMPLE, ids_N=np.repeat(EXAMPLE.ids_N, 2)[::2])
    token_S = plan_trees(strided)[0].token_S
    plan_trees(EXAMPLE, min_saved=5)
    assert token_S.tolist() == [1, 5, 6, 7, 8, 11, 12]


def changed(**fields: np.ndarray) -> Sequences:
    return dataclasses.replace(EXAMPLE, **fields)


BAD = {
    "row 1, token 3: wanted an id >= 0, got -7": changed(
        ids_N=np.array([1, 5, 6, 7, 8, 11, 2, 1, 5, 6, -7, 12, 2], dtype=np.int32)
    ),
    "row 1: wanted an untrained first token": changed(trained_N=np.array([0] * 7 + [1] * 6, dtype=np.bool_)),
    "ids_N: wanted a one-dimensional int32 array, got int64": changed(ids_N=EXAMPLE.ids_N.astype(np.int64)),
    "trained_N: wanted 13 entries, got 12": changed(trained_N=EXAMPLE.trained_N[1:]),
    "group_R: wanted 2 entries, got 1": changed(group_R=EXAMPLE.group_R[1:]),
    "ptr_R1: wanted row 1 to end at 14 or later, got 13": changed(ptr_R1=np.array([0, 14, 13])),
    "ptr_R1: wanted row 0 to begin at 0, got 1": changed(ptr_R1=np.array([1, 7, 13])),
    "wanted the last row to end at 13 .tokens., got 12": changed(ptr_R1=np.array([0, 7, 12])),
    "ptr_R1: wanted one entry more than there are rows, got none": changed(
        ptr_R1=np.array([], dtype=np.int64), group_R=np.array([], dtype=np.int32)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_prefix_tree_refuses_malformed_sequences(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_trees(BAD[message])


@pytest.mark.parametrize("option", ["token_budget", "min_saved"])
def test_prefix_tree_refuses_options_below_one(option: str) -> None:
    with pytest.raises(ValueError, match=r"wanted .*at least 1, got 0"):
        plan_trees(EXAMPLE, **{option: 0})  # pyright: ignore[reportArgumentType]
