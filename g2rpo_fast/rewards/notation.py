"""One spelling for what is written in many: signs, spaces, fractions, LaTeX's ways to say nothing.

`plain` is the one normalisation that answers pass before they are compared. It changes no value:

    minus signs (U+2212, dashes)   -            1{,}000  1\\,000  1 000 (thin)   1,000  1 000  1 000
    superscripts 10³               10^{3}       ½                               \\frac{1}{2}
    other forms of a character     NFKC         \\dfrac, \\tfrac, \\frac12        \\frac{1}{2}
    \\text{cm}, \\mathrm{cm}         cm           \\left, \\right, \\displaystyle    nothing
    × · \\cdot ⋅                    \\times       ^\\circ, °                       degrees
    $..$ \\(..\\) ** ` around it     nothing      a last . , ; : ? (5! stays)      nothing
    ( ) around one thing           nothing
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‒‐‑﹣－", "-"),
        **dict.fromkeys("×✕✖·⋅∙", r"\times "),
        **dict.fromkeys("÷⁄∕", "/"),
        **dict.fromkeys("“”", '"'),
        "°": " degrees ",
        "’": "'",
        "≈": r"\approx ",
    }
)
_NOTHING = re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr|limits)(?![A-Za-z])|\\!")
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:cdot|ast)(?![A-Za-z])", r"\\times "),
        (r"\^\s*\{?\s*\\circ\s*\}?", " degrees "),
        (r"\\degree(?![A-Za-z])", " degrees "),
        (r"\\pounds(?![A-Za-z])", "£"),
        (r"\\([$%#&_ ])", r"\1"),
        (r"\{,\}", ","),
        (r"\\[,;:]|~|\\q?quad(?![A-Za-z])|\\\\", " "),
        (r"(?<=[\d)}])\*\*(?=[-+({\d])", "^"),
        (r"\\[()\[\]]|\*\*|__|`", " "),
        (r"\^\s*\(\s*([-+]?\d+)\s*\)", r"^{\1}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    )
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname|boxed|fbox|bf|rm)"
    r"\s*\{([^{}]*)\}"
)
_ENDS = re.compile(r"(?:[\s.,;:?\"*_]|(?<![\d)}!])!)+$")
MAX_NESTING = 8


def plain(text: str) -> str:
    """`text` in the one spelling above; "" when nothing is left."""
    text = _SUPERSCRIPTS.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPT)}}}", text)
    text = "".join(_vulgar(character) for character in text.translate(_CHARACTERS))
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    text = _NOTHING.sub("", text)
    for _ in range(MAX_NESTING):
        shorter = _TEXT.sub(r" \1 ", text)
        if shorter == text:
            break
        text = shorter
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _unwrapped(re.sub(r"\s+", " ", text))


def _vulgar(character: str) -> str:
    """½ as a fraction: NFKC would glue it to the digits before it."""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKC", character).partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}" if top and bottom else character
    return character


def _unwrapped(text: str) -> str:
    """Without what stands around the whole."""
    for _ in range(MAX_NESTING):
        before = text
        text = _ENDS.sub("", text.lstrip(' \t\n"*_,;:'))
        if len(text) > 1 and text[0] == text[-1] == "$":
            text = text[1:-1]
        if len(text) > 1 and text[0] + text[-1] in ("()", "{}") and _one_thing(text[1:-1]):
            text = text[1:-1]
        if text == before:
            break
    return text


def _one_thing(inside: str) -> bool:
    """Whether brackets around `inside` mean nothing: no list, and they are each other's."""
    return not re.search(r"[,;(){}\[\]]", inside)


def squeezed(text: str) -> str:
    """Without the spaces that separate no two words or numbers."""
    return re.sub(r"(?<![^\W_]) | (?![^\W_])", "", text)
