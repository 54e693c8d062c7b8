"""Pieces as a configuration names them: a table with `use` and settings, a name, a piece, or a function.

terms = [{ use = "clip", high = 0.28 }, { use = "kl", coef = 0.01 }]        in TOML
Config(terms=[Clip(high=0.28), {"use": "kl", "coef": 0.01}, my_own_loss])   in Python
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from g2rpo_fast.credit import CREDITS, TOKEN_CREDITS, WEIGHTS
from g2rpo_fast.objective import TERMS
from g2rpo_fast.pieces import Piece
from g2rpo_fast.rounds import ROUNDS
from g2rpo_fast.select import SELECTIONS
from g2rpo_fast.shaping import SHAPINGS
from g2rpo_fast.units import UNITS

PIECES: dict[str, Mapping[str, type[Piece]]] = {
    "selection": SELECTIONS,
    "rounds": ROUNDS,
    "shaping": SHAPINGS,
    "credit": CREDITS,
    "units": UNITS,
    "token_credit": TOKEN_CREDITS,
    "weights": WEIGHTS,
    "terms": TERMS,
}
"""Section -> name -> piece."""
SINGLE = ("selection", "units")
"""Of these there is one; the others are chains."""

NONE_WORDS = ("none", "None")
"""What stands for None where a key may be None, in TOML and on the command line."""


def pieces_of(section: str, given: Any) -> tuple[Piece, ...]:
    """The chain that a section says. Raises ValueError, one line, naming the key."""
    entries = given if isinstance(given, list | tuple) else [given]
    made = tuple(piece_of(section, entry) for entry in entries)
    names = [piece.use for piece in made]
    twice = sorted({name for name in names if names.count(name) > 1 and name != "own"})
    if twice:
        raise ValueError(f"{section}: wanted each piece once, got {twice[0]} {names.count(twice[0])} times")
    return made


def piece_of(section: str, given: Any) -> Piece:
    """One piece of a section. Raises ValueError, one line, naming the key."""
    known = PIECES[section]
    if isinstance(given, Piece):
        if given.section != section:
            raise ValueError(f"{section}: wanted a piece of it, got {given!r} of {given.section}")
        return given
    if callable(given) and "own" in known:
        return made(known["own"], {"function": given}, f"{section}.own")
    table = {"use": given} if isinstance(given, str) else given
    if not (isinstance(table, Mapping) and isinstance(table.get("use"), str)):
        example = next(iter(known), "...")
        raise ValueError(f'{section}: wanted a table such as {{ use = "{example}" }}, got {given!r}')
    use = table["use"]
    if use not in known:
        raise ValueError(f"{section}: wanted one of {', '.join(known)}, got {use!r}{nearest(use, known)}")
    settings = {key: value for key, value in table.items() if key != "use"}
    refuse_unknown(settings, known[use], f"{section}.{use}.")
    return made(known[use], settings, f"{section}.{use}")


def made(cls: type, settings: Mapping[str, Any], name: str) -> Any:
    """A section or piece with these settings, `none` read where a key may be None; missing keys are named."""
    hints = get_type_hints(cls)
    values = {
        key: None if value in NONE_WORDS and type(None) in get_args(hints[key]) else value
        for key, value in settings.items()
    }
    try:
        return cls(**values)
    except TypeError as error:  # a setting without a default
        raise ValueError(f"{name}: {str(error).partition('() ')[2] or error}") from error


def settings_of(cls: type) -> list[str]:
    """The keys that a section or piece may be given."""
    return [f.name for f in fields(cls) if f.init]


def refuse_unknown(settings: Mapping[str, Any], cls: type, prefix: str) -> None:
    known = settings_of(cls)
    for key in settings:
        if key not in known:
            hint = nearest(key, known, prefix) or (
                f"; known: {', '.join(sorted(known))}" if known else "; it has no settings"
            )
            raise ValueError(f"unknown key {prefix}{key}{hint}")


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; the nearest name is ...", or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; the nearest name is {prefix}{near[0]}" if near else ""
