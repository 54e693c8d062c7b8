"""Where the items of an evaluation go."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from g2rpo_fast.files import writing


@contextmanager
def item_lines(name: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a JSON line. The file is `NAME.partial` until the block ends well; else that is
    left, and a note of the exception names it. None: nothing is written.

    Raises:
        ValueError: it cannot be written there.
        WriteError: it could, but no longer.
    """
    if name is None:
        yield lambda item: None
        return
    path = Path(name)
    partial = path.with_name(path.name + ".partial")
    if path.is_dir():
        raise ValueError(f"--out: wanted a file, got {name}, which is a directory")
    try:
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out: wanted a file that can be written, got {name}: {error.strerror}") from error
    count = 0

    def write(item: dict[str, Any]) -> None:
        nonlocal count
        with writing(partial):
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
            file.flush()
        count += 1

    with file:
        try:
            yield write
        except BaseException as error:
            if count:
                error.add_note(f"{count} problems are done, in {partial}")
            else:
                partial.unlink(missing_ok=True)
            raise
    os.replace(partial, path)
