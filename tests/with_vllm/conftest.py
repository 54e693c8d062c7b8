"""Tests that need a real vLLM; not collected where there is none.

Not called tests/vllm: `tests` is on pytest's path, where a folder of that name passes for an installed vLLM.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What engines leave behind is told apart from what those of another test process have there."""
    tmp_path_factory.getbasetemp()  # stays where it is
    with (
        tempfile.TemporaryDirectory(prefix="g2rpo-", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One process for all vLLM engines of these tests; the trainer is this process."""
    from engine_child import EngineChild

    child = EngineChild(tmp_path_factory.mktemp("engines"))
    yield child
    child.close()
