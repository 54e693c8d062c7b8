"""Guided GRPO for small language models: `from g2rpo_fast import Config, train, evaluate, sample`.

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
    from g2rpo_fast.evaluation.evaluate import Evaluation
    from g2rpo_fast.evaluation.public import evaluate, sample
    from g2rpo_fast.train import train
    from g2rpo_fast.types import TrainResult

__all__ = ["Callback", "Config", "Evaluation", "TrainResult", "evaluate", "sample", "train"]

_HOMES = {
    "Callback": "callbacks",
    "Config": "config",
    "Evaluation": "evaluation.evaluate",
    "TrainResult": "types",
    "evaluate": "evaluation.public",
    "sample": "evaluation.public",
    "train": "train",
}


class _Package(ModuleType):
    """`train` and `evaluate` are modules of the package and public functions: here the names mean the
    functions, whoever imports the modules first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{_HOMES[name]}"), name)


sys.modules[__name__].__class__ = _Package
