"""Functions of one's own: given as they are from Python, or as "module:function" in a configuration."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def function_of(given: Callable[..., Any] | str, key: str, *, instead: str = "") -> Callable[..., Any]:
    """The function. For a name the current directory is importable, after everything else.

    Args:
        instead: names that would do as well, for the message.

    Raises:
        ValueError: one line naming `key`: no such module or function, or something that cannot be called.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise ValueError(f"{key}: wanted a function or module:function, got {given!r}")
        return given
    module_name, colon, attribute = given.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{key}: wanted {instead}module:function, got {given!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(
            f"{key}: importing {module_name!r} for {given!r} failed: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "no such name" if function is None else type(function).__name__
        raise ValueError(f"{key}: wanted a function {attribute!r} in {module.__file__}, got {found}")
    return function


def name_of(function: Callable[..., Any]) -> str:
    """What stands for a function, or an object that can be called, in a record of the run."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}:{name}"


class PieceError(ValueError):
    """A piece cannot do with what the run gave it, or a user's function in one failed; one line, naming it.

    In a run, whose work is saved, it ends it; before one it is a mistake like any other.
    """


def called(key: str, given: Callable[..., Any] | str, *arguments: Any) -> Any:
    """What the function returns. Raises PieceError, naming `key`, for whatever it raises."""
    function = function_of(given, key)
    try:
        return function(*arguments)
    except Exception as error:  # the user's function may raise anything
        name = given if isinstance(given, str) else name_of(function)
        raise PieceError(f"{key}: {name}: {type(error).__name__}: {error}") from error
