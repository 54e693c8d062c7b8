"""What a configuration names on this disk is there, and fits: looked at before PyTorch is loaded."""

from __future__ import annotations

from g2rpo_fast.config import Config
from g2rpo_fast.data.settled import check_places
from g2rpo_fast.embedded import UNTRAINED
from g2rpo_fast.model.gguf import gguf_file, is_gguf
from g2rpo_fast.model.read import check_place
from g2rpo_fast.run_directory import check_settings


def check_paths(config: Config) -> None:
    """Reads no data and no weights, changes nothing, and imports nothing that takes long.

    Raises:
        ValueError: no such data, model, run or checkpoint; a run directory that holds a run with other
            settings. A line that names the key.
    """
    check_settings(config)
    data, model = config.data, config.model
    if data.path is None and (model.path == UNTRAINED or data.format != "columns"):
        raise ValueError(
            f"data.path: wanted a file of JSON lines in the format {data.format!r}, got none "
            "(the embedded task's rows are for its own model and format)"
        )
    if data.path is not None:
        check_places(data)
    if model.path is not None and is_gguf(model.path):
        gguf_file(model.path)
    elif model.path is not None:
        check_place(model.path)
