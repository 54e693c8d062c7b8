"""A tiny run that the tests of this folder look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from g2rpo_fast import train
from runs import quiet, tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, with checkpoints of 2 and 4, and of the best."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_config(directory, optim={"lr": 1e-3}, evaluate={"profile_prompts": 0}), show=quiet)
    return directory
