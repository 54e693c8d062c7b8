"""Plain text as Markdown: what a docstring says must not be read as mark-up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def prose(text: str) -> str:
    """One line of Markdown that shows the text; what stands between backticks stays code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") and len(part) > 1 else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\*_\[\]#`~])", r"\\\1", text).replace("|", "&#124;")


def code(text: str) -> str:
    """As code in a line, backticks of its own included."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def block(text: str) -> str:
    """As it stands, in a block whose lines wrap."""
    return f"```{{ .text .wrapped }}\n{text.strip()}\n```"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
