"""Arithmetic on written numbers, exactly: decimals, thousands, e-notation, fractions, mixed numbers,
products, powers and factorials to a Fraction. No sums, no roots, no letters: those are algebra.

    product  := [sign] power (("\\times" | "*" | "/") [sign] power)*
    power    := atom ["!"] ["^" exponent]
    atom     := numeral | numeral proper-fraction | "\\frac" group group | "(" product ")" | "{" product "}"

Sizes are bounded, so 9^{9^{9^{9}}} costs nothing: it is `TooLarge`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_BITS = 1 << 17
"""Of a number that is computed: 2006! has 19,000."""
MAX_DIGITS = 4000
MAX_FACTORIAL = 5000
MAX_DEPTH = 24

_WHOLE = (
    r"\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])|\d{1,3}(?: \d{3})+(?! ?[\d/])"
    r"|\d{1,3}(?:'\d{3})+(?!\d)|\d+"
)
_TOKEN = re.compile(
    rf" *(?:(?P<number>(?:(?:{_WHOLE})(?:\.\d*)?|\.\d+)(?:\\overline *\{{\d+\}})?(?:[eE][-+]?\d+)?)"
    r"|(?P<mark>\\frac|\\times|[-+*/^!(){}]))"
)
_PROPER = re.compile(r" ?(?:(\d+) ?/ ?(\d+)|\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\})")


class TooLarge(ValueError):
    """A number beyond the bounds."""


class NoNumber(ValueError):
    """Not a number in the grammar above."""


def rational(text: str) -> Fraction:
    """The value of `text`. Raises NoNumber or TooLarge."""
    reader = _Reader(text)
    value = reader.product(0)
    if reader.rest():
        raise NoNumber(text)
    return value


def decimal(digits: str) -> Fraction:
    """A numeral: separators of thousands, point, \\overline{} for a period, exponent."""
    mantissa, _, exponent = re.sub("[eE](?=[-+]?\\d)", "^", digits).partition("^")
    mantissa, _, period = mantissa.partition("\\overline")
    mantissa, period = re.sub(r"[ ,']", "", mantissa), re.sub(r"\D", "", period)
    shift = int(exponent[:8] or "0")
    if max(len(mantissa), len(period)) > MAX_DIGITS or abs(shift) * 4 > MAX_BITS or len(exponent) > 8:
        raise TooLarge(digits)
    if period and "." not in mantissa:
        raise NoNumber(digits)
    whole, _, places = mantissa.partition(".")
    value = Fraction(int((whole + places) or "0"), 10 ** len(places))
    if period:
        value += Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
    return value * Fraction(10) ** shift


class _Reader:
    """A position in a text, and the rules of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def rest(self) -> str:
        return self.text[self.at :].strip()

    def take(self, *marks: str) -> str:
        """The next mark if it is one of these, else ""."""
        found = _TOKEN.match(self.text, self.at)
        if not found or found["mark"] not in marks:
            return ""
        self.at = found.end()
        return found["mark"]

    def product(self, depth: int) -> Fraction:
        sign = -1 if self.take("-", "+") == "-" else 1
        value = sign * self.power(depth)
        while mark := self.take("\\times", "*", "/"):
            sign = -1 if self.take("-", "+") == "-" else 1
            factor = sign * self.power(depth)
            if mark == "/" and not factor:
                raise NoNumber(self.text)
            value = _bounded(value, factor) * (1 / factor if mark == "/" else factor)
        return value

    def power(self, depth: int) -> Fraction:
        value = self.atom(depth)
        if self.take("!"):
            value = _factorial(value)
            if self.take("!"):
                raise NoNumber(self.text)
        if not self.take("^"):
            return value
        if self.take("-"):
            return _raised(value, -self.atom(depth + 1))
        return _raised(value, self.power(depth + 1))

    def atom(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise NoNumber(self.text)
        mark = self.take("(", "{", "\\frac")
        if mark == "\\frac":
            top, bottom = self.group(depth), self.group(depth)
            if not bottom:
                raise NoNumber(self.text)
            return _bounded(top, bottom) / bottom
        if mark:
            return self.closed(mark, depth)
        found = _TOKEN.match(self.text, self.at)
        if not found or not found["number"]:
            raise NoNumber(self.text)
        self.at = found.end()
        return decimal(found["number"]) + self.proper_fraction(found["number"])

    def group(self, depth: int) -> Fraction:
        if not self.take("{"):
            raise NoNumber(self.text)
        return self.closed("{", depth)

    def closed(self, mark: str, depth: int) -> Fraction:
        value = self.product(depth + 1)
        if not self.take({"(": ")", "{": "}"}[mark]):
            raise NoNumber(self.text)
        return value

    def proper_fraction(self, whole: str) -> Fraction:
        """The 1/2 of "3 1/2" and of 3\\frac{1}{2}."""
        found = _PROPER.match(self.text, self.at)
        if not found or not whole.replace(",", "").isdigit():
            return Fraction(0)
        top, bottom = (decimal(part) for part in found.groups() if part)
        if not 0 < top < bottom:
            raise NoNumber(self.text)
        self.at = found.end()
        return top / bottom


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _bounded(value: Fraction, other: Fraction) -> Fraction:
    if _bits(value) + _bits(other) > MAX_BITS:
        raise TooLarge
    return value


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise NoNumber
    if value > MAX_FACTORIAL:
        raise TooLarge
    return Fraction(math.factorial(int(value)))


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or (not base and exponent <= 0):
        raise NoNumber
    if abs(base) != 1 and base and abs(exponent) * _bits(base) > MAX_BITS:
        raise TooLarge
    return base ** (int(exponent) if abs(base) != 1 else int(exponent) % 2)
