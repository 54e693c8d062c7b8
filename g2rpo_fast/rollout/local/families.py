"""Which requests are decoded together: prefix families, prefill batches and waves.

A family is a set of distinct prefixes that share most of their tokens: a prompt and the same prompt with
guidance of one or several lengths behind it. Its members attend to one copy of its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """What one prefill encodes, and the waves that are decoded from it."""

    families: list[list[Prefix]]
    waves: list[list[int]]
    """Requests by index, those of one family next to each other."""


def plan_batches(prefixes: Sequence[Prefix], max_rows: int) -> list[Batch]:
    """Packs requests, given by their prefixes, into waves of at most `max_rows`.

    Families stay whole: only one that is larger than `max_rows` is spread over several waves, and then its
    prefill is kept for all of them. So every prefix is encoded once.
    """
    rows: dict[Prefix, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        rows.setdefault(prefix, []).append(row)
    batches: list[Batch] = []
    families: list[list[Prefix]] = []
    wave: list[int] = []
    for family in _families(list(rows)):
        family_rows = [row for prefix in family for row in rows[prefix]]
        if wave and len(wave) + len(family_rows) > max_rows:
            batches.append(Batch(families, _cut(wave, max_rows)))
            families, wave = [], []
        families.append(family)
        wave = wave + family_rows
    if wave:
        batches.append(Batch(families, _cut(wave, max_rows)))
    return batches


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _families(prefixes: list[Prefix]) -> list[list[Prefix]]:
    """Families in order of first appearance."""
    order = {prefix: place for place, prefix in enumerate(prefixes)}
    families: list[list[Prefix]] = []
    for prefix in sorted(prefixes):
        if families and _related(families[-1], prefix):
            families[-1].append(prefix)
        else:
            families.append([prefix])
    return sorted(families, key=lambda family: min(order[prefix] for prefix in family))


def _related(family: list[Prefix], prefix: Prefix) -> bool:
    """Whether `prefix`, next in sorted order, extends the family's root or shares half with its last."""
    root, last = family[0], family[-1]
    if prefix[: len(root)] == root:
        return True
    length = min(len(last), len(prefix))
    differs = np.asarray(last[:length]) != np.asarray(prefix[:length])
    common = int(differs.argmax()) if differs.any() else length
    return 2 * common >= max(len(last), len(prefix))
