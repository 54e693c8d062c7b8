"""Whether two final answers are the same, as far as text and exact arithmetic can tell.

The reference decides how: a plain number is compared exactly (no rounding: 0.333 is not 1/3), a word or a
choice as text. All else, and a response that computes ("\\sqrt{324}" for 18), is algebra: the caller's.
"""

from __future__ import annotations

import re

from g2rpo_fast.rewards.notation import plain, squeezed
from g2rpo_fast.rewards.quantity import Quantity, quantity
from g2rpo_fast.rewards.rational import TooLarge

_NAME = re.compile(r"\\?[A-Za-z](?:[A-Za-z]{2,})?(?:_\{?\w+\}?)?(?: ?\([a-z]\))? ?")
_RELATION = re.compile(r"[<>≤≥≠]|\\(?:l|g|n)(?:e|eq|t|eqslant)?(?![A-Za-z])")
_SEVERAL = re.compile(
    r"[,;](?: |$)|,(?=[^\d]|\d{1,2}(?!\d))"
    r"|\b(?:or|and|not|nor|to|than|least|most|half|twice|double|triple|squared|cubed|dozen|over|between)\b",
    re.IGNORECASE,
)
"""More than one number, or words that make another of it."""
_ALGEBRA = re.compile(r"[\d\\+*/=^<>|{}\[\]_≤≥√∞]|(?<![^\W\d_])[^\W\d_](?: ?- ?)[^\W\d_](?![^\W\d_])")
_LEAD = re.compile(
    r"^(?:(?:it|that|this|he|she|they)(?:'s| is| are) "
    r"|(?:the |an? )?(?:correct )?(?:option|choice|answer)(?: is)?:? )+",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\(? ?([A-Z]) ?(?:[).:]|\) ?[.:]?|$)")
_BASE = re.compile(r"_ ?\{? ?(\d+) ?\}?$")
_ASSERTIONS = {"yes", "no", "true", "false"}


def same_answer(final: str, reference: str) -> bool | None:
    """True or False where it is decided; None where it takes algebra."""
    given, wanted = plain(final), plain(reference)
    if not given or not wanted:
        return False
    if squeezed(given) == squeezed(wanted):
        return True
    number = reference_number(reference)
    if number is not None:
        return _same_number(given, number[0], name=number[1])
    if is_words(reference):
        return _same_words(given, wanted)
    bases = [_BASE.search(side) for side in (given, wanted)]
    if any(bases) and len({base and base[1] for base in bases}) > 1:
        return False if all(bases) else None
    return None


def reference_number(reference: str) -> tuple[Quantity, str] | None:
    """The plain number that a reference is, and the name that it gives it ("x = 18"), "" without one."""
    name, equals, value = plain(reference).partition("=")
    if equals and not _NAME.fullmatch(name):
        return None
    try:
        number = quantity(value.strip() if equals else name)
    except TooLarge:
        return None
    return None if number is None else (number, name.strip() if equals else "")


def is_words(reference: str) -> bool:
    """Whether a reference is a word, a choice or a sentence: letters and no sign of algebra."""
    text = plain(reference)
    return bool(re.search(r"[^\W\d_]", text)) and not _ALGEBRA.search(text)


def _same_number(given: str, wanted: Quantity, *, name: str) -> bool | None:
    """Every side of a chain of equalities must be the number; a name may stand first."""
    first, *sides = [side.strip() for side in re.split(r"=|\\approx", given)]
    if sides and _NAME.fullmatch(first + " "):
        if name and squeezed(first) != squeezed(name):
            return False
    elif first or not sides:
        sides.insert(0, first)
    verdicts = [_same_side(side, wanted) for side in sides]
    return None if None in verdicts and False not in verdicts else all(verdicts)


def _same_side(side: str, wanted: Quantity) -> bool | None:
    try:
        number = quantity(side)
    except TooLarge:
        return False
    if number is not None:
        return number.equals(wanted)
    return False if _RELATION.search(side) or _SEVERAL.search(side) else None


def _same_words(given: str, wanted: str) -> bool | None:
    """As text: case counts only for a single letter (a choice, a variable)."""
    given, wanted = _LEAD.sub("", given), _LEAD.sub("", wanted)
    if len(wanted) == 1:
        return _same_letter(given, wanted)
    if wanted.casefold() in _ASSERTIONS and not any(
        word in _ASSERTIONS - {wanted.casefold()} for word in re.findall(r"\w+", given.casefold())
    ):
        given = re.split(r"[,.;:] ", given, maxsplit=1)[0]
    if _ALGEBRA.search(given):
        return None if re.fullmatch(r"[a-z]{2,3}", wanted) else False
    return _words(given) == _words(wanted)


def _same_letter(given: str, wanted: str) -> bool | None:
    """A choice may be followed by what it stands for: "(A) 18 cm", but not by another choice."""
    label = _LABEL.match(given)
    if wanted.isupper() and label and not re.search(r"\(?\b[A-Z][).:]", given[label.end() :]):
        return label[1] == wanted
    side = given.rpartition("=")[2].strip()
    return side == wanted or (None if _ALGEBRA.search(side) and "=" not in given else False)


def _words(text: str) -> list[str]:
    """Words in lower case; "and" between things is a comma."""
    return [word for word in re.findall(r"\w+(?:['-]\w+)*", text.casefold()) if word != "and"]
