"""Names in the configuration to functions, before anything is spent."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from g2rpo_fast.own import function_of, name_of
from g2rpo_fast.rewards.awaiting import Awaiter
from g2rpo_fast.rewards.code import CodeReward
from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.function import ARGUMENTS, RewardFunction, Scope
from g2rpo_fast.rewards.math_answer import MathVerify
from g2rpo_fast.rewards.reasoning_gym import ReasoningGym
from g2rpo_fast.rewards.text import ExactMatch, format_match
from g2rpo_fast.rewards.trl import SIGNS, Place, TrlReward, is_trl
from g2rpo_fast.rewards.workers import Workers
from g2rpo_fast.types import Rollout

BUILT_IN: dict[str, Callable[[RewardConfig], RewardFunction]] = {
    "math": lambda config: MathVerify(pay_truncated=config.pay_truncated),
    "exact_match": ExactMatch,
    "format": format_match,
    "reasoning_gym": ReasoningGym,
    "code": CodeReward,
}
COUNTS = ("abandoned", "crashed", "timed_out")
"""What `RewardSet.counts` may name."""


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
    workers: Workers | None = None
    """Other processes that score; none: this one does."""
    place: Place = field(default_factory=Place)
    """Kept up to date by the loop, for functions of TRL's kind."""

    @property
    def own(self) -> tuple[bool, ...]:
        """Which functions are the user's: limited in time and isolated. Built-in ones need neither, but
        `format` runs the user's pattern."""
        built_in = MathVerify | ExactMatch | ReasoningGym | CodeReward
        return tuple(not isinstance(function, built_in) for function in self.functions)

    @property
    def waits(self) -> tuple[bool, ...]:
        """Which functions are async: they wait rather than compute, and stay in this process."""
        return tuple(map(is_async, self.functions))

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
    def counts(self) -> Counter[str]:
        """So far: `abandoned` comparisons of "math", each counted as wrong; programs of "code" that
        `timed_out`; with workers, calls that `crashed` with their process."""
        counts = Counter(abandoned=0) if self.workers is None else self.workers.counts.copy()
        for function in self.functions:
            if isinstance(function, MathVerify):
                counts["abandoned"] += function.num_abandoned
            elif isinstance(function, CodeReward):
                counts["timed_out"] += function.num_timed_out
        return counts

    def close(self) -> None:
        """Ends the processes."""
        if self.workers is not None:
            self.workers.close()


def load_rewards(config: RewardConfig) -> RewardSet:
    """Finds every function. Raises ValueError naming the key for what does not exist or cannot be called.

    For a function of one's own the current directory is importable, after everything else.
    """
    accuracy = config.channels[0] if config.accuracy is None else config.accuracy
    place = Place()
    functions = tuple(find_function(given, config, place) for given in config.functions)
    return RewardSet(
        channels=config.channels,
        functions=functions,
        scopes=tuple(scope_of(function) for function in functions),
        weights=tuple(config.weights.get(name, 1.0) for name in config.channels),
        accuracy_index=config.channels.index(accuracy),
        success=config.success,
        timeout_s=config.timeout_s,
        awaiter=Awaiter(config.concurrency),
        workers=Workers(config) if config.workers else None,
        place=place,
    )


def find_function(
    given: str | Callable[..., Any], config: RewardConfig, place: Place | None = None
) -> RewardFunction:
    """The function itself, the built-in one of that name, or `function` of `module` for "module:function".

    `place`: what functions of TRL's kind are told of the run.
    """
    if isinstance(given, str) and given in BUILT_IN:
        return BUILT_IN[given](config)
    function = function_of(given, "reward.functions", instead=f"{', '.join(BUILT_IN)} or ")
    name = given if isinstance(given, str) else name_of(given)
    if is_trl(function):
        return TrlReward(name, function, Place() if place is None else place)
    _check_signature(name, function)
    return cast(RewardFunction, function)


def is_async(function: Callable[..., Any]) -> bool:
    """As far as it can be told before a call."""
    inner = function.function if isinstance(function, TrlReward) else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


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
        fits = True
    except TypeError:
        fits = False
    if not fits or isinstance(function, type):
        raise ValueError(
            f"reward.functions: wanted a function that takes {ARGUMENTS[scope]}, or one of TRL's kind, with "
            f"a parameter named {', '.join(sorted(SIGNS))}, got {name!r} with {signature}"
        )
