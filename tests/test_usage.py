"""A newcomer's mistakes in TOML and on the command line: one line that names the key, and status 2."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from g2rpo_fast.cli import main, read_arguments
from g2rpo_fast.config import load_config

PRESETS = "embedded, gsm8k, humaneval, smollm2"


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, without the program's name, of `train` with these words."""
    try:
        status = main(["train", *words])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("g2rpo-fast: ")
    return err.removeprefix("g2rpo-fast: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optim.lr nan", "optim.lr: wanted a finite number, got nan"),
        ("--optim.lr=fast", "--optim.lr: could not convert string to float: 'fast'"),
        ("--optim.lr", "Missing value for argument '"),
        ("--run.steps 1.5", "--run.steps: invalid literal for int() with base 10: '1.5'"),
        ("--run.threads some", "--run.threads: no type matching"),
        ("--optim.lrr 3", "Unrecognized options: --optim.lrr, 3; perhaps you meant --optim.lr;"),
        ("--optm.lr 3", "Unrecognized options: --optm.lr, 3; perhaps you meant --optim.lr;"),
        ("--optim 3", "Unrecognized options: --optim, 3; perhaps you meant --optim."),
        ("--optim.schedule cosin", "invalid choice 'cosin' for argument '--optim.schedule'. Expected one of"),
        ("--guidance.enabled maybe", "Unrecognized options: maybe"),
        ("--reward.weights math 1", "reward.weights: wanted names from ['exact_match'], got ['math']"),
        ("--reward.weights exact_match inf", "reward.weights.exact_match: wanted a finite number, got inf"),
        ("--optim.minibatches 17", "optim.minibatches: wanted at most run.prompts_per_step = 16"),
        (
            "--rollout.engine vllm --evaluate.temperature 0.001",
            "evaluate.temperature: wanted at least 0.01 with",
        ),
        ("embedded gsm8k", "Unrecognized options: gsm8k"),
        (
            "optim.lr=3",
            f"CONFIG: wanted a TOML file or one of the presets {PRESETS}, got 'optim.lr=3'",
        ),
        (
            "embeded",
            f"CONFIG: wanted a TOML file or one of the presets {PRESETS}, got 'embeded'; the nearest",
        ),
    ],
)
def test_wrong_words_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(words.split(), capsys).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlrr = 1", "unknown key optim.lrr; the nearest name is optim.lr"),
        ("[optm]\nlr = 1", "unknown key optm; the nearest name is optim"),
        ('"run.steps" = 3', "unknown key run.steps; known: adapter, checkpoint"),
        ("optim = 3", "optim: wanted a section [optim], got 3"),
        ("[[run]]\nsteps = 3", "run: wanted a section [run], got [{'steps': 3}]"),
        ("[optim]\nlr = 'fast'", "optim.lr: wanted a number, got 'fast'"),
        ("[optim]\nlr = 2020-01-01", "optim.lr: wanted a number, got datetime.date(2020, 1, 1)"),
        ("[optim]\nlr = -inf", "optim.lr: wanted a finite number, got -inf"),
        (
            "[optim]\nschedule = 'cosin'",
            "optim.schedule: wanted 'constant', 'linear' or 'cosine', got 'cosin'",
        ),
        ("[run]\nsteps = 3\n[run]\nsteps = 4", "not valid TOML: Cannot declare ('run',) twice"),
        ("run.steps = 3\nrun.steps = 4", "not valid TOML: Cannot overwrite a value"),
    ],
)
def test_wrong_toml_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    assert refusal([str(file)], capsys).startswith(f"{file}: {message}")


def test_what_is_no_toml_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    utf16 = tmp_path / "utf16.toml"
    utf16.write_text("[run]", encoding="utf-16")
    assert refusal([str(utf16)], capsys).startswith(f"{utf16}: wanted text in UTF-8, got b'")
    for path in (tmp_path, tmp_path / "none.toml", ""):
        assert refusal([str(path)], capsys).startswith("CONFIG: wanted a TOML file or one of the presets")
    long = "x" * 5000
    assert refusal([long], capsys) == f"{long}: wanted a file that can be read, got 'File name too long'"


def test_a_long_message_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    template = "word " * 30 + "x" * 200
    said = refusal(["--data.template", template], capsys)
    assert said == f"data.template: wanted a text with {{prompt}} in it, got {template!r}"


def test_empty_and_marked_toml_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("")
    assert load_config(file).run.steps == 100
    file.write_text("[run]\nsteps = 3", encoding="utf-8-sig")
    assert load_config(file).run.steps == 3


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"g2rpo-fast {version('g2rpo-fast')}\n"


def test_an_option_given_twice_counts_once_and_an_empty_list_is_empty() -> None:
    config = read_arguments(["--run.steps", "3", "--run.steps", "4", "--rollout.stop-strings"])
    assert (config.run.steps, config.rollout.stop_strings) == (4, ())


def test_the_line_is_the_same_in_a_terminal_without_line_drawing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from g2rpo_fast.cli import read_arguments; read_arguments(['--optm.lr=3'])"],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    said = "Unrecognized options: --optm.lr=3; perhaps you meant --optim.lr; --help lists every option"
    assert done.stderr == f"g2rpo-fast: {said}\n"


NOT_LONG = [
    ([], 0),
    (["trian"], 2),
    (["--version"], 0),
    (["plan", "--help"], 0),
    (["plan", "--seconds", "none"], 2),
    (["methods", "--jsno"], 2),
    (["eval", "/none", "rows.jsonl"], 2),
    (["sample", "--help"], 0),
    (["export", "/none", "directory"], 2),
]


@pytest.mark.parametrize(("words", "status"), NOT_LONG, ids=str)
def test_usage_waits_for_no_import_of_pytorch(words: list[str], status: int) -> None:
    code = """
import atexit, sys
atexit.register(lambda: print({"torch", "transformers"} & sys.modules.keys()))
from g2rpo_fast.cli import main
"""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main({words}))"],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("set()\n")
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_a_run_still_loads_is_one_line(tmp_path: Path) -> None:
    """The signal comes when the first of PyTorch is imported: long before a run could handle it."""
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, AtTorch())
from g2rpo_fast.cli import main
sys.exit(main(["train"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "g2rpo-fast: stopped by Ctrl-C\n")
    assert list(tmp_path.iterdir()) == []
