"""Guided GRPO for small language models, exact and fast: `from g2rpo_fast import Config, train`.

What those need is imported when they are asked for: the planner, the engines and the update are usable where
the command line's and the console's packages are missing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g2rpo_fast.callbacks import Callback
    from g2rpo_fast.config import Config
    from g2rpo_fast.train import train
    from g2rpo_fast.types import TrainResult

__all__ = ["Callback", "Config", "TrainResult", "train"]

_HOMES = {"Callback": "callbacks", "Config": "config", "TrainResult": "types", "train": "train"}


class _Package(ModuleType):
    """`train` is a module of the package and the function in it: here the name means the function, whoever
    imports the module first."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_module = name == "train" and isinstance(value, ModuleType)
        super().__setattr__(name, value.train if is_module else value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{_HOMES[name]}"), name)


sys.modules[__name__].__class__ = _Package
