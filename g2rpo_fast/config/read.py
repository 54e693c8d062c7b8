"""A configuration from TOML: the task's file, then the method's.

    load_config("embedded", method="gspo")

A method's file decides all of what a method is: selection, rounds, credit, weights and terms are its own or
the defaults, never the task's, and a method that does not speak of guidance has none. Of other sections it
sets single keys. Where the task's file says something else, the method's value holds, and a note tells it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from g2rpo_fast.config.choice import NONE_WORDS, PIECES, made, nearest, pieces_of, refuse_unknown, settings_of
from g2rpo_fast.config.renamed import renamed
from g2rpo_fast.config.sections import Config, section_types
from g2rpo_fast.methods import Method, load_method, own_method
from g2rpo_fast.usage import preset_names

EMBEDDED = "embedded"


def load_config(source: str | Path, *, method: str | None = None) -> Config:
    """Reads a TOML file, or a preset by name.

    Args:
        method: of the catalogue (`g2rpo-fast methods`), or a TOML file; None: the one that the file names,
            if any.

    Raises:
        ValueError: unknown file, method, section or key (with the nearest name), wrong type, clashing values.
    """
    values, _ = read_values(source, method=method)
    return config_from_dict(values, where=str(source))


def read_values(
    source: str | Path | None, *, method: str | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The plain values of a file, with its method's laid over them, and notes of what that changed.

    Args:
        source: None: the defaults.
    """
    try:
        values = {} if source is None else tomllib.loads(_text_of(source))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source}: not valid TOML: {error}") from error
    name = values.pop("method", None) if method is None else method
    values.pop("method", None)
    values = renamed(values)
    if name is None or name in NONE_WORDS:
        return values, ()
    if not isinstance(name, str):
        raise ValueError(f"{source}: method: wanted a method's name, got {name!r}")
    chosen = method_of(name)
    result = with_method(values, chosen, task=str(source or "the defaults"))
    try:
        sections_of(chosen.settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return result


def method_of(name: str) -> Method:
    """Of the catalogue, or of a file: there metadata may be missing."""
    if not name.endswith(".toml"):
        return load_method(name)
    if not Path(name).is_file():
        raise ValueError(f"--method: wanted a TOML file or a method of the catalogue, got {name!r}")
    return own_method(Path(name).stem, Path(name).read_text(encoding="utf-8-sig"))


def with_method(
    values: Mapping[str, Any], method: Method, *, task: str = "the task"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A task's values with a method's, and notes of what the task said otherwise.

    Raises:
        ValueError: the method does not run.
    """
    if not (method.runnable and method.settings):
        raise ValueError(
            f"--method: wanted a method that runs, got {method.key} (status: {method.status}); "
            "`g2rpo-fast methods` lists those that do"
        )
    speaks = "guidance" in method.settings
    tables = {**method.settings, "guidance": {"enabled": speaks, **method.settings.get("guidance", {})}}
    result = {name: section for name, section in values.items() if name not in PIECES}
    notes = [
        f"{name}: {task} says {values[name]!r}, method {method.key} decides"
        for name in PIECES
        if name in values and values[name] != tables.get(name)
    ]
    for name, table in tables.items():
        if name in PIECES:
            result[name] = table
            continue
        before = result.get(name, {})
        notes += [
            f"{name}.{key}: {task} says {before[key]!r}, method {method.key} says {value!r}, which holds"
            for key, value in table.items()
            if isinstance(before, Mapping) and key in before and before[key] != value
        ]
        result[name] = {**before, **table}
    return {**result, "method": method.key}, tuple(notes)


def stored_values(directory: Path) -> dict[str, Any]:
    """The settings of the run in a directory. Raises ValueError where they are damaged."""
    file = directory / "config.json"
    try:
        values = json.loads(file.read_bytes())
        values["run"]["threads"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run.dir: wanted a run's configuration in {file}, got a damaged one") from error
    types = section_types()
    return {  # keys of another version are left out
        name: {key: v for key, v in given.items() if key in settings_of(types[name])}
        if name in types and isinstance(given, Mapping)
        else given
        for name, given in renamed(values).items()
        if name in (*types, *PIECES, "method")
    }


def _text_of(source: str | Path) -> str:
    """Of a file without its byte order mark, or of a preset."""
    names = preset_names()
    if str(source) in names:
        return (resources.files("g2rpo_fast") / "presets" / f"{source}.toml").read_text()
    try:
        if Path(source).is_file():
            return Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: wanted text in UTF-8, got {error.object[:4]!r} ...") from error
    except OSError as error:
        raise ValueError(f"{source}: wanted a file that can be read, got {error.strerror!r}") from error
    near = difflib.get_close_matches(str(source), names, n=1)
    hint = f"; the nearest preset is {near[0]}" if near else ""
    raise ValueError(
        f"CONFIG: wanted a TOML file or one of the presets {', '.join(names)}, got {str(source)!r}{hint}"
    )


def config_from_dict(values: Mapping[str, Any], *, where: str = "config") -> Config:
    """Builds a Config from nested plain values, as read from TOML or JSON. A key `method` is noted as it is.

    TOML has no null: the word `none` stands for it in every key that may be None.
    """
    try:
        return Config(**sections_of(values))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def sections_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections and pieces that the values say, each by its name; those that they leave out are not there.

    Raises:
        ValueError: unknown names, wrong types; every section that is wrong is told.
    """
    values = renamed(values)
    types = section_types()
    for name, given in values.items():
        if name not in (*types, *PIECES, "method"):
            known = (*sorted(types), *sorted(PIECES), "method")
            hint = nearest(name, known) or f"; known: {', '.join(known)}"
            raise ValueError(f"unknown key {name}{hint}")
        if name in types:
            if not isinstance(given, Mapping):
                raise ValueError(f"{name}: wanted a section [{name}], got {given!r}")
            refuse_unknown(given, types[name], f"{name}.")
    found, problems = {}, []
    for name, given in values.items():
        try:
            found[name] = (
                made(types[name], given, name)
                if name in types
                else pieces_of(name, given)
                if name in PIECES
                else given
            )
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return found
