"""What a run was made from, by content: its data, its model, and the reference model of a KL term.

    found = fingerprint(model_path, train, held_out, reference_path=model_path if kl_coef else None)
    {"data.path": {"rows": 2048, "blake2b": "9c1f..."},
     "data.eval_path": {"rows": 256, "blake2b": "77a0..."},
     "model.path": {"config.json": "03be...", "model.safetensors": "b1d2...", "tokenizer.json": "51cc..."}}

    changes(stored, found)
    ["data.path: wanted rows 2048, got 2049", "data.path: wanted blake2b 9c1f..., got 4e0a..."]

Plain JSON values, to be stored in the run's directory and compared when the run is continued. Where a file
lies is not part of it: a copy of the same bytes is the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from g2rpo_fast.adapters.place import CONFIG, WEIGHTS, base_of, is_adapter

Content = dict[str, int | str]
"""Name -> count or digest."""
Fingerprint = dict[str, Content]
"""Configuration key -> (rows or name of a file) -> count or digest."""

MODEL_SUFFIXES = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py", ".safetensors", ".bin")
"""Of files that loading a model or a tokenizer can read."""
SHOWN_DIGITS = 12


def fingerprint(
    model_path: str, train: Content, held_out: Content | None = None, *, reference_path: str | None = None
) -> Fingerprint:
    """Reads every file whole: about 0.8 GB/s a core.

    Args:
        model_path: a directory, a single file, or a hub id whose files are in the local cache: call this
            after loading.
        train, held_out: of the data (see `file_content`).
        reference_path: model that a KL term is taken against; None = no such term.

    Raises:
        OSError: a file that cannot be read.
    """
    found: Fingerprint = {"data.path": train}
    if held_out is not None:
        found["data.eval_path"] = held_out
    found["model.path"] = _model(model_path)
    if reference_path is not None:
        same = reference_path == model_path
        found["reference"] = found["model.path"] if same else _model(reference_path)
    return found


def changes(
    stored: Mapping[str, Mapping[str, int | str]], found: Mapping[str, Mapping[str, int | str]]
) -> list[str]:
    """What differs, as "key: wanted X, got Y"; empty when all is the same."""
    return [
        f"{key}: wanted {name} {_shown(then.get(name))}, got {_shown(now.get(name))}"
        for key in dict.fromkeys((*stored, *found))
        for then, now in [(stored.get(key, {}), found.get(key, {}))]
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    ]


def _shown(value: int | str | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value[:SHOWN_DIGITS]}..."


def file_content(path: str) -> Content:
    """Of a file: lines that are not blank, and its bytes' digest."""
    with open(path, "rb") as file:
        rows = sum(1 for line in file if line.strip())
    return {"rows": rows, "blake2b": digest_of(Path(path))}


def _model(path: str) -> dict[str, int | str]:
    """Name -> digest of the file, or of those beside config.json, several at a time (hashing lets other
    threads run). Of adapters, theirs and their base's."""
    if is_adapter(path):
        own = (file for file in (CONFIG, WEIGHTS) if (Path(path) / file).is_file())
        return {file: digest_of(Path(path) / file) for file in own} | _model(base_of(path))
    if Path(path).is_file():
        return {Path(path).name: digest_of(Path(path))}
    from transformers.utils import CONFIG_NAME  # takes a second to import
    from transformers.utils.hub import cached_file

    config = cached_file(path, CONFIG_NAME, local_files_only=True)
    assert config is not None
    files = sorted(
        file for file in Path(config).parent.iterdir() if file.is_file() and file.suffix in MODEL_SUFFIXES
    )
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in files), pool.map(digest_of, files), strict=True))


def digest_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
