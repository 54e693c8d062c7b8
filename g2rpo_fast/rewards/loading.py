"""Names in the configuration to functions, before anything is spent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from g2rpo_fast.own import function_of
from g2rpo_fast.rewards.awaiting import Awaiter
from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.function import ARGUMENTS, RewardFunction, Scope
from g2rpo_fast.rewards.math_answer import MathVerify
from g2rpo_fast.rewards.text import ExactMatch, format_match
from g2rpo_fast.types import Rollout

BUILT_IN: dict[str, Callable[[RewardConfig], RewardFunction]] = {
    "math": lambda config: MathVerify(pay_truncated=config.pay_truncated),
    "exact_match": ExactMatch,
    "format": format_match,
}


@dataclass(frozen=True, kw_only=True)
class RewardSet:
    """K reward functions, ready to call."""

    channels: tuple[str, ...]
    """Names as in the configuration."""
    functions: tuple[RewardFunction, ...]
    scopes: tuple[Scope, ...]
    """What each is called about: one rollout, a group, or all."""
    weights: tuple[float, ...]
    accuracy_index: int
    """Of the channel that counts as accuracy."""
    success: float = 0.0
    """A rollout succeeds when that channel pays more."""
    timeout_s: float | None = None
    """Of one call of a user's function."""
    awaiter: Awaiter = field(default_factory=lambda: Awaiter(concurrency=64))
    """For those that are async."""

    @property
    def own(self) -> tuple[bool, ...]:
        """Which functions are the user's: limited in time and isolated. Built-in ones need neither, but
        `format` runs the user's pattern."""
        return tuple(not isinstance(function, MathVerify | ExactMatch) for function in self.functions)

    @property
    def any_own(self) -> bool:
        return any(self.own)

    def answer_of(self, rollout: Rollout) -> str | None:
        """The final answer of a response, in one spelling, as the channel that counts as accuracy finds it.

        A function of one's own may have an attribute `final_answer(response, rollout)`; None without one.
        """
        find = self._final_answer
        return None if find is None else find(rollout.text, rollout)

    @property
    def finds_answers(self) -> bool:
        """Whether the channel that counts as accuracy can tell what a response answers."""
        return self._final_answer is not None

    @property
    def _final_answer(self) -> Callable[[str, Rollout], str | None] | None:
        return getattr(self.functions[self.accuracy_index], "final_answer", None)

    @property
    def num_abandoned(self) -> int:
        """Comparisons of "math" abandoned so far, each counted as wrong."""
        return sum(function.num_abandoned for function in self.functions if isinstance(function, MathVerify))


def load_rewards(config: RewardConfig) -> RewardSet:
    """Finds every function. Raises ValueError naming the key for what does not exist or cannot be called.

    For a function of one's own the current directory is importable, after everything else.
    """
    accuracy = config.functions[0] if config.accuracy is None else config.accuracy
    functions = tuple(find_function(name, config) for name in config.functions)
    return RewardSet(
        channels=config.functions,
        functions=functions,
        scopes=tuple(scope_of(function) for function in functions),
        weights=tuple(config.weights.get(name, 1.0) for name in config.functions),
        accuracy_index=config.functions.index(accuracy),
        success=config.success,
        timeout_s=config.timeout_s,
        awaiter=Awaiter(config.concurrency),
    )


def find_function(name: str, config: RewardConfig) -> RewardFunction:
    """The built-in function `name`, or `function` of `module` for "module:function"."""
    if name in BUILT_IN:
        return BUILT_IN[name](config)
    function = function_of(name, "reward.functions", instead=f"{', '.join(BUILT_IN)} or ")
    _check_signature(name, function)
    return cast(RewardFunction, function)


def scope_of(function: Callable[..., Any]) -> Scope:
    """What the function says that it is called about; "rollout" where it says nothing."""
    return cast(Scope, getattr(function, "scope", "rollout"))


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """Refuses what cannot be called as we call it, before anything is spent."""
    scope = scope_of(function)
    if scope not in ARGUMENTS:
        raise ValueError(
            f"reward.functions: wanted a scope from {list(ARGUMENTS)} on {name!r}, got {scope!r}"
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C tell nothing
        return
    try:
        signature.bind("response", "answer", "rollout")
        fits = scope != "rollout" or not {"prompts", "completions"} & set(signature.parameters)
    except TypeError:
        fits = False
    if not fits or isinstance(function, type):
        raise ValueError(
            f"reward.functions: wanted a function that takes {ARGUMENTS[scope]}, got "
            f"{name!r} with {signature}"
        )
