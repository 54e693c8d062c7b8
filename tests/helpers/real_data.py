"""Where data of others lie on a machine that has them: beside the repository."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[3] / "shared" / "data"
