"""A number with what is written around it: currency, percent, units, and words that change nothing.

"18", "$18", "18 dollars", "about 18 cm", "1.5 million", "Janet has 18 apples" are numbers; "18 or 19",
"at least 18", "18x", "18 squared" are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from g2rpo_fast.rewards.rational import NoNumber, rational

_UNITS: dict[str, str] = {
    name: names.split()[0]
    for names in (
        "$ dollar dollars usd buck bucks us$", "€ euro euros eur", "£ pound_sterling gbp", "¥ yen yuan",
        "cent cents ¢", "% percent pct percentage", "degrees degree deg", "radians radian rad",
        "km kilometer kilometers kilometre kilometres", "m meter meters metre metres",
        "cm centimeter centimeters centimetre centimetres",
        "mm millimeter millimeters millimetre millimetres",
        "in inch inches", "ft foot feet", "yd yard yards", "mi mile miles", "acre acres",
        "g gram grams", "kg kilogram kilograms kilo kilos", "mg milligram milligrams", "lb lbs pound pounds",
        "oz ounce ounces", "ton tons tonne tonnes", "l liter liters litre litres",
        "ml milliliter milliliters",
        "gal gallon gallons", "qt quart quarts", "cup cups", "s sec secs second seconds",
        "min mins minute minutes", "h hr hrs hour hours", "day days", "week weeks", "month months",
        "yr yrs year years", "am", "pm", "celsius", "fahrenheit", "mph", "kmh km/h kph", "hz",
    )
    for name in names.split()
}  # fmt: skip
"""Units by the name that stands for all of theirs. A few single letters count only after a space."""
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_CHANGES = re.compile(
    r"\b(?:or|nor|not?|never|and|than|least|most|over|under|below|above|between|times|plus|minus|negative|half"
    r"|twice|double|triple|squared?|cubed?|root|factorial|divided|choose|mod|modulo|sin|cos|tan|cot|csc|log|ln"
    r"|lg|exp|sqrt|pi|lim|frac|if|either|except|dozen|pairs?)\b",
    re.IGNORECASE,
)
"""Words beside which a number is another number, or none."""
_SIGN = r"(?:(?<![^\W_])[-+] ?)?"
_START = re.compile(rf"{_SIGN}(?:[$€£¥] ?)?{_SIGN}(?:\d|\.\d|[({{]{{1,8}} ?[-+]?[\d.]|\\frac)")
_END = re.compile(r"[\d!)}]")
"""Of a number; looked for from the right."""
_POWER_OF_UNIT = re.compile(
    r"(?<![^\W\d_])(?:(?P<unit>[^\W\d_]+) ?\^ ?\{? ?(?P<power>[23]) ?\}?(?!\d)"
    r"|(?P<word>square|sq|cubic|cu)\.? (?P<named>[^\W\d_]+))",
    re.IGNORECASE,
)
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times "),
        (r"\( ?([^\W\d_][^\d()]*)\)", r" \1 "),
        (r"degrees ?C\b", "degrees celsius"),
        (r"degrees ?F\b", "degrees fahrenheit"),
        (r"\b([aApP])\.[mM]\b", r"\1m"),
    )
)
_POWERS = {"sq": "2", "cu": "3"}
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|[$€£¥%¢]")
_AROUND = re.compile(r"(?:[^\W\d_]|[ ,.;:'\"$€£¥%¢/-]|\\approx|\\sim)*")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """An exact number and the units that stand beside it."""

    value: Fraction
    units: frozenset[str]

    def equals(self, other: Quantity) -> bool:
        """The same number, in units that do not contradict each other. Where only one says percent, 50% is
        both 50 (the question asked for percent) and 0.5."""
        mine, theirs = self.units, other.units
        if not (mine <= theirs or theirs <= mine):
            return False
        if ("%" in mine) != ("%" in theirs):
            percent, bare = (self, other) if "%" in mine else (other, self)
            return bare.value in (percent.value, percent.value / 100)
        return self.value == other.value


def quantity(text: str) -> Quantity | None:
    """Reads one number from `text` (as `plain` leaves it); None when it is not one number and no more.

    Raises TooLarge for a number beyond the bounds.
    """
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _POWER_OF_UNIT.sub(_named_power, text)
    start, last = _START.search(text), _END.search(text[::-1])
    if not start or not last:
        return None
    end = max(len(text) - last.start(), start.end())
    before, number, after = text[: start.start()], text[start.start() : end], text[end:]
    units = _units(before, after)
    if units is None:
        return None
    currency = re.match(r"[-+ ]*([$€£¥])", number)
    try:
        value = rational(re.sub(r"^([-+]? ?)[$€£¥] ?", r"\1", number))
    except NoNumber:
        return None
    return Quantity(
        value=value * _scale(after), units=frozenset([*units, *(currency[1] if currency else "")])
    )


def _named_power(found: re.Match[str]) -> str:
    """cm^2 and "square cm" as one word, cm², whose 2 is no number; other powers stay."""
    name, power = found["unit"] or found["named"], found["power"] or _POWERS[found["word"][:2].lower()]
    return f"{name}{'²³'[int(power) - 2]}" if name.lower() in _UNITS else found[0]


def _units(before: str, after: str) -> list[str] | None:
    """The units around a number; None where the words there change what it says."""
    attached = re.match(r"[^\W\d_]+", after)
    if not (_AROUND.fullmatch(before) and _AROUND.fullmatch(after)) or re.search(r"\w$", before):
        return None
    if attached and (len(attached[0]) < 2 or not _unit(attached[0])):
        return None
    leading = [word.lower() for word in _WORD.findall(before)]
    behind = [word.lower() for word in _WORD.findall(after)]
    letters = [word for word in leading + behind if len(word) == 1 and word.isalpha() and word not in "ai"]
    if _CHANGES.search(f"{before} {after}") or any(
        [word] != behind[:1] or not _unit(word) for word in letters
    ):
        return None
    symbols = [word for word in leading if not word.isalpha()]
    return [unit for word in symbols + behind if (unit := _unit(word)) and (word != "in" or len(behind) == 1)]


def _unit(word: str) -> str:
    """The one name of a unit, its power kept; "" for other words."""
    name = word.lower().rstrip("²³")
    return _UNITS[name] + word[len(name) :] if name in _UNITS else ""


def _scale(after: str) -> int:
    word = _WORD.search(after)
    return _SCALES.get(word[0].lower(), 1) if word else 1
