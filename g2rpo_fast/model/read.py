"""Files of a model that cannot be read, as one line that names the configuration key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_place(path: str) -> None:
    """ValueError if `path` is written as a directory, not as a hub id, and is none."""
    written_as_one = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if written_as_one and not Path(path).is_dir():
        raise ValueError(
            f"model.path: wanted a model's directory or a hub id, got {path}: there is no such directory"
        )


def check_json_files(path: str) -> None:
    """ValueError naming the file in directory `path` that is no JSON: transformers ignores some of them."""
    for file in sorted(Path(path).glob("*.json")):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.path: wanted JSON in {file}, got what cannot be read: {error}"
            ) from error


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Around a `from_pretrained` of `path`, a GGUF file too; `what`: a model, a tokenizer.

    Raises:
        ValueError: for whatever the files (or the network) made it raise: OSError, ValueError, KeyError,
            TypeError and others of transformers, SafetensorError, plain Exception of tokenizers.
    """
    import torch  # takes seconds, and `check_place` is for before them

    if not Path(path).is_file():
        check_place(path)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"model.path: wanted {what}, got {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "it cannot be read"
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
