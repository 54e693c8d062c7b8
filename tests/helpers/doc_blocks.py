"""The fenced blocks of the two READMEs and of docs/."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "kernels/README.md")
PAGES = (*READMES, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
"""On the line above a block that cannot be run here, with the reason."""
TITLE = re.compile(r'title="([^"]+)"')
"""The name of the file that a block is."""


@dataclass(frozen=True, kw_only=True)
class Block:
    page: str
    line: int
    """Of its fence, from 1."""
    language: str
    title: str | None
    text: str
    not_run: str | None
    """Why it cannot be run here."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Of a block of shell: lines without comments, continued ones joined."""
        joined = self.text.replace("\\\n", " ")
        lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line]


def blocks_of(page: str, text: str) -> list[Block]:
    """Raises ValueError for a fence that never closes."""
    found: list[Block] = []
    lines = text.splitlines()
    opened: tuple[int, str] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = number, fence["info"].strip()
            continue
        begin, info = opened
        title, reason = TITLE.search(info), NOT_RUN.fullmatch(lines[begin - 1] if begin else "")
        found.append(
            Block(
                page=page,
                line=begin + 1,
                language=info.split()[0] if info else "",
                title=title[1] if title else None,
                text="\n".join(lines[begin + 1 : number]) + "\n",
                not_run=reason[1] if reason else None,
            )
        )
        opened = None
    if opened is not None:
        raise ValueError(f"{page}:{opened[0] + 1}: a block that never closes")
    return found


def all_blocks(pages: Iterable[str] = PAGES) -> list[Block]:
    return [block for page in pages for block in blocks_of(page, (ROOT / page).read_text())]
