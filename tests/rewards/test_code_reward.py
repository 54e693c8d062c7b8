"""The reward "code": right programs pass, wrong ones do not, and without a sandbox there is none."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from g2rpo_fast.rewards import RewardConfig
from g2rpo_fast.rewards.code.reward import task_of
from g2rpo_fast.rewards.loading import load_rewards
from g2rpo_fast.rewards.scoring import score
from g2rpo_fast.train import train
from g2rpo_fast.types import Rollout
from real_data import DATA
from runs import quiet, tiny_config
from sandboxes import needs_sandbox, verdict_of
from scored import row_of

pytestmark = pytest.mark.xdist_group("sandbox")
"""One of these counts what runs in sandboxes."""
MEAN = {
    "task_id": "example/0",
    "prompt": "from typing import List\n\n\ndef total(values: List[float]) -> float:\n"
    "    return sum(values)\n\n\n"
    'def mean(values: List[float]) -> float:\n    """The mean.\n    >>> mean([1.0, 2.0])\n    1.5\n    """\n',
    "canonical_solution": "    return total(values) / len(values)\n",
    "test": "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n"
    "    assert candidate([1.0, 2.0]) == 1.5\n"
    "    assert abs(candidate([0.1] * 3) - total([0.1] * 3) / 3) < 1e-9\n",
    "entry_point": "mean",
}
PAIRS = {
    "task_id": "example/1",
    "prompt": 'def pairs(n):\n    """Of numbers below n, by their sum, and the odd ones."""\n',
    "canonical_solution": "    found = {}\n    for a in range(n):\n        for b in range(a):\n"
    "            found.setdefault(a + b, []).append((b, a))\n"
    "    return found, {a for a in range(n) if a % 2}\n",
    "test": "def check(candidate):\n"
    "    assert candidate(3) == ({1: [(0, 1)], 2: [(0, 2)], 3: [(1, 2)]}, {1})\n"
    "    assert candidate(n=0) == ({}, set())\n    try:\n        candidate('x')\n        assert False\n"
    "    except TypeError:\n        pass\n",
    "entry_point": "pairs",
}
WORDS = {
    "prompt": "Write a function `double` that doubles a number.",
    "canonical_solution": "def double(x):\n    return 2 * x\n",
    "test": "assert double(2) == 4\nassert double(b'ab') == b'abab'\nassert double(1j) == 2j",
    "entry_point": "double",
}


def rollout_of(row: dict[str, Any], text: str, **values: Any) -> Rollout:
    rollout = row_of(0, 0, [1, 2])
    prompt = replace(rollout.prompt, answer=row["test"], problem=row["prompt"], row=row)
    return replace(rollout, text=text, prompt=prompt, **values)


@pytest.fixture(scope="module")
def judge() -> Any:
    """By a patient reward: of a row and a response."""
    needs_sandbox()
    rewards = load_rewards(RewardConfig(functions=("code",), code_timeout_s=600.0, code_cpu_s=2))

    def paid(*rollouts: Rollout) -> list[float]:
        return score(rewards, list(rollouts)).total_R.tolist()

    paid.rewards = rewards  # type: ignore[attr-defined]
    return paid


@pytest.mark.parametrize("row", [MEAN, PAIRS, WORDS], ids=["helpers", "collections", "words"])
def test_right_programs_pass_and_wrong_ones_do_not(judge: Any, row: dict[str, Any]) -> None:
    right = row["canonical_solution"]
    whole = right if right.startswith("def") else row["prompt"] + right
    wrong = right.replace("len(values)", "2").replace("(b, a)", "[b, a]").replace("2 * x", "2.5 * x")
    responses = [
        right,
        f"<think>\nEasy.\n</think>\nSo:\n```python\n{whole}```\nThat is all.",
        f"```\nnothing = 1\n```\n```py\n{whole}```\n```\n>>> test\n```",
        wrong,
        f"```python\n{wrong}```",
        "",
        f"<think>{right}",
    ]
    assert wrong != right
    assert judge(*(rollout_of(row, text) for text in responses)) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert judge(rollout_of(row, right, finish_reason="length")) == [0.0]


def test_a_block_may_go_on_from_the_problem() -> None:
    task = task_of(MEAN["prompt"], f"```python\n{MEAN['canonical_solution']}```", "", "mean")
    assert task.program == MEAN["prompt"] + MEAN["canonical_solution"]
    assert task_of("In words.", "x = 1", "", "f").program == "x = 1"


def test_over_its_time_is_failed_and_counted(judge: Any) -> None:
    before = judge.rewards.counts["timed_out"]
    rollouts = [rollout_of(WORDS, "def double(x):\n    while True: pass"), rollout_of(WORDS, "wrong")]
    assert judge(*rollouts) == [0.0, 0.0]
    assert judge.rewards.counts["timed_out"] == before + 1


def test_a_test_without_a_call_passes_nothing() -> None:
    needs_sandbox()
    assert verdict_of("def f(): return 1", "assert True") == "failed"
    assert verdict_of("def f(): return 1", "try: f()\nexcept BaseException: pass") == "passed"
    assert verdict_of("import os\ndef f(): os._exit(0)", "try: f()\nexcept BaseException: pass") == "failed"
    assert verdict_of("def f(): return 1", "f()\nimport os\nos._exit(0)") == "failed"
    for kind in ("StopIteration", "GeneratorExit", "Own"):
        program = f"class Own(StopIteration): pass\ndef f(x): raise {kind}"
        assert verdict_of(program, "for got in map(f, [1, 2]): assert got == 1") == "failed", kind


def test_rows_that_cannot_be_judged_are_told_before_the_run(judge: Any) -> None:
    (check,) = [function.check_reference for function in judge.rewards.functions]
    assert check(MEAN["test"], MEAN) is None
    assert check("def check(:", MEAN) == "the test (data.answer_column) is no Python"
    numpy = "import math, os.path\nfrom numpy.linalg import norm\ndef check(f): pass"
    assert check(numpy, MEAN) == "the test imports numpy, and there are no packages in the sandbox"
    assert "wanted a function's name in the column 'entry_point', got None" in str(check("x = 1", {}))


BROKEN = {
    "none": (None, "there is no bwrap on the PATH"),
    "forbidden": (
        "#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n",
        "bubblewrap failed: bwrap: No permissions to create a new namespace",
    ),
    "one that protects nothing": (
        f"#!{sys.executable}\nimport os, sys\nat = sys.argv.index('--') + 1\n"
        "os.execv(sys.executable, sys.argv[at:])\n",
        "one that does not protect",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_without_a_sandbox_nothing_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, problem = BROKEN[name]
    if source is not None:
        (tmp_path / "bwrap").write_text(source)
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=rf"^reward\.functions: wanted a sandbox for code, got .*{problem}"):
        load_rewards(RewardConfig(functions=("code",)))


def test_a_run_on_rows_as_humaneval_has_them(tmp_path: Path) -> None:
    """The canonical solution is the trace, which guidance gives."""
    needs_sandbox()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in (MEAN, PAIRS)))
    config = tiny_config(
        tmp_path / "run",
        run={"steps": 1, "prompts_per_step": 2},
        model={"path": "untrained"},
        data={
            "path": str(rows), "answer_column": "test", "trace_column": "canonical_solution",
        },
        rollout={"group_size": 2, "max_tokens": 300},
        guidance={"share": 1.0, "length_init": 1.0, "length_max": 1.0, "reserve": 1, "unit": "fraction"},
        evaluate={"every": 0, "profile_prompts": 0},
        reward={"functions": ["code", "runs:wobble"], "pay_truncated": True},
    )  # fmt: skip
    result = train(config, show=quiet)
    record = json.loads(result.metrics_path.read_text().splitlines()[-1])
    assert 0.0 <= record["reward/code"] <= 1.0
    assert record["reward/timed_out"] == 0


@pytest.mark.deep
def test_every_canonical_solution_of_humaneval_passes_and_none_returns_nothing(judge: Any) -> None:
    file = DATA / "HumanEval.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert len(rows) == 164
    (check,) = [function.check_reference for function in judge.rewards.functions]
    assert {check(row["test"], row) for row in rows} == {None}
    assert judge(*(rollout_of(row, row["canonical_solution"]) for row in rows)) == [1.0] * 164
    assert judge(*(rollout_of(row, "    return None\n") for row in rows)) == [0.0] * 164
