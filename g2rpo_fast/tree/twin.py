"""The definition of `plan_trees`, position by position; the oracle of csrc/.

A trie by token ids, laid out depth-first as (token, parent) pairs. Everything else follows from the parents:
position = parent's position + 1, END = 1 + last descendant, a row's path = the chain of parents of its end.

Dimension key: as in `g2rpo_fast.tree`. Lists are per position of one tree unless a name says otherwise.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from g2rpo_fast.types import Sequences, TreePlan

Trie = list[dict[int, int]]
"""Per node: token -> child, in order of first appearance. Node 0 is the empty path."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The paths of some rows, depth-first. `path[row]` are the positions of the row's encoded tokens."""

    token: list[int]
    parent: list[int]
    """-1 at a root."""
    path: dict[int, list[int]]


def plan_trees(sequences: Sequences, token_budget: int | None, min_saved: int, whole: bool) -> list[TreePlan]:
    """As `g2rpo_fast.tree.plan_trees`, which has checked the input."""
    budget = math.inf if token_budget is None else token_budget
    parts: list[Tree] = []
    for rows in _encoded_rows(sequences, whole):
        tree = _build(rows, min_saved)
        parts += [tree] if len(tree.token) <= budget else _split(tree, budget)
    return [_plan(sequences, trees) for trees in _pack(parts, budget)]


def _encoded_rows(sequences: Sequences, whole: bool) -> Iterable[dict[int, list[int]]]:
    """Per group, the tokens that each row encodes; rows that encode none are left out."""
    groups: dict[int, dict[int, list[int]]] = {}
    for row, group in enumerate(sequences.group_R.tolist()):
        begin, end = sequences.ptr_R1[row : row + 2].tolist()
        if not whole:
            trained = np.flatnonzero(sequences.trained_N[begin:end])
            end = begin + int(trained[-1]) if len(trained) else begin
        rows = groups.setdefault(group, {})
        if end > begin:
            rows[row] = sequences.ids_N[begin:end].tolist()
    return groups.values()


def _build(rows: dict[int, list[int]], min_saved: int) -> Tree:
    children: Trie = [{}]
    end: dict[int, int] = {}
    for row, tokens in rows.items():
        node = 0
        for token in tokens:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        end[row] = node
    token, parent, first_copy = _lay_out(children, min_saved)
    path = {row: _chain(parent, first_copy[node]) for row, node in end.items()}
    return Tree(token=token, parent=parent, path=path)


def _lay_out(children: Trie, min_saved: int) -> tuple[list[int], list[int], dict[int, int]]:
    """Tokens and parents in depth-first order, and where each trie node first stands."""
    token: list[int] = []
    parent: list[int] = []
    first_copy: dict[int, int] = {}
    todo = [([step], -1) for step in reversed(children[0].items())]
    while todo:
        run, above = todo.pop()
        while len(children[run[-1][1]]) == 1:
            run.extend(children[run[-1][1]].items())
        branches = children[run[-1][1]]
        if branches and (len(branches) - 1) * len(run) < min_saved:
            todo.extend(([*run, step], above) for step in reversed(branches.items()))
            continue
        for run_token, node in run:
            first_copy.setdefault(node, len(token))
            parent.append(above)
            above = len(token)
            token.append(run_token)
        todo.extend(([step], above) for step in reversed(branches.items()))
    return token, parent, first_copy


def _chain(parent: list[int], last: int) -> list[int]:
    """Positions from the root to `last`."""
    path: list[int] = []
    while last >= 0:
        path.append(last)
        last = parent[last]
    return path[::-1]


def _split(tree: Tree, budget: float) -> list[Tree]:
    """Greedy parts within the budget, rows in depth-first order of their ends; one path may exceed it."""
    parts: list[list[int]] = []
    held: set[int] = set()
    for row in sorted(tree.path, key=lambda row: (tree.path[row][-1], row)):
        path = tree.path[row]
        if not parts or len(held.union(path)) > max(budget, len(path)):
            parts.append([])
            held = set()
        parts[-1].append(row)
        held.update(path)
    return [_restrict(tree, sorted(rows)) for rows in parts]


def _restrict(tree: Tree, rows: list[int]) -> Tree:
    """The part of a tree that these rows need."""
    held = sorted(set().union(*(tree.path[row] for row in rows)))
    index = {position: i for i, position in enumerate(held)}
    return Tree(
        token=[tree.token[position] for position in held],
        parent=[index.get(tree.parent[position], -1) for position in held],
        path={row: [index[position] for position in tree.path[row]] for row in rows},
    )


def _pack(trees: list[Tree], budget: float) -> list[list[Tree]]:
    """First fit, largest first; equal sizes in their order."""
    bins: list[list[Tree]] = []
    sizes: list[int] = []
    for tree in sorted(trees, key=lambda tree: -len(tree.token)):
        size = len(tree.token)
        if size == 0:
            continue
        fits = [i for i, used in enumerate(sizes) if used + size <= budget]
        chosen = fits[0] if fits else len(bins)
        if not fits:
            bins.append([])
            sizes.append(0)
        bins[chosen].append(tree)
        sizes[chosen] += size
    return bins


def _plan(sequences: Sequences, trees: list[Tree]) -> TreePlan:
    """The trees one after the other."""
    token: list[int] = []
    parent: list[int] = []
    path: dict[int, list[int]] = {}
    for tree in trees:
        offset = len(token)
        token += tree.token
        parent += [above + offset if above >= 0 else -1 for above in tree.parent]
        path |= {row: [position + offset for position in positions] for row, positions in tree.path.items()}
    edges, end = _edges(sequences, path), _ends(parent)
    node_start, node_parent = _nodes(parent, end)
    return TreePlan(
        token_S=np.array(token, dtype=np.int32),
        position_S=np.array(_positions(parent), dtype=np.int32),
        end_S=np.array(end, dtype=np.int32),
        source_T=np.array([source for source, _ in edges], dtype=np.int32),
        target_T=np.array([target for _, target in edges], dtype=np.int32),
        member_ptr_T1=np.cumsum([0, *map(len, edges.values())], dtype=np.int64),
        member_M=np.array([member for members in edges.values() for member in members], dtype=np.int64),
        row_B=np.array(list(path), dtype=np.int32),
        last_B=np.array([positions[-1] for positions in path.values()], dtype=np.int32),
        unshared_tokens=sum(map(len, path.values())),
        node_start_Q=np.array(node_start, dtype=np.int64),
        node_parent_Q=np.array(node_parent, dtype=np.int64),
    )


def _nodes(parent: list[int], end: list[int]) -> tuple[list[int], list[int]]:
    """First position and parent of each run of positions with equal END."""
    start = [i for i in range(len(end)) if i == 0 or end[i] != end[i - 1]]
    node = [bisect(start, i) - 1 for i in range(len(end))]
    return start, [node[parent[first]] if parent[first] >= 0 else -1 for first in start]


def _edges(sequences: Sequences, path: dict[int, list[int]]) -> dict[tuple[int, int], list[int]]:
    """(source, target) -> members, by source and then first appearance."""
    edges: dict[tuple[int, int], list[int]] = {}
    for row, positions in path.items():
        begin, end = sequences.ptr_R1[row : row + 2].tolist()
        for index in (begin + np.flatnonzero(sequences.trained_N[begin:end])).tolist():
            source = positions[index - begin - 1]
            edges.setdefault((source, int(sequences.ids_N[index])), []).append(index)
    return dict(sorted(edges.items(), key=lambda edge: edge[0][0]))


def _positions(parent: list[int]) -> list[int]:
    position: list[int] = []
    for above in parent:
        position.append(position[above] + 1 if above >= 0 else 0)
    return position


def _ends(parent: list[int]) -> list[int]:
    end = list(range(1, len(parent) + 1))
    for i in reversed(range(len(parent))):
        if parent[i] >= 0:
            end[parent[i]] = max(end[parent[i]], end[i])
    return end
