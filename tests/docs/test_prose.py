"""What the README and docs/ speak of in a line is there: keys, commands, targets, pages."""

from __future__ import annotations

import re
import tomllib

import pytest
from g2rpo_kernels.linear_logprob.chunks import DEVICE_CHUNK_BYTES

from doc_blocks import PAGES, ROOT
from g2rpo_fast.commands import COMMANDS
from g2rpo_fast.config import PIECES, section_types
from g2rpo_fast.config.choice import settings_of
from g2rpo_fast.config.renamed import KEYS
from generate.sizes_page import CARDS, HOW, SIZES, fit

NO_KEYS = {"rollout.prompt", "samples.jsonl", "vllm.log"}
"""Written as keys are: what a rollout has, files of a run directory."""


def prose_of(page: str) -> str:
    """Without its blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Code within lines."""
    return re.findall(r"`([^`]+)`", " ".join(text.split()))


def known_keys() -> set[str]:
    keys = {f"{name}.{key}" for name, cls in section_types().items() for key in settings_of(cls)}
    keys |= {f"{section}.{use}" for section, known in PIECES.items() for use in (*known, "use")}
    return keys | {f"objective.{key}" for key in KEYS} | NO_KEYS


def unknown_keys(text: str) -> list[str]:
    """Section and key of what looks like a key and is none; `reward.code_*` stands for several."""
    sections, known, found = {*section_types(), *PIECES}, known_keys(), []
    for span in spans(text):
        for section, key, star in re.findall(r"(?<![\w./])(?:--)?([a-z_]+)\.([a-z][\w-]*)(\*?)", span):
            name = f"{section}.{key.replace('-', '_')}"
            bare = name.replace(".no_", ".")
            is_one = any(k.startswith(name) for k in known) if star else {name, bare} & known
            if section in sections and not is_one and not span.endswith((".toml", ".py", ".json", ".md")):
                found.append(name)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_a_page_speaks_of_are_keys(page: str) -> None:
    assert unknown_keys(prose_of(page)) == []


def test_the_check_of_keys_sees_them() -> None:
    text = "`run.step`, `--guidance.no-enable` and `reward.cod_*`; `run.steps = 3`, `--data.on-bad-row`"
    assert unknown_keys(text) == ["run.step", "guidance.no_enable", "reward.cod_"]
    assert unknown_keys("`terms.clip`, `terms.klip`, `objective.clip_low`") == ["terms.klip"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_speaks_of_are_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = prose_of(page)
    commands = [span.split()[1] for span in spans(text) if span.startswith("g2rpo-fast ")]
    assert [name for name in commands if name not in COMMANDS] == []
    targets = [span.split()[1] for span in spans(text) if span.startswith("make ")]
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    asked = re.findall(r"g2rpo-fast\[([\w-]+)\]", text)
    assert [name for name in asked if name not in extras] == []
    files = [
        word
        for span in spans(text)
        for word in re.findall(r"(?:tests|benchmarks|examples|docs)/[\w./-]+", span)
    ]
    assert [name for name in files if not ((ROOT / name).exists() or name.endswith("/FILE"))] == []


def test_links_of_the_readme_lead_to_pages() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_tables_of_the_readme_say_what_the_pages_say() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("benchmarks.md", "precision.md"))
    tables = [row for row in rows if ", memory " in row or "float32" in row]
    assert len(tables) == 7
    assert [row for row in tables if row not in pages] == []


def test_the_sizes_that_are_claimed_are_those_that_fit_a_gpu() -> None:
    fitting = {
        how: [size.name for size in SIZES if any(map(fit(size, how).recomputing().positions, CARDS.values()))]
        for how in HOW
    }
    every = ["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B"]
    assert fitting == dict.fromkeys(HOW, every) | {"all weights": every[:3]}
    within = fit(SIZES[3], "the same, steps in backward").recomputing()
    assert within.positions(CARDS["80 GB"]) > 25_000
    assert within.positions(CARDS["48 GB"]) > 3000
    largest = fit(SIZES[3], "LoRA"), fit(SIZES[3], "QLoRA").recomputing()
    assert largest[0].positions(CARDS["48 GB"]) > 2000
    assert largest[1].positions(CARDS["24 GB"]) > 7000
    for page in ("README.md", "docs/index.md"):
        assert "one GPU for 0.5B to 8B](" in (ROOT / page).read_text()
    num_parameters, vocabulary, width = 596_049_920, 151_936, 1024
    loss = 2 * 4 * vocabulary * width + DEVICE_CHUNK_BYTES  # d head, d embeddings; a chunk of logits
    assert fit(SIZES[0]).held_bytes == (4 + 4 + 8 + 2) * num_parameters + loss
