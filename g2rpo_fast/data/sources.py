"""Where rows are: files, folders and hub ids that the package datasets reads, or what Python has already."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2rpo_fast.data.config import DataConfig
from g2rpo_fast.data.formats import READERS, Found, plain_rows, reader_of
from g2rpo_fast.data.json_lines import Unit
from g2rpo_fast.data.opened import PACKED, opened, unpacked_suffix, wanted
from g2rpo_fast.data.places import is_rows

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILES = (".jsonl", ".json", ".txt", *READERS, *PACKED)
"""Names that end so are files, whether they are there or not."""
TRAIN, HELD_OUT = "train", "test"
"""The splits of a folder or a hub id where none is named."""


@dataclass(frozen=True, kw_only=True)
class NamedRows:
    """Rows that are read already, and what they are called in messages."""

    name: str
    rows: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return self.name


Source = str | NamedRows
"""A file, or rows."""


def rows_of(source: Source, *, key: str, as_written: str | None = None) -> tuple[Unit, Iterator[Found]]:
    """What its rows are numbered by, and the rows: each its number, and its columns or why it has none.

    Args:
        as_written: a column; a number in it is given as text, without an exponent.

    Raises:
        ValueError: a file that cannot be read (or is found to be damaged on the way); names `key`.
    """
    if isinstance(source, NamedRows):
        return "row", plain_rows(source.rows, as_written)
    reader, unit = reader_of(source, key=key)
    return unit, reader(source, key, as_written)


def check_source(place: Any, config: DataConfig, *, key: str) -> None:
    """Without reading rows and without the hub: the file is there, and what reads it is installed."""
    if is_rows(place):
        _no_parts(place, config, key)
    elif _is_file(place):
        _no_parts(place, config, key)
        opened(place, key=key).close()
        if unpacked_suffix(place) == ".parquet":
            wanted("pyarrow", place, key=key)
    else:
        wanted("datasets", place, key=key)


def fetched(place: Any, config: DataConfig, *, key: str) -> Source:
    """A place of the configuration as it is read from then on: a folder's or a hub's rows are loaded.

    Args:
        key: data.path: the rows of `data.split`; others: of `data.eval_split`.

    Raises:
        ValueError: one line; it is not there, or is none that `datasets` can load.
    """
    check_source(place, config, key=key)
    if is_rows(place):
        return NamedRows(name=f"{key} ({len(place)} rows from Python)", rows=place)
    if _is_file(place):
        return place
    split = (config.split or TRAIN) if key == "data.path" else (config.eval_split or HELD_OUT)
    parts = ", ".join(part for part in (config.subset, split) if part)
    return NamedRows(name=f"{place} ({parts})", rows=_loaded(place, config.subset, split, key))


def _loaded(place: str, subset: str | None, split: str, key: str) -> Any:
    datasets = importlib.import_module("datasets")
    try:
        if any((Path(place) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _split_of(datasets.load_from_disk(place), split)
        return datasets.load_dataset(place, subset, split=split)
    except Exception as error:  # whatever its loaders raise, and the hub's client
        reason = " ".join(str(error).split()) or type(error).__name__
        name = f"{place!r}, subset {subset!r}" if subset else repr(place)
        raise ValueError(
            f"{key}: wanted a file, or a folder or hub id that datasets can load (its data.subset, and "
            f"data.{'split' if key == 'data.path' else 'eval_split'} {split!r}), got {name}: {reason}"
        ) from error


def _split_of(saved: Any, split: str) -> Any:
    """What `save_to_disk` wrote is one split or several."""
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise ValueError(f"it has the splits {', '.join(saved)}")
    return saved[split]


def is_hub_id(place: str) -> bool:
    """It may be one: neither on this disk nor named as a file."""
    return not Path(place).exists() and not place.endswith(FILES) and bool(HUB_ID.fullmatch(place))


def _is_file(place: str) -> bool:
    return not Path(place).is_dir() and not is_hub_id(place)


def _no_parts(place: Any, config: DataConfig, key: str) -> None:
    parts = {"data.subset": config.subset}
    parts |= {"data.split": config.split} if key == "data.path" else {"data.eval_split": config.eval_split}
    for part, given in parts.items():
        if given is not None:
            what = place if isinstance(place, str) else "rows"
            raise ValueError(f"{part}: wanted none, or a folder or hub id as {key}, got {given!r} of {what}")
