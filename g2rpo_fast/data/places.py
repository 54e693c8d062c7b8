"""What `data.path` may hold: places by their names, and rows that Python has already."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def is_rows(given: Any) -> bool:
    """Rows that Python has already: a list of dicts, or a datasets.Dataset."""
    if isinstance(given, list | tuple):
        return bool(given) and all(isinstance(row, Mapping) for row in given)
    return _kind(given) == "Dataset"


def has_rows(given: Any) -> bool:
    """Rows, or several places of which some are rows."""
    several = isinstance(given, list | tuple) and all(isinstance(one, str) or is_rows(one) for one in given)
    return is_rows(given) or (several and any(map(is_rows, given)))


def places_of(given: Any) -> tuple[Any, ...]:
    """The places that `data.path` holds: none, one or several."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) or is_rows(given) else tuple(given)


def named_place(given: Any) -> Any:
    """As a record of the run has it: rows by how many there are."""
    if is_rows(given):
        return f"{len(given)} rows from Python"
    return tuple(map(named_place, given)) if has_rows(given) else given


def refuse_others(given: Any, key: str) -> None:
    """Raises ValueError for what looks like rows but is none that a run can be of."""
    kind = _kind(given)
    if isinstance(given, list | tuple):
        if len({isinstance(row, Mapping) for row in given}) > 1:
            odd = next(row for row in given if not isinstance(row, Mapping))
            raise ValueError(f"{key}: wanted paths alone, or dicts alone, got {odd!r} among dicts")
        for place in given if not is_rows(given) else ():
            refuse_others(place, key)
    if kind in ("IterableDataset", "IterableDatasetDict"):
        raise ValueError(
            f"{key}: wanted a datasets.Dataset, got {kind}: a stream cannot be visited in an order that a "
            "run goes on with (load it with streaming=False)"
        )
    if kind == "DatasetDict":
        example = next(iter(given), "train")
        raise ValueError(f"{key}: wanted one split, such as dataset[{example!r}], got {kind}")
    if kind == "Dataset" and not len(given):
        raise ValueError(f"{key}: wanted rows, got a Dataset without any")


def _kind(given: Any) -> str | None:
    """Which class of the package datasets it is of; nothing is, where that was never imported."""
    package = sys.modules.get("datasets")
    kinds = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
    return next((k for k in kinds if package and isinstance(given, getattr(package, k))), None)
