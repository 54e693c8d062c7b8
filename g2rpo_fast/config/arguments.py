"""The command line: `[CONFIG] [--method NAME] [--section.key value ...]` as a configuration.

A first reading finds what chooses pieces: the file, the method, `--terms.use clip kl`. So the second one,
with typed help, knows the settings of the chosen pieces, `--terms.clip.low 0.1`, and of no others.
"""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from g2rpo_fast.bounds import Table
from g2rpo_fast.config.choice import NONE_WORDS, PIECES, SINGLE, settings_of
from g2rpo_fast.config.read import EMBEDDED, method_of, read_values, sections_of, stored_values, with_method
from g2rpo_fast.config.renamed import KEYS, renamed
from g2rpo_fast.config.sections import Config, section_types
from g2rpo_fast.pieces import Piece
from g2rpo_fast.usage import refused_in_one_line, with_values


@dataclass(frozen=True)
class Words:
    """A command line's options, sorted."""

    source: str | None
    """The file or preset; None = the defaults."""
    method: str | None
    chosen: Mapping[str, list[str]]
    """Section of pieces -> names after `--section.use`."""
    run: Path | None
    """The directory of a run that goes on or is forked: without a file its own settings are the start."""
    fork: bool
    earlier: Mapping[str, Any]
    """Keys of `objective` as earlier versions named them."""
    rest: list[str]


def read_arguments(words: Sequence[str]) -> Config:
    """Exits with typed help on --help or a bad option.

    Raises:
        ValueError: as `load_config`, and for pieces that are not chosen.
    """
    given = sorted_words(words)
    _refuse_mistyped(given.rest)
    values, notes = _begun(given)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        sections_of(values)
    except ValueError as error:
        raise ValueError(f"{given.source}: {error}" if given.source else str(error)) from error
    values = chosen_values(values, given)
    sections = sections_of(values)
    default = defaults(sections)
    _refuse_unchosen(given.rest, default)
    with refused_in_one_line():
        found = tyro.cli(
            type(default),
            args=with_values(given.rest),
            default=default,
            prog="g2rpo-fast train [CONFIG] [--method NAME]",
            description=_described(given, values),
            registry=registry(),
            config=(tyro.conf.HelptextFromCommentsOff,),
        )
    chains = {name: _chain(name, getattr(found, name)) for name in PIECES}
    plain = {name: getattr(found, name) for name in section_types()}
    return Config(method=values.get("method"), **plain, **chains)


def _begun(given: Words) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values that the options change: those of a file or preset, or of the run that goes on."""
    if given.run is None:
        return read_values(given.source, method=given.method)
    values = stored_values(given.run)
    if given.fork:
        values["run"] |= {"dir": None}
    if given.method is None:
        return values, ()
    return with_method(values, method_of(given.method), task=str(given.run))


def sorted_words(words: Sequence[str]) -> Words:
    """What chooses, and the rest."""
    options = list(words)
    source = options.pop(0) if options and not options[0].startswith("-") else None
    method, chosen, earlier, rest = None, {}, {}, []
    while options:
        name, joined, value = options.pop(0).partition("=")
        key = name.removeprefix("--").replace("-", "_")
        section, _, setting = key.partition(".")
        values = [value] if joined else []
        if not name.startswith("--") or not (
            key == "method"
            or (section in PIECES and setting == "use")
            or (section == "objective" and setting in KEYS)
        ):
            rest.append(name + joined + value)
            continue
        while not joined and options and not options[0].startswith("--"):
            values.append(options.pop(0))
        if not values or (section not in PIECES and len(values) > 1):
            raise ValueError(f"{name}: wanted {'a value' if not values else 'one value'}, got {values}")
        if section in PIECES:
            chosen[section] = [word for value in values for word in value.replace(",", " ").split()]
        elif key == "method":
            method = values[0]
        else:
            earlier[setting] = _literal(values[0])
    run, fork = (None, False) if source is not None else _run_of(rest)
    if source is None and run is None and not _own_data(rest):
        source = EMBEDDED
    return Words(source, method, chosen, run, fork, earlier, rest)


def _run_of(options: Sequence[str]) -> tuple[Path | None, bool]:
    """The run that is continued, else the one that is forked, where the options name one that is there."""
    words = [word for option in options for word in option.split("=", 1)]
    after = {word: words[place + 1] for place, word in enumerate(words[:-1])}
    forked = after.get("--run.fork", "none")
    source = forked.rpartition(":")[0] if forked.rpartition(":")[2].isdigit() else forked
    for name, fork in ((after.get("--run.dir"), False), (source, True)):
        if name is not None and (Path(name) / "config.json").is_file():
            return Path(name), fork
    return None, False


def _own_data(options: Sequence[str]) -> bool:
    """Both a model and data are named: then nothing of the embedded task's settings applies to them."""
    given = {option.partition("=")[0].replace("_", "-") for option in options}
    return {"--model.path", "--data.path"} <= given


def _literal(word: str) -> Any:
    """A number, true, false or a text, as TOML has them."""
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def chosen_values(values: Mapping[str, Any], given: Words) -> dict[str, Any]:
    """The values with the command line's choice of pieces; one that was there keeps its settings."""
    result = dict(values)
    for section, names in given.chosen.items():
        before = result.get(section, [])
        tables = [t for t in (before if isinstance(before, list) else [before]) if isinstance(t, Mapping)]
        kept = {table.get("use"): table for table in tables}
        names = [] if names in (["none"], ["None"]) else names
        result[section] = [kept.get(name, {"use": name}) for name in names]
    if given.earlier:
        result["objective"] = {**result.get("objective", {}), **given.earlier}
    return renamed(result)


def defaults(sections: Mapping[str, Any]) -> Any:
    """An instance of a dataclass of the sections, each piece of a chain a field of its chain's."""
    whole = Config()
    made: list[tuple[str, type, Any]] = []
    for name, cls in section_types().items():
        value = sections.get(name, getattr(whole, name))
        made.append((name, cls, field(default=value)))
    for name in PIECES:
        chain = sections.get(name, getattr(whole, name))
        chain = chain if isinstance(chain, tuple) else (chain,)
        made.append(_chain_field(name, chain))
    return make_dataclass("Arguments", made, frozen=True, kw_only=True)()


def _chain_field(name: str, chain: Sequence[Piece]) -> tuple[str, type, Any]:
    names = [piece.use for piece in chain]
    unique = [f"{use}_{i}" if use in names[:i] else use for i, use in enumerate(names)]
    shown = map(_without_use, chain)
    entries = [(use, type(piece), field(default=piece)) for use, piece in zip(unique, shown, strict=True)]
    cls = make_dataclass(name.title().replace("_", ""), entries, frozen=True, kw_only=True)
    cls.__doc__ = f"Settings of the pieces that --{name}.use names."
    return name, cls, field(default=cls())


def _without_use(piece: Piece) -> Any:
    """The piece as one of a class whose settings are all that the help shows: --terms.use alone chooses."""
    cls = type(piece)
    shown = make_dataclass(cls.__name__, [("use", ClassVar[str])], bases=(cls,), frozen=True, kw_only=True)
    shown.__doc__ = cls.__doc__
    return shown(**{name: getattr(piece, name) for name in settings_of(cls)})


def _piece(shown: Any) -> Piece:
    cls = type(shown).__bases__[0]
    return cls(**{name: getattr(shown, name) for name in settings_of(cls)})


def _chain(name: str, found: Any) -> Any:
    pieces = tuple(_piece(getattr(found, f.name)) for f in fields(found))
    return pieces[0] if name in SINGLE else pieces


def _refuse_mistyped(options: Sequence[str]) -> None:
    """Exits for a key like one that there is, as the parser does for others; that takes long to build."""
    if {"-h", "--help"} & set(options):
        return
    for place, option in enumerate(options):
        section, _, key = option.partition("=")[0].removeprefix("--").replace("-", "_").partition(".")
        known = settings_of(section_types()[section]) if section in section_types() else []
        if not option.startswith("--") or "." in key or {key, key.removeprefix("no_")} & {*known}:
            continue
        if near := difflib.get_close_matches(key, known, n=1):
            words = [option, *takewhile(lambda word: not word.startswith("--"), options[place + 1 :])]
            meant = near[0].replace("_", "-")
            line = f"Unrecognized options: {', '.join(words)}; perhaps you meant --{section}.{meant}"
            print(f"g2rpo-fast: {line}; --help lists every option", file=sys.stderr)
            raise SystemExit(2)


def _refuse_unchosen(options: Sequence[str], default: Any) -> None:
    """A setting of a piece that is there to be chosen, but is not."""
    for option in options:
        section, _, setting = option.removeprefix("--").replace("-", "_").partition(".")
        use, dot, _ = setting.partition(".")
        if not (option.startswith("--") and section in PIECES and dot):
            continue
        chosen = [f.name for f in fields(getattr(default, section))]
        if use in PIECES[section] and use not in chosen:
            raise ValueError(
                f"{option.partition('=')[0]}: wanted a setting of a piece that is chosen "
                f"({', '.join(chosen) or 'none'}); choose it with --{section}.use {' '.join([*chosen, use])}"
            )


def _table(word: str) -> Table:
    try:
        return dict(**tomllib.loads(f"value = {word}")["value"])
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ValueError(f"wanted a table such as {{key = true}}, got {word}") from error


def _inline(table: Table) -> str:
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}"


def _described(given: Words, values: Mapping[str, Any]) -> str:
    begun = given.run or given.source or "the defaults"
    method = f", method {values['method']}" if values.get("method") else ""
    chains = "; ".join(f"--{name}.use {' '.join(PIECES[name])}" for name in PIECES if PIECES[name])
    return f"Train; values start from {begun}{method}. Pieces to choose from: {chains}."


def registry() -> ConstructorRegistry:
    """Reads `none` where a key may be None, as the help writes it, and tables as TOML has them."""
    found = ConstructorRegistry()

    @found.primitive_rule
    def table(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Table] | None:
        if kind.type != Table:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{KEY=VALUE,...}",
            instance_from_str=lambda words: _table(words[0]),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [_inline(value)],
        )

    @found.primitive_rule
    def none(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
        if kind.type is not type(None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="none",
            instance_from_str=lambda words: None,
            is_instance=lambda value: value is None,
            str_from_instance=lambda value: ["none"],
            choices=NONE_WORDS,
        )

    return found
