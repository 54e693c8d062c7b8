"""The shape of the code: import layers, sizes of files and functions, and the few habits that are banned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAGES = {
    "data", "guidance", "rollout", "rewards", "objective", "tree", "model", "optim", "checkpoint", "embedded",
    "credit", "loggers",
}  # fmt: skip
LAYERS: dict[str, list[set[str]]] = {
    "g2rpo_fast": [
        {"types", "files", "methods", "metric_names", "doctor", "progress", "versions"},
        {"step_log"},
        {"metrics", "interrupts", "cpu", "bounds", "backbone", "usage", "own", "extras"},
        {"report"},
        {"order", "prompt_store", "adapters"},
        {"fingerprint", "memory"},
        {"pieces"},
        {"trial", "callbacks"},
        STAGES,
        {"select", "rounds", "shaping", "units"},
        {"evaluate", "learner", "samples", "step_metrics"},
        {"config"},
        {"fork"},
        {"run_directory", "run_state", "engine", "recipe", "model_source"},
        {"paths", "origins", "models"},
        {"assemble"},
        {"console", "safekeeping", "gather", "evaluation", "publish"},
        {"steps"},
        {"overlap", "forecast"},
        {"train"},
        {"commands"},
        {"cli"},
    ],
    "g2rpo_fast.rollout": [
        {"config", "requests", "sampled", "stop_ids", "text_decoder"},
        {"stop_text", "sync"},
        {"groups", "local", "vllm"},
    ],
    "g2rpo_kernels": [
        {"checks", "extension", "packed_weight", "packing", "transfer"},
        {"logprob", "sharded_head", "tree_attention"},
        {"group_advantage", "linear_logprob"},
        {"policy_loss"},
        {"linear_policy_loss"},
        {"token_loss", "padded"},
    ],
    "g2rpo_kernels.tree_attention": [
        {"reference", "tiles"},
        {"cascade", "choice", "tile_lists"},
        {"triton"},
    ],
}
"""Of each package, lowest first: a module or folder imports only from layers below its own. So no stage sees
another, nor an engine another. A package's own `__init__.py` shows what it likes."""

MAX_FILE_LINES = dict.fromkeys(("g2rpo_fast", "kernels", "csrc", "benchmarks", "examples", "docs"), 400) | {
    "tests": 500
}
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
READS_ENVIRONMENT = {"g2rpo_fast/cli.py"}


def parsed(*folders: str) -> dict[str, ast.Module]:
    """Path relative to the repository -> syntax tree, of every Python file in the folders."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert paths
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` counts as `a.b`, so that submodules show."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def folder_of(package: str) -> str:
    path = package.replace(".", "/")
    return f"kernels/{path}" if path.startswith("g2rpo_kernels") else path


def layer_of(package: str, unit: str) -> int:
    found = [level for level, units in enumerate(LAYERS[package]) if unit in units]
    assert found, f"{package}.{unit} has no layer: give it one in LAYERS"
    return found[0]


def layer_violations(package: str, path: str, tree: ast.Module) -> Iterator[str]:
    """Imports, anywhere in a file of the package, of a unit of it (module or folder) not below its own."""
    unit = path.removeprefix(f"{folder_of(package)}/").split("/")[0].removesuffix(".py")
    if unit == "__init__":
        return
    for line, name in imports_of(ast.walk(tree)):
        imported = name.removeprefix(f"{package}.").split(".")[0]
        if not name.startswith(f"{package}.") or imported in {unit, "_C"}:
            continue
        if layer_of(package, imported) >= layer_of(package, unit):
            yield f"{path}:{line} imports {name}"


@pytest.mark.parametrize("package", LAYERS)
def test_modules_import_only_lower_layers(package: str) -> None:
    files = parsed(folder_of(package))
    assert [wrong for path, tree in files.items() for wrong in layer_violations(package, path, tree)] == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_layer_is_of_what_there_is(package: str) -> None:
    named = [unit for units in LAYERS[package] for unit in units]
    folder = ROOT / folder_of(package)
    there = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(there - {"__init__"})


@pytest.mark.parametrize(
    ("package", "path", "source", "wrong"),
    [
        (
            "g2rpo_fast",
            "g2rpo_fast/tree/bad.py",
            """
from g2rpo_fast import types, rollout
import g2rpo_fast.tree.twin
def f():
    from g2rpo_fast.model.tree import hidden
""",
            ["2 imports g2rpo_fast.rollout", "5 imports g2rpo_fast.model.tree.hidden"],
        ),
        (
            "g2rpo_fast.rollout",
            "g2rpo_fast/rollout/local/bad.py",
            """
from g2rpo_fast.rollout.vllm.config import VllmConfig
from g2rpo_fast.rollout.stop_text import StopText
from g2rpo_fast.types import Request
from g2rpo_fast.rollout.local.cache import Cache
""",
            ["2 imports g2rpo_fast.rollout.vllm.config.VllmConfig"],
        ),
        (
            "g2rpo_kernels",
            "kernels/g2rpo_kernels/logprob/bad.py",
            """
from g2rpo_kernels import policy_loss
from g2rpo_kernels.transfer import to_device
""",
            ["2 imports g2rpo_kernels.policy_loss"],
        ),
        (
            "g2rpo_kernels.tree_attention",
            "kernels/g2rpo_kernels/tree_attention/cascade/bad.py",
            """
def f():
    from g2rpo_kernels.tree_attention.triton.launch import tree_attention_triton
""",
            ["3 imports g2rpo_kernels.tree_attention.triton.launch.tree_attention_triton"],
        ),
    ],
)
def test_layer_check_sees_what_is_not_below(package: str, path: str, source: str, wrong: list[str]) -> None:
    assert list(layer_violations(package, path, ast.parse(source))) == [f"{path}:{line}" for line in wrong]


def test_layer_check_wants_a_layer_for_what_is_new() -> None:
    tree = ast.parse("import g2rpo_fast.rollout.config")
    with pytest.raises(AssertionError, match=r"g2rpo_fast\.rollout\.other has no layer"):
        list(layer_violations("g2rpo_fast.rollout", "g2rpo_fast/rollout/other.py", tree))


def test_kernels_know_nothing_of_the_trainer_and_import_triton_only_in_its_own_files():
    wrong = []
    for path, tree in parsed("kernels/g2rpo_kernels").items():
        everywhere = {name.split(".")[0] for _, name in imports_of(ast.walk(tree))}
        at_import = {name.split(".")[0] for _, name in imports_of(tree.body)}
        allowed = {"torch", "g2rpo_kernels"} | sys.stdlib_module_names
        if any(part.startswith("triton") for part in path.split("/")):
            allowed |= {"triton"}
        wrong += [f"{path} imports {name}" for name in at_import - allowed | everywhere & {"g2rpo_fast"}]
    assert wrong == []


def test_kernels_import_without_triton():
    code = "import sys; sys.modules['triton'] = None; import g2rpo_kernels; print(g2rpo_kernels.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "kernels", capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "g2rpo_kernels", done.stderr


def test_no_package_is_named_kernels():
    """A top-level `kernels/__init__.py` would shadow the package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_files_stay_short():
    sizes = {
        path.relative_to(ROOT).as_posix(): (len(path.read_text().splitlines()), limit)
        for folder, limit in MAX_FILE_LINES.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".cpp", ".h", ".cu"}
    }
    assert len(sizes) > 20
    assert {name: lines for name, (lines, limit) in sizes.items() if lines > limit} == {}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(function: Function) -> int:
    """Lines of a function, signature included, docstring not."""
    assert function.end_lineno
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def limit_of(function: Function) -> int:
    jitted = any(ast.unparse(decorator).startswith("triton.") for decorator in function.decorator_list)
    return MAX_KERNEL_LINES if jitted else MAX_FUNCTION_LINES


def test_functions_stay_short():
    long = {
        f"{path}:{node.lineno} {node.name}": code_lines(node)
        for path, tree in parsed("g2rpo_fast", "kernels", "benchmarks", "tests", "examples", "docs").items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and code_lines(node) > limit_of(node)
    }
    assert long == {}


def habits(path: str, tree: ast.Module) -> Iterator[str]:
    """Broad `except` that does not raise, `hasattr`, `global`, the environment read outside its file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if caught in {"Exception", "BaseException"} and not raises:
                yield f"{path}:{node.lineno} catches {caught} and does not raise"
        elif isinstance(node, ast.Global):
            yield f"{path}:{node.lineno} global"
        elif isinstance(node, ast.Name) and node.id == "hasattr":
            yield f"{path}:{node.lineno} hasattr"
        elif (
            isinstance(node, ast.Attribute)
            and ast.unparse(node) in {"os.environ", "os.getenv"}
            and path not in READS_ENVIRONMENT
        ):
            yield f"{path}:{node.lineno} reads the environment"


def test_no_broad_except_no_probing_no_globals():
    files = parsed("g2rpo_fast", "kernels")
    assert [wrong for path, tree in files.items() for wrong in habits(path, tree)] == []
    assert [path for path in files if path.endswith("/utils.py")] == []


def test_habit_check_sees_each_habit():
    source = """
import os
def f(x):
    global y
    try:
        return hasattr(x, "y") or os.environ
    except:
        pass
    try:
        return x.y
    except Exception as error:
        raise ValueError from error
"""
    got = sorted(wrong.split(" ", 1)[1] for wrong in habits("bad.py", ast.parse(source)))
    assert got == ["catches BaseException and does not raise", "global", "hasattr", "reads the environment"]


def test_tests_use_no_mocks():
    assert [
        f"{path}:{line} imports {name}"
        for path, tree in parsed("tests").items()
        for line, name in imports_of(ast.walk(tree))
        if "mock" in name.split(".")
    ] == []


def blanket_ignores(path: str, text: str) -> Iterator[str]:
    """Comments that keep the type checker from a file, or from a line without saying of which rule."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"#\s*(pyright|type): *ignore(?!\[)|^\s*# *pyright:", line):
            yield f"{path}:{number}"


def test_pyright_reads_every_test():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert {"g2rpo_fast", "kernels", "tests"} <= set(settings["include"])
    assert settings["typeCheckingMode"] == "standard"
    assert [key for key in settings if key in {"exclude", "ignore"} or key.startswith("report")] == []
    files = {path: (ROOT / path).read_text() for path in parsed("tests")}
    assert [wrong for path, text in files.items() for wrong in blanket_ignores(path, text)] == []


def test_the_check_of_ignores_sees_them():
    line = "x = f(1)  # {}: ignore"
    lines = [line.format("pyright"), line.format("type"), line.format("pyright") + "[reportArgumentType]"]
    assert list(blanket_ignores("bad.py", "\n".join(lines))) == ["bad.py:1", "bad.py:2"]
    assert list(blanket_ignores("bad.py", "# {}: basic\n".format("pyright"))) == ["bad.py:1"]


def imports_of_tests(tree: ast.Module) -> list[str]:
    """What is taken from test modules: shared pieces belong in tests/helpers."""
    return [name for _, name in imports_of(ast.walk(tree)) if name.startswith("test_")]


def test_tests_do_not_import_one_another():
    taken = {path: imports_of_tests(tree) for path, tree in parsed("tests").items()}
    assert {path: names for path, names in taken.items() if names} == {}
    assert imports_of_tests(ast.parse("from test_learner import rollouts")) == ["test_learner.rollouts"]


def paths_of_page(text: str) -> set[str]:
    """The first word of each line of its file tree; what is indented is inside what stands above."""
    tree = re.split(r"^# Files\n.*?^```text\n", text, flags=re.DOTALL | re.MULTILINE)[1].split("```\n")[0]
    paths, folder = set(), ""
    for line in tree.splitlines():
        word = line.split()[0]
        folder = folder if line.startswith("  ") else word
        paths.add(folder + word if line.startswith("  ") else word)
    return paths


KEEPERS = ("g2rpo_fast/objective/terms/", "g2rpo_fast/methods/", "g2rpo_fast/config/renamed.py")
"""Where losses and methods have their names; `renamed` reads those of earlier versions."""
DEFAULTS = {("g2rpo_fast/config/sections.py", "Clip")}
"""What a configuration that says nothing gets."""


def named_losses(path: str, tree: ast.Module, names: Set[str], classes: Set[str]) -> Iterator[str]:
    """Texts that are a loss's or a method's name, and losses' classes. Docstrings may speak of both."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names:
            yield f"{path}:{node.lineno} names {node.value!r}"
        elif isinstance(node, ast.Name) and node.id in classes and (path, node.id) not in DEFAULTS:
            yield f"{path}:{node.lineno} names {node.id}"


def losses_and_methods() -> tuple[set[str], set[str]]:
    """(names in configurations, classes); words that also mean something else are left out."""
    files = parsed("g2rpo_fast/objective/terms").values()
    kept = [
        node
        for tree in files
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(n).startswith("use = ") for n in node.body)
    ]
    uses = {ast.unparse(n)[7:-1] for node in kept for n in node.body if ast.unparse(n).startswith("use = ")}
    methods = {file.stem for file in (ROOT / "g2rpo_fast" / "methods").glob("*.toml")}
    return (uses | methods) - {"kl", "entropy", "own", "vade", "rloo"}, {node.name for node in kept} - {"Own"}


def test_no_file_outside_its_own_names_a_loss_or_a_method():
    names, classes = losses_and_methods()
    assert {"clip", "disco", "gspo", "g2rpo_a"} <= names
    assert {"Clip", "Disco", "Kl"} <= classes
    files = parsed("g2rpo_fast")
    outside = {path: tree for path, tree in files.items() if not path.startswith(KEEPERS)}
    assert [
        wrong for path, tree in outside.items() for wrong in named_losses(path, tree, names, classes)
    ] == []


def test_the_check_of_names_sees_them():
    source = 'x = Clip(low=1)\nif y == "gspo":\n    """Clip, as in gspo."""\n'
    got = list(named_losses("bad.py", ast.parse(source), {"gspo"}, {"Clip"}))
    assert got == ["bad.py:1 names Clip", "bad.py:2 names 'gspo'"]


def test_the_file_tree_of_the_pages_is_what_there_is():
    """Every package, folders of C++ and tests, and the modules beside the folders of a package's top."""
    named = paths_of_page((ROOT / "docs" / "files.md").read_text())
    assert {path for path in named if not (ROOT / path).exists()} == set()
    tops = [ROOT / folder_of(package) for package in ("g2rpo_fast", "g2rpo_kernels")]
    folders = [file.parent for top in tops for file in top.rglob("__init__.py")]
    folders += [file.parent for file in (ROOT / "csrc").rglob("*.cpp")]
    wanted = {f"{path.relative_to(ROOT).as_posix()}/" for path in folders}
    modules = [file for top in tops for file in top.glob("*.py") if file.name != "__init__.py"]
    wanted |= {file.relative_to(ROOT).as_posix() for file in modules}
    assert len(wanted) > 60
    assert wanted - named == set()


def test_readme_s_file_tree_has_every_folder_of_code():
    tree = (ROOT / "README.md").read_text().split("## Files and tests\n\n```text\n")[1].split("```\n")[0]
    named = {line.split()[0] for line in tree.splitlines()}
    assert {path for path in named if not (ROOT / path).is_dir()} == set()
    assert {top for top in MAX_FILE_LINES if not any(path.startswith(f"{top}/") for path in named)} == set()


def test_paths_of_a_tree_are_read_with_their_folders():
    text = "# Files\n\nA page.\n\n```text\na/    first\n  b.py second\n  c/d/ third\ne/    fourth\n```\n"
    assert paths_of_page(text) == {"a/", "a/b.py", "a/c/d/", "e/"}
