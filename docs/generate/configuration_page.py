"""Every key of the configuration, from the dataclasses that read it: type, bounds, default, meaning."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan

from g2rpo_fast.commands.eval import EvalOptions
from g2rpo_fast.commands.export import ExportOptions
from g2rpo_fast.commands.sample import SampleOptions
from g2rpo_fast.config import PIECES, section_types
from g2rpo_fast.config.choice import SINGLE
from g2rpo_fast.config.sections import Config
from generate.as_markdown import block, code, prose, table

HEADS = ("key", "type", "default", "meaning")
BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below")}
NAMES = {str: "text", bool: "true or false", int: "whole number", float: "number", dict: "table"}
OPTIONS = {"eval": EvalOptions, "sample": SampleOptions, "export": ExportOptions}


def sections_page() -> str:
    """A heading and a table for each plain section."""
    parts = []
    for name, cls in section_types().items():
        parts += [f"## {name}", prose(inspect.getdoc(cls) or ""), keys_table(cls, f"{name}.")]
    return "\n\n".join(parts)


def pieces_page() -> str:
    """A heading for each kind of piece; below it each piece with its docstring and its settings."""
    meanings = meanings_of(Config)
    defaults = Config()
    parts = []
    for section, known in PIECES.items():
        chosen = getattr(defaults, section)
        names = [piece.use for piece in (chosen if isinstance(chosen, tuple) else (chosen,))]
        kind = "one piece" if section in SINGLE else "a chain of pieces"
        said = f"{prose(meanings[section])} It is {kind}; the default is {code(' '.join(names) or 'none')}."
        parts += [f"## {section}", said]
        for use, cls in known.items():
            parts += [f"### {section}.{use} {{ #{section}.{use} }}", block(inspect.getdoc(cls) or "")]
            parts += [keys_table(cls, f"{section}.{use}.")]
    return "\n\n".join(parts)


def options_page() -> str:
    """Of the commands around a trained model, the options that are no keys of the configuration."""
    parts = []
    for command, cls in OPTIONS.items():
        rows = [
            (code("--" + row[0].strip("`").replace("_", "-")), *row[1:]) for row in rows_of(cls, prefix="")
        ]
        parts += [f"## g2rpo-fast {command}", prose(inspect.getdoc(cls) or ""), table(HEADS, rows)]
    return "\n\n".join(parts)


def keys_table(cls: type, prefix: str) -> str:
    rows = list(rows_of(cls, prefix))
    return table(HEADS, rows) if rows else "It has no settings."


def rows_of(cls: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Raises ValueError for a key that has no docstring."""
    hints = get_type_hints(cls, include_extras=True)
    meanings = meanings_of(cls)
    for key in (f for f in fields(cls) if f.init):
        if key.name not in meanings:
            raise ValueError(f"{cls.__module__}.{cls.__name__}.{key.name}: wanted a docstring, got none")
        kind = words_of(hints[key.name])
        yield code(prefix + key.name), kind, default_of(key), prose(meanings[key.name])


def meanings_of(cls: type) -> dict[str, str]:
    """Key -> the docstring that stands after it, that of a base where a class gives none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ == "builtins" or not base.__module__.startswith("g2rpo_fast"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = ast.literal_eval(after.value) if isinstance(after.value, ast.Constant) else None
                if isinstance(text, str):
                    found[ast.unparse(node.target)] = text
    return found


def words_of(hint: Any) -> str:
    """A type as a reader of TOML knows it, as Markdown."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, *metadata = arguments
        bounds = [words for item in metadata for words in bounds_of(item)]
        return ", ".join([words_of(inner), *bounds])
    if origin in (Union, types.UnionType):
        some = [words_of(part) for part in arguments if part is not type(None)]
        return " or ".join([*some, *([code("none")] if type(None) in arguments else [])])
    if origin is Literal:
        return " or ".join(code(toml_of(value)) for value in arguments)
    if origin is tuple:
        return f"list of: {words_of(arguments[0])}"
    if origin is dict:
        of = arguments[1]
        return "table" if of is Any else f"table of: {words_of(of)}"
    return "any" if hint is Any else NAMES[hint]


def bounds_of(item: Any) -> Iterator[str]:
    for bound, (name, word) in BOUNDS.items():
        if isinstance(item, bound):
            yield f"{word} {getattr(item, name):g}"
    if isinstance(item, AllowInfNan):
        yield f"{code('inf')} allowed"


def default_of(key: Field[Any]) -> str:
    if key.default is not MISSING:
        return code(toml_of(key.default))
    if key.default_factory is not MISSING:
        return code(toml_of(key.default_factory()))
    return "(must be given)"


def toml_of(value: Any) -> str:
    """A default as a file has it; a function by its name."""
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{name} = {toml_of(given)}" for name, given in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)
