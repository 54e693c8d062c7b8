"""What can be imported without what: the ops, the planner and the update where the program's own packages are
missing, the package's names in any order, a configuration without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "transformers", "triton", "g2rpo_kernels", "vllm", "tokenizers", "safetensors.torch", "sympy",
    "scipy", "plotext", "jinja2",
)  # fmt: skip
"""What takes long to import, and no configuration needs."""


def without(*missing: str) -> str:
    """What makes a process one where these packages are not installed."""
    return f"""
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.split(".")[0] in {missing!r} else found(name, package)
importlib.util.find_spec = find_spec
"""


BARE = without("pydantic", "annotated_types", "tyro", "plotext", "math_verify", "vllm")


def run(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "modules",
    [
        "g2rpo_kernels, g2rpo_fast.tree, g2rpo_fast.rollout.sync",
        "on_gpu, bench_gpu_step, bench_attention, bench_linear_loss, bench_policy_loss, sync_on_gpu, tune",
    ],
)
def test_what_a_bare_machine_runs_imports_there(modules: str) -> None:
    done = run(f"{BARE}\nimport {modules}\nprint('imported')")
    assert done.stdout == "imported\n", done.stderr


def test_an_update_s_parts_are_built_where_nothing_can_check_their_sections() -> None:
    code = (
        "import g2rpo_fast.learner, g2rpo_fast.engine, g2rpo_fast.model.load; from g2rpo_fast.optim import *"
    )
    done = run(f"{BARE}\n{code}\nprint(OptimConfig(lr=1e-3).lr)")
    assert done.stdout == "0.001\n", done.stderr


EVERY_MODULE = """
import importlib, pkgutil
import g2rpo_fast
names = [module.name for module in pkgutil.walk_packages(g2rpo_fast.__path__, "g2rpo_fast.")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        assert missing.name in ("vllm", "mlflow", "wandb", "trackio", "tensorboard"), missing
print(len(names) > 100, "triton" in sys.modules)
"""


def test_the_program_needs_no_triton_before_a_gpu_does() -> None:
    """Triton is for Linux, and where vLLM's CPU build is installed there is none: only kernels import it.
    What else may be missing are the packages of extras."""
    done = run(f"{without('triton')}\n{EVERY_MODULE}")
    assert done.stdout == "True False\n", done.stderr


@pytest.mark.parametrize(
    "order",
    [
        "from g2rpo_fast import evaluate, train",
        "from g2rpo_fast.train import TrainResult; from g2rpo_fast import evaluate, train, Config",
        "from g2rpo_fast.evaluate import Sampler; import g2rpo_fast; evaluate, train = g2rpo_fast.evaluate, "
        "g2rpo_fast.train",
    ],
)
def test_names_are_the_functions_whoever_imports_their_modules_first(order: str) -> None:
    functions = "inspect.isfunction(train), train.__module__, evaluate.__module__"
    done = run(f"{order}\nimport inspect; print({functions})")
    assert done.stdout == "True g2rpo_fast.train g2rpo_fast.evaluation.public\n", done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    done = run("import g2rpo_fast; print(hasattr(g2rpo_fast, 'trian'), sorted(g2rpo_fast.__all__))")
    assert (
        done.stdout
        == "False ['Callback', 'Config', 'Evaluation', 'TrainResult', 'evaluate', 'sample', 'train']\n"
    )


def test_a_configuration_of_any_method_is_read_without_what_only_a_run_needs() -> None:
    code = f"""
import sys
from g2rpo_fast.config import load_config
from g2rpo_fast.config.read import read_values, sections_of
from g2rpo_fast.methods import load_methods
methods = [name for name, method in load_methods().items() if method.runnable and method.settings]
read = [sections_of(read_values("embedded", method=name)[0]) for name in methods]
load_config("embedded"), load_config("gsm8k")
print(len(read) > 20, [name for name in {HEAVY} if name in sys.modules])
"""
    done = run(code)
    assert done.stdout == "True []\n", done.stderr


def test_help_and_mistakes_are_answered_without_what_only_a_run_needs(tmp_path: Path) -> None:
    (tmp_path / "key.toml").write_text("[run]\nstpes = 3\n")
    (tmp_path / "value.toml").write_text("[run]\nsteps = -3\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"run": {"threads": 1, "seed": 7}}')
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    words = (["--help"], ["--run.stpes", "3"], ["--run.steps", "x"], ["--run.steps", "-1"], ["nosuch.toml"])
    files = ([str(tmp_path / "key.toml")], [str(tmp_path / "value.toml")], ["--method", "grop"])
    paths = (
        ["--run.fork", "nosuch"],
        ["--run.fork", f"{tmp_path}/run:3"],
        ["embedded", "--run.dir", f"{tmp_path}/run", "--run.seed", "8"],
        ["gsm8k"],
        ["gsm8k", "--data.path", "nosuch.jsonl"],
        ["gsm8k", "--data.path", f"{rows}", "--data.eval-path", "nosuch.jsonl"],
        ["gsm8k", "--data.path", f"{rows}", "--model.path", "./nosuch"],
    )
    code = f"""
import sys
from g2rpo_fast.cli import main
statuses = set()
for words in {(*words, *files, *paths)}:
    try:
        statuses.add(main(["train", *words]))
    except SystemExit as stop:
        statuses.add(stop.code)
print(sorted(statuses), [name for name in {HEAVY} if name in sys.modules])
"""
    before = sorted(tmp_path.rglob("*"))
    done = run(code)
    assert done.stdout.splitlines()[-1] == "[0, 2] []", done.stderr
    assert "stpes; the nearest name is run.steps" in done.stderr
    for said in (
        "run.fork: wanted a run's directory, or RUN:STEP, got nosuch",
        "run.fork: wanted a step from none, got ",
        "run holds a run with other settings (",
        "data.path: wanted a file of JSON lines in the format 'gsm8k', got none",
        "data.path: wanted a file of JSON lines, got 'nosuch.jsonl', which is not a file",
        "data.eval_path: wanted a file of JSON lines, got 'nosuch.jsonl', which is not a file",
        "model.path: wanted a model's directory or a hub id, got ./nosuch: there is no such directory",
    ):
        assert said in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
