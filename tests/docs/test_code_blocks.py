"""Every code block of the README and of docs/ does what the page says.

Files that a page shows are written, Python is run as it stands (the blocks of a page in one namespace), TOML
is read by the reader of configurations, and commands are run by the program or checked by its parser.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from doc_blocks import PAGES, Block, all_blocks, blocks_of
from doc_commands import check_command, forgotten, run_training
from g2rpo_fast.cli import main
from g2rpo_fast.config import load_config
from g2rpo_fast.embedded.untrained import prepare_untrained

BLOCKS = all_blocks()
LANGUAGES = {"sh", "python", "toml", "json", "text"}
NOT_RUN = {"docs/benchmarks.md": "takes a GPU"}
"""Page -> why a block of it cannot be run here: all of them."""
RUN = """--run.dir runs/first --run.steps 2 --run.prompts-per-step 4 --run.threads 1 --embedded.train-rows 64
    --embedded.warm-start-steps 8 --embedded.eval-rows 4 --rollout.group-size 4 --evaluate.every 1
    --evaluate.profile-prompts 0 --checkpoint.every 1"""
"""Options of the run that pages look at, in `runs/first`."""
ENDED = (None, 0, 3)
"""How a run that trains may end: not run here; done; done without a signal, rare in so small a model."""
ROWS = {
    "test.jsonl": [{"prompt": "What is 2 + 2?", "answer": "4", "trace": " 2 + 2 = 4"}],
    "gsm8k_train.jsonl": [{"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}],
    "gsm8k_test.jsonl": [{"question": "What is 2 + 4?", "answer": "2 + 4 = <<2+4=6>>6\n#### 6"}],
    "HumanEval.jsonl": [
        {
            "prompt": 'def double(x):\n    """Twice x."""\n',
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            "entry_point": "double",
        }
    ],
}
"""Files that a reader has, by the names that the pages use; `rows.jsonl` is shown on one."""


def of(page: str, language: str) -> list[Block]:
    return [
        block for block in BLOCKS if (block.page, block.language) == (page, language) and not block.not_run
    ]


TITLED = [block for block in BLOCKS if block.title]
MODULES = [str(block.title).removesuffix(".py") for block in TITLED if block.language == "python"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has in a folder: a model, data, the files that pages show, two runs."""
    folder = tmp_path_factory.mktemp("reader")
    for block in TITLED:
        (folder / str(block.title)).write_text(block.text)
    for name, rows in ROWS.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_untrained(folder, [block.text for block in BLOCKS], seed=0).rename(folder / "my_model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "embedded", *RUN.split()]) in (0, 3)
    shutil.copytree(folder / "runs" / "first", folder / "runs" / "second")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy that a page may change; the current directory. Threads of PyTorch are afterwards as before."""
    threads = torch.get_num_threads()
    copy = tmp_path / "reader"
    shutil.copytree(whole, copy)
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    yield copy
    forgotten(MODULES)
    torch.set_num_threads(threads)


def test_every_block_says_its_language() -> None:
    assert len(BLOCKS) > 60
    assert {block.place: block.language for block in BLOCKS if block.language not in LANGUAGES} == {}


def test_no_command_is_hidden_in_a_block_of_text() -> None:
    programs = ("g2rpo-fast ", "make ", "pip ", "python ", "pytest ", "$ ")
    lines = [(b.place, line) for b in BLOCKS if b.language == "text" for line in b.text.splitlines()]
    assert [place for place, line in lines if line.startswith(programs)] == []


def test_blocks_that_are_not_run_are_these_few() -> None:
    assert {block.page: block.not_run for block in BLOCKS if block.not_run} == NOT_RUN
    assert sum(block.not_run is not None for block in BLOCKS) == len(NOT_RUN)


def test_files_that_pages_show_have_names_of_their_own() -> None:
    names = [block.title for block in TITLED]
    assert len(set(names)) == len(names)
    assert {"rows.jsonl", "sums.toml", "my_rewards.py", "my_method.py", "my_method.toml"} <= set(names)


@pytest.mark.parametrize("page", [page for page in PAGES if of(page, "python")])
def test_python_of_a_page_runs_as_it_stands(page: str, folder: Path) -> None:
    namespace = {"__name__": "page"}
    for block in of(page, "python"):
        exec(compile(block.text, block.place, "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if of(page, "toml")])
def test_toml_of_a_page_is_read(page: str, folder: Path) -> None:
    for block in of(page, "toml"):
        file = folder / (block.title or "block.toml")
        file.write_text(block.text)
        if any(f"--method {file.name}" in other.text for other in BLOCKS):
            load_config("embedded", method=file.name)
        else:
            load_config(file.name)


def test_json_of_pages_is_json() -> None:
    lines = [line for block in BLOCKS if block.language == "json" for line in block.text.splitlines()]
    assert len(lines) > 2
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("page", [page for page in PAGES if of(page, "sh")])
def test_commands_of_a_page_are_those_of_the_program(
    page: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {}
    for block in of(page, "sh"):
        for command in block.commands:
            try:
                check_command(command)
            except (AssertionError, ValueError, OSError, SystemExit) as error:
                wrong[f"{block.place}: {command}"] = f"{error} {capsys.readouterr().err}"
    assert wrong == {}


@pytest.mark.deep
@pytest.mark.parametrize("page", [page for page in PAGES if of(page, "sh")])
def test_what_trains_on_a_page_trains(page: str, folder: Path) -> None:
    commands = [command for block in of(page, "sh") for command in block.commands]
    found = {command: run_training(command, f"runs/{number}") for number, command in enumerate(commands)}
    assert {command: status for command, status in found.items() if status not in ENDED} == {}


@pytest.mark.parametrize(
    "command",
    [
        "g2rpo-fast train sums.toml --optim.learning-rate 1",
        "g2rpo-fast train sums.toml --terms.use clip klx",
        "g2rpo-fast train sums.toml --data.path not_there.jsonl",
        "g2rpo-fast eval runs/first test.jsonl --sample 3",
        "g2rpo-fast methods gspoo",
        "make tests",
        "make test PYTEST_ARG=x",
        'pip install "g2rpo-fast[dat]"',
        "pytest benchmarks/bench_step.py -k paded --benchmark",
        "python benchmarks/show.py --tables",
        "conda install g2rpo-fast",
    ],
)
def test_a_mistyped_command_is_found(command: str, folder: Path) -> None:
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        check_command(command)


def test_blocks_are_read_with_their_titles_and_reasons() -> None:
    text = (
        'x\n```python title="a.py"\n1\n```\n<!-- not run: takes a GPU -->\n```sh\na \\\n  b  # c\n# d\n```\n'
    )
    first, second = blocks_of("page.md", text)
    assert (first.language, first.title, first.text, first.place) == ("python", "a.py", "1\n", "page.md:2")
    assert (second.not_run, second.commands) == ("takes a GPU", ["a    b"])
    with pytest.raises(ValueError, match=r"page\.md:1: a block that never closes"):
        blocks_of("page.md", "```\n1")
