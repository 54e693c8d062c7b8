"""Settings of all tests, and how they are spread over the worker processes of pytest-xdist (`-n`)."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, for the processes that tests start too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

MOST_WORKERS = 4
"""Each takes up to 2 GB, several with an engine beside it."""


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one a core; with a GPU none beside this process, since the tests share it."""
    cores = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    return 0 if cores == 1 or torch.cuda.is_available() else cores


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file stay together, with their fixtures; slow ones go one by one, before all others."""
    for item in items:
        if not any(item.iter_markers("slow")) and not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(key=lambda item: not any(item.iter_markers("slow")))
