"""What `mkdocs build` calls: it fills in what is generated, so that none of it can go stale.

A page names what belongs in a place by a line of its own, "*Filled in by `make docs`: methods.*", so that who
reads the file itself knows what is missing. A link that leaves docs/, such as `../examples/plain_loop.py`, is
to a file of the repository: the site gets a copy of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from generate.configuration_page import options_page, pieces_page, sections_page
from generate.methods_page import methods_page
from generate.metrics_page import columns_page, metrics_page
from generate.models_page import models_page
from generate.sizes_page import sizes_page

ROOT = Path(__file__).parents[1]
GENERATED: dict[str, Callable[[], str]] = {
    "sections": sections_page,
    "pieces": pieces_page,
    "options": options_page,
    "methods": methods_page,
    "metrics": metrics_page,
    "columns": columns_page,
    "sizes": sizes_page,
    "models": models_page,
}
PLACE = re.compile(r"^\*Filled in by `make docs`: (\w+)\.\*$", re.MULTILINE)
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)\)")
"""A link to a file of the repository that is no page."""
COPIES = "repository"
"""Where the site has these."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page in files.documentation_pages():
        for name in OUTSIDE.findall(page.content_string):
            if not (ROOT / name).is_file():
                raise PluginError(f"{page.src_uri}: no file {name}")
            place = f"{COPIES}/{name}"
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Generated parts and links to copies of files."""
    unknown = [name for name in PLACE.findall(markdown) if name not in GENERATED]
    if unknown:
        raise PluginError(f"{page.file.src_uri}: wanted one of {', '.join(GENERATED)}, got {unknown[0]}")
    filled = PLACE.sub(lambda found: GENERATED[found[1]](), markdown)
    return OUTSIDE.sub(rf"]({COPIES}/\1)", filled)
