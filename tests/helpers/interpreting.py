"""Triton's interpreter without the work that it repeats: a third of its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@contextmanager
def patched_once() -> Iterator[None]:
    """At every call of a device function the interpreter puts its own functions into triton.language, where
    the launch has done so, and at every operation it lists the types of NumPy. Once is enough."""
    from triton import language
    from triton.runtime import interpreter

    patch_language, is_builtin = interpreter._patch_lang, language.core.is_builtin
    nothing = SimpleNamespace(restore=lambda: None)
    of_scalar = cache(interpreter._get_np_dtype)

    def patch_what_is_not(function: Callable[..., Any]) -> Any:
        values = function.__globals__.values()
        used = [value for value in values if value is language or value is language.core]
        return patch_language(function) if any(is_builtin(module.load) for module in used) else nothing

    def dtype_of(kind: Any) -> np.dtype:
        kind = kind.element_ty if isinstance(kind, language.block_type) else kind
        return np.dtype(np.uint64) if isinstance(kind, language.pointer_type) else of_scalar(kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_what_is_not)
        patch.setattr(interpreter, "_get_np_dtype", dtype_of)
        yield
