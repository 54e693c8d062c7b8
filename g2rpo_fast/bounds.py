"""What a section of the configuration declares beside its fields holds whenever one is built.

    lr: Annotated[float, Gt(0)] = 1e-5          bounds are those of `annotated_types`: Ge, Gt, Le, Lt
    max_grad_norm: Annotated[float, Gt(0), InfinityToo] = 1.0

A declared type holds as well: no text or bool for a number, no fraction for a whole one. Every number is
finite unless `InfinityToo` stands beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

__all__ = ["FunctionOrName", "Ge", "Gt", "InfinityToo", "Le", "Lt", "Table", "check_fields", "objects_too"]

CHECKED = find_spec("pydantic") is not None
"""The program requires it. Ops and benchmarks run from a checkout without it: nothing is checked then."""
if TYPE_CHECKING or CHECKED:
    import pydantic
    from annotated_types import Ge, Gt, Le, Lt

    InfinityToo = pydantic.AllowInfNan(True)
else:
    Ge = Gt = Le = Lt = float
    InfinityToo = None
"""Beside a float whose infinity means "no limit", and beside a bound: the bound refuses NaN."""

if TYPE_CHECKING:
    FunctionOrName = str | Callable[..., Any]
elif CHECKED:
    _or_function = pydantic.WrapValidator(lambda given, text: given if callable(given) else text(given))
    FunctionOrName = Annotated[str, _or_function]
else:
    FunctionOrName = str
"""A text to the command line and to TOML; from Python the function itself may stand there."""


Table = dict[str, Any]
"""Of any values: an inline table to the command line and to TOML."""


def objects_too(is_one: Callable[[Any], bool]) -> Any:
    """Beside a type: from Python, what `is_one` says yes to may stand there as it is."""
    return CHECKED and pydantic.WrapValidator(lambda given, other: given if is_one(given) else other(given))


_WANTED = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "a text",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "dict_type": "a table",
}
"""pydantic's type of error -> what was wanted, filled in from its context."""


def check_fields(section: Any, name: str) -> None:
    """For the `__post_init__` of the frozen dataclass that is section `name`.

    Leaves in each field what its type says: a float for a whole number, a tuple for a list, text for a path.

    Raises:
        ValueError: one line, `name.key: wanted ..., got ...` for each field that is wrong, joined by "; ".
    """
    if not CHECKED:
        return
    problems = []
    for key, adapter in _adapters(type(section)).items():
        given = getattr(section, key)
        try:
            value = adapter.validate_python(_plain(given))
        except pydantic.ValidationError as error:
            problems.append(_problem(f"{name}.{key}", given, error))
        else:
            object.__setattr__(section, key, value)
    if problems:
        raise ValueError("; ".join(problems))


@cache
def _adapters(cls: type) -> dict[str, pydantic.TypeAdapter[Any]]:
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: pydantic.TypeAdapter(hints[f.name], config=strict) for f in fields(cls)}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(value) if isinstance(value, list) else value


def _problem(key: str, given: Any, error: pydantic.ValidationError) -> str:
    """The first entry that is wrong; a field that may be one of several types names them all."""
    errors = error.errors(include_url=False)
    of_entry = isinstance(given, list | tuple | dict) and errors[0]["loc"]
    wrong = errors[:1] if of_entry else errors
    wanted = [
        _WANTED[e["type"]].format(**e.get("ctx", {})) if e["type"] in _WANTED else e["msg"] for e in wrong
    ]
    if of_entry:
        key, given = ".".join(map(str, (key, *errors[0]["loc"]))), errors[0]["input"]
    return f"{key}: wanted {' or '.join(wanted)}, got {given!r}"
