"""Which Triton kernels run, counted in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
from triton.runtime import interpreter


def kernel_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with the names of the kernels that run from now on, in their order."""
    names: list[str] = []
    run = interpreter.GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    return names
