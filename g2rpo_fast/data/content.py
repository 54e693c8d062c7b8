"""What sources hold, by digest: a file by its bytes, other rows by their values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from g2rpo_fast.data.formats import line_rows, reader_of
from g2rpo_fast.data.opened import PACKED
from g2rpo_fast.data.sources import NamedRows, Source, rows_of
from g2rpo_fast.fingerprint import Content, file_content


def content_of(sources: Sequence[Source]) -> Content:
    """Of one source, or of several in this order."""
    found = [_content(source) for source in sources]
    if len(found) == 1:
        return found[0]
    digest = hashlib.blake2b("".join(str(one["blake2b"]) for one in found).encode(), digest_size=16)
    return {"rows": sum(int(one["rows"]) for one in found), "blake2b": digest.hexdigest()}


def _content(source: Source) -> Content:
    if isinstance(source, str):
        found = file_content(source)
        if reader_of(source, key="data.path")[0] is line_rows and not source.endswith(PACKED):
            return found
        return {**found, "rows": sum(1 for _ in rows_of(source, key="data.path")[1])}
    return _rows_content(source)


def _rows_content(source: NamedRows) -> Content:
    digest = hashlib.blake2b(digest_size=16)
    for row in source.rows:
        digest.update(json.dumps(row, default=str).encode() + b"\n")
    return {"rows": len(source.rows), "blake2b": digest.hexdigest()}
