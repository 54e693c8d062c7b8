"""All methods, and the one that a word means: its file's name, its name, an alias or its arXiv identifier."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from g2rpo_fast.methods.record import STATUS, Method, method_from_toml


def load_methods(directory: Path | None = None) -> dict[str, Method]:
    """Key -> method, grouped by status, by key within a group. None: those that come with the package.

    Raises:
        ValueError: naming the file: what `method_from_toml` refuses, or two methods that one word would mean.
    """
    files = directory or resources.files("g2rpo_fast.methods")
    methods = [
        method_from_toml(file.name.removesuffix(".toml"), file.read_text(encoding="utf-8"))
        for file in files.iterdir()
        if file.name.endswith(".toml")
    ]
    order = list(STATUS)
    methods.sort(key=lambda method: (order.index(method.status), method.key))
    _refuse_clashes(methods)
    return {method.key: method for method in methods}


def load_method(name: str, directory: Path | None = None) -> Method:
    """The one method that `name` means. Raises ValueError as `load_methods` and `find` do."""
    return find(name, load_methods(directory))


def find(name: str, methods: Mapping[str, Method]) -> Method:
    """By key, name or alias (case and punctuation do not count), or by arXiv identifier.

    Raises:
        ValueError: several methods go by that name (their keys and identifiers are listed), or none does
            (the nearest names are).
    """
    word = plain(re.sub(r"^arxiv:|(?<=\d{4}\.\d{5})v\d+$", "", name.strip().lower()))
    own = _own_words(methods.values())
    if word in own:
        return own[word]
    found = [method for method in methods.values() if word in map(plain, (*method.ambiguous, method.arxiv))]
    if word and len(found) == 1:
        return found[0]
    if word and found:
        listed = ", ".join(f"{method.key} ({_identified(method)})" for method in found)
        raise ValueError(f"methods: {name!r} may be {listed}")
    spelling = {plain(word): word for method in methods.values() for word in _names(method)}
    near = [spelling[match] for match in difflib.get_close_matches(word, spelling, n=5)]
    hint = f"the nearest are {', '.join(near)}" if near else "`g2rpo-fast methods` lists them"
    raise ValueError(f"methods: wanted a method's name or arXiv identifier, got {name!r}; {hint}")


def plain(name: str) -> str:
    """Lower case without punctuation, Greek lambda and superscripts spelled out; a plus counts."""
    spelled = unicodedata.normalize("NFKC", name).lower().replace("λ", "lambda").replace("+", "plus")
    return "".join(character for character in spelled if character.isalnum())


def _names(method: Method) -> tuple[str, ...]:
    return (method.key, method.name, *method.aliases)


def _identified(method: Method) -> str:
    return f"arXiv {method.arxiv}" if method.arxiv else method.source


def _own_words(methods: Iterable[Method]) -> dict[str, Method]:
    """Plain key, name and aliases -> the method."""
    return {plain(name): method for method in methods for name in _names(method)}


def _refuse_clashes(methods: Iterable[Method]) -> None:
    """No word may silently mean one method of two. Methods of one entry may share its paper."""
    owner: dict[str, Method] = {}
    entry_of: dict[str, Method] = {}
    for method in methods:
        for name in _names(method):
            other = owner.setdefault(plain(name), method)
            if other is not method:
                raise ValueError(f"{method.key}.toml: {name!r} is a name of {other.key}.toml too")
        other = entry_of.setdefault(method.arxiv, method) if method.arxiv else method
        if other is not method and (not method.entry or other.entry != method.entry):
            raise ValueError(
                f"{method.key}.toml: arxiv: wanted another than {other.key}.toml's, or the same entry, got "
                f"{method.arxiv!r}"
            )
    for method in methods:
        for name in method.ambiguous:
            if plain(name) in owner:
                other = owner[plain(name)]
                raise ValueError(
                    f"{method.key}.toml: ambiguous: {name!r} is {other.key}.toml's own name or alias"
                )
