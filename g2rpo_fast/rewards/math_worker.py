"""Program of the process in which `MathVerify` compares answers. Never imported by the trainer.

Reads one JSON object a line and writes one JSON reply a line:

    {"find": text}                         the answer that math-verify finds in a text, "" if none
    {"answer": text}                       null, or {"error": why math-verify cannot read this reference}
    {"answer": text, "final": text}        whether they are equal, or {"error": ...}

SymPy works on what a model wrote, so memory is bounded here, and time by the parent; an alarm that nothing
handles ends the process even without a parent.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

from math_verify import parse, verify
from sympy import Basic, Eq, Expr, FiniteSet, Float, Interval, MatrixBase, Rational, Tuple, default_sort_key
from sympy.core.expr import UnevaluatedExpr

MEMORY_BYTES = 4 << 30
ORPHAN_LIMIT_S = 60
DIGITS = 50
EXACT, ROUNDED = 1e-30, 1e-6
"""Largest relative difference of two equal numbers: of exact ones, and where one is written as a decimal."""


@functools.lru_cache(maxsize=1024)
def parse_answer(answer: str) -> tuple[Any, ...]:
    """The reference answer as math-verify reads it."""
    marked = "\\boxed" in answer or "$" in answer
    parsed = _parse(answer if marked else f"\\boxed{{{answer}}}")
    if not parsed:
        raise ValueError(f"math-verify cannot parse the reference answer {answer!r}")
    return tuple(parsed)


def find(text: str) -> str:
    """The answer that math-verify finds in a text without a mark, as it is written there."""
    parsed = _parse(text)
    return parsed[-1] if parsed and isinstance(parsed[-1], str) else ""


def matches(answer: str, final: str) -> bool:
    """Whether math-verify says that they are equal, and no exact comparison says otherwise."""
    gold = list(parse_answer(answer))
    prose = "\\" not in final and re.search(r"[^\W\d_]{2}", final)
    predicted = _parse(final if prose else f"\\boxed{{{final}}}")
    return verify(gold, predicted, timeout_seconds=None) and not (
        bool(predicted) and contradicts(gold[0], predicted[0])
    )


def contradicts(left: object, right: object) -> bool:
    """Whether two expressions that math-verify calls equal differ as numbers: it rounds to six decimals, so
    to it 10^-30 x is 10^-31 x. What cannot be evaluated contradicts nothing."""
    pairs = _parts(left, right)
    if pairs is not None:
        return any(contradicts(one, other) for one, other in pairs)
    if isinstance(left, Eq) and not isinstance(right, Eq):
        left = left.rhs
    if isinstance(right, Eq) and not isinstance(left, Eq):
        right = right.rhs
    if not (isinstance(left, Expr) and isinstance(right, Expr)) or (
        left.has(UnevaluatedExpr) or right.has(UnevaluatedExpr)
    ):
        return False
    return _differ(left, right)


def _parts(left: object, right: object) -> list[tuple[object, object]] | None:
    """Corresponding parts of two collections of one kind; None for anything else."""
    if isinstance(left, FiniteSet) and isinstance(right, FiniteSet):
        return list(zip(*(sorted(side.args, key=_order) for side in (left, right))))
    if isinstance(left, Interval) and isinstance(right, Interval):
        return [(left.start, right.start), (left.end, right.end)]
    if isinstance(left, Tuple) and isinstance(right, Tuple):
        return list(zip(left.args, right.args))
    if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
        return list(zip(left.flat(), right.flat()))
    if isinstance(left, Eq) and isinstance(right, Eq) and left.lhs == right.lhs:
        return [(left.rhs, right.rhs)]
    return None


def _order(part: Basic) -> Any:
    return default_sort_key(part.evalf() if isinstance(part, Expr) else part)


def _differ(left: Expr, right: Expr) -> bool:
    """By value, each symbol taken to be a number of its own."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    values = [(symbol, Rational(1009 + 4 * n, 1000 - 7 * n)) for n, symbol in enumerate(symbols)]
    inexact = left.has(Float) or right.has(Float)
    one, other = left.subs(values), right.subs(values)
    if one.is_Rational and other.is_Rational:
        return one != other
    try:
        difference, size = abs((one - other).evalf(DIGITS)), abs(one.evalf(DIGITS)) + abs(other.evalf(DIGITS))
        return bool(difference > size * (ROUNDED if inexact else EXACT))
    except (TypeError, ValueError, ArithmeticError):
        return False


def _parse(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)  # type: ignore[arg-type]


def reply(line: str) -> bool | str | dict[str, str] | None:
    request = json.loads(line)
    try:
        if "find" in request:
            return find(request["find"])
        if "final" in request:
            return matches(request["answer"], request["final"])
        parse_answer(request["answer"])
        return None
    except ValueError as error:
        return {"error": str(error)}


def _bound_memory() -> None:
    """To MEMORY_BYTES, or to less where less is allowed here (ulimit -v)."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    _bound_memory()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like a reply
    replies.write('"ready"\n')
    for line in sys.stdin:
        signal.alarm(ORPHAN_LIMIT_S)
        replies.write(json.dumps(reply(line)) + "\n")
        signal.alarm(0)


if __name__ == "__main__":
    main()
