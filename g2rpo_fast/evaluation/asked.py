"""What an evaluation or a look at samples is asked for, from the command line and from Python.

A message names each setting as the caller spells it: `--guidance-tokens` there, `guidance_tokens` here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Spelling = Callable[[str], str]
"""A setting's name → how the caller spells it."""


def as_option(name: str) -> str:
    """On the command line."""
    return f"--{name.replace('_', '-')}"


def as_argument(name: str) -> str:
    """In Python."""
    return name


@dataclass(frozen=True, kw_only=True)
class EvaluationSize:
    """How much of a model is measured."""

    samples: int = 8
    """Samples of each problem, for pass@k and the majority's vote; 0 = the greedy response alone."""
    k: tuple[int, ...] = ()
    """The k of pass@k; none given: 1, 2, 4, ... up to `samples`."""

    def check(self, temperature: float, spelled: Spelling) -> None:
        """Raises ValueError."""
        samples = spelled("samples")
        if self.samples < 0:
            raise ValueError(f"{samples}: wanted at least 0, got {self.samples}")
        if self.samples and temperature == 0:
            raise ValueError(
                f"{spelled('temperature')}: wanted above 0 for samples (the greedy response is measured "
                f"beside them; {samples} 0 measures it alone), got 0"
            )
        wrong = [k for k in self.k if not 1 <= k <= self.samples]
        if wrong:
            raise ValueError(f"{spelled('k')}: wanted from 1 to {samples} = {self.samples}, got {wrong[0]}")


@dataclass(frozen=True, kw_only=True)
class SamplesSize:
    """How many samples of a model are shown, and how much guidance each begins with."""

    guidance_tokens: int = 0
    """Tokens of each row's trace that its samples begin with; of a shorter trace all."""
    n: int = 1
    """Samples of each problem."""

    def check(self, max_tokens: int, spelled: Spelling, *, key: str, rows: bool) -> None:
        """`rows`: there are some, which may have traces; `key` is what they are called. Raises ValueError."""
        guidance = spelled("guidance_tokens")
        if self.n < 1:
            raise ValueError(f"{spelled('n')}: wanted at least 1, got {self.n}")
        if not 0 <= self.guidance_tokens < max_tokens:
            raise ValueError(
                f"{guidance}: wanted from 0 to below {spelled('max_tokens')} = {max_tokens} (which counts "
                f"them), got {self.guidance_tokens}"
            )
        if self.guidance_tokens and not rows:
            raise ValueError(
                f"{guidance}: wanted 0 with {spelled('prompt')} (guidance is of a row's trace: {key}), got "
                f"{self.guidance_tokens}"
            )
