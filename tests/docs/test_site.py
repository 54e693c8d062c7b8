"""The pages build strictly and without a network, load nothing from another host, and leave nothing out."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from doc_blocks import PAGES, ROOT
from g2rpo_fast.config import PIECES, section_types
from g2rpo_fast.config.choice import settings_of
from g2rpo_fast.methods import load_methods
from g2rpo_fast.metric_names import COLUMNS, METRICS

pytestmark = pytest.mark.skipif(
    find_spec("mkdocs") is None, reason='mkdocs is missing: pip install -e ".[docs]"'
)

BUILD = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"no network: {event} {arguments[1:]}")

sys.addaudithook(refuse)
from mkdocs.__main__ import cli
cli()
"""


def built(settings: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, "build", "--strict", "-f", settings, "-d", site]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a browser fetches for a page by itself, and the ids and links in it."""

    LOADING = ("src", "srcset", "data", "poster", "action", "background")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.fetched += [given[name] for name in self.LOADING if name in given]
        self.fetched += re.findall(r"url\((.*?)\)", given.get("style", ""))
        if "href" in given:
            (self.links if tag == "a" else self.fetched).append(given["href"])
        self.ids |= {given["id"]} if "id" in given else set()


def foreign(address: str) -> bool:
    parts = urlsplit(address.strip("'\" "))
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def read(page: Path) -> Loads:
    return Loads(page.read_text())


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 18
    assert {page.name: [a for a in read(page).fetched if foreign(a)] for page in pages} == {
        page.name: [] for page in pages
    }
    assert any(read(site / "benchmarks.html").fetched)
    for file in site.rglob("*.css"):
        text = file.read_text()
        assert [a for a in re.findall(r"url\((.*?)\)", text) if foreign(a)] == [], file.name
        assert "@import" not in text
    for page in pages:  # what the theme's script would fetch: diagrams' renderer, a repository's stars
        text = page.read_text()
        assert 'class="mermaid"' not in text
        assert 'data-md-component="source"' not in text


def test_the_check_of_hosts_sees_them() -> None:
    text = '<img src="//a.b/c"><link href="https://d.e/f"><p style="x: url(http://g)"><a href="https://h">'
    assert list(map(foreign, Loads(text).fetched)) == [True, True, True]
    assert not any(map(foreign, ["assets/a.js", "../b.css", "data:image/png;base64,x", "#c"]))


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    pages = {page: read(page) for page in site.glob("*.html") if page.name != "404.html"}
    broken = []
    for page, found in pages.items():
        for link in filter(lambda link: not foreign(link), found.links):
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_every_page_is_in_the_navigation(site: Path) -> None:
    links = set(read(site / "index.html").links)
    names = {Path(page).with_suffix(".html").name for page in PAGES if page.startswith("docs/")}
    assert names - links - {"index.html"} == set()


def test_generated_pages_have_all_there_is(site: Path) -> None:
    methods, configuration, metrics = (
        read(site / "methods.html").ids,
        html.unescape((site / "configuration.html").read_text()),
        html.unescape((site / "metrics.html").read_text()),
    )
    assert [page.name for page in site.glob("*.html") if "Filled in by" in page.read_text()] == []
    assert set(load_methods()) - methods == set()
    keys = [f"{name}.{key}" for name, cls in section_types().items() for key in settings_of(cls)]
    pieces = [(f"{section}.{use}", cls) for section, known in PIECES.items() for use, cls in known.items()]
    keys += [f"{name}.{key}" for name, cls in pieces for key in settings_of(cls)]
    assert len(keys) > 200
    assert [key for key in keys if f"<code>{key}</code>" not in configuration] == []
    assert {name for name, _ in pieces} - read(site / "configuration.html").ids == set()
    names = [name for metric in METRICS for name in metric.names] + [column.heading for column in COLUMNS]
    assert [name for name in names if f"<code>{name}</code>" not in metrics] == []


def test_a_key_is_shown_with_its_type_bounds_default_and_meaning(site: Path) -> None:
    text = html.unescape((site / "configuration.html").read_text())
    row = next(row for row in text.split("<tr>") if "<code>guidance.share</code>" in row)
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]
    assert cells[:3] == ["guidance.share", "number, at least 0, at most 1", "0.25"]
    assert cells[3].startswith("alpha, the guided share of a group.")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("*Filled in by `make docs`: nothing.*", "index.md: wanted one of sections, "),
        ("[a](../not/there.py)", "index.md: no file not/there.py"),
        ("[a](not_there.md)", "not_there.md"),
    ],
)
def test_a_mistake_in_a_page_fails_the_build(text: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{text}\n")
    settings = tmp_path / "mkdocs.yml"
    settings.write_text(
        f"site_name: x\ntheme: {{name: material, font: false}}\nhooks: [{ROOT / 'docs/hooks.py'}]\n"
    )
    done = built(settings, tmp_path / "site")
    assert done.returncode == 1
    assert wanted in done.stderr
