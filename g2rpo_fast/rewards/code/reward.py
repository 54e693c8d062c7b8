"""The reward "code": 1 for a program that passes its test, run in a sandbox (HumanEval, arXiv 2107.03374).

A row has a test (the answer), the name of the function that it tests (the column `entry_point`), and a
problem: the beginning of the program, or words. A response is the rest of the program, or a block of code.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from g2rpo_fast.rewards.code.sandbox import Limits, SandboxError, Task, judge
from g2rpo_fast.rewards.config import RewardConfig
from g2rpo_fast.rewards.final_answer import final_text
from g2rpo_fast.types import Rollout

ENTRY = "entry_point"
MIB, KIB = 1 << 20, 1 << 10
FENCE = re.compile(r"^[ \t]*```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PROTECTED = Task(
    program="import ctypes, os\n"
    "def state():\n"
    "    prctl = ctypes.CDLL(None).prctl\n"
    "    return prctl(21, 0, 0, 0, 0), prctl(39, 0, 0, 0, 0), os.path.exists('/etc'), os.getuid()\n",
    entry="state",
    problem="",
    test="assert state() == (2, 1, False, 65534)",  # a filter, no new privileges, no files, nobody
)
START_LIMIT_S = 120.0


class CodeReward:
    """1.0 when the response's program passes the test, else 0.0; over its time is not passing, and counted.

    A response that was cut off is not run (unless `pay_truncated`), nor one whose thought never closes.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Raises ValueError where this machine cannot run a program safely."""
        self.pay_truncated = config.pay_truncated
        self.timeout_s = config.code_timeout_s
        self.limits = limits_of(config)
        self.num_timed_out = 0
        try:
            verdict = judge(PROTECTED, self.limits, START_LIMIT_S)
        except (SandboxError, ValueError) as error:
            raise ValueError(f"reward.functions: wanted a sandbox for code, got none: {error}") from error
        if verdict != "passed":
            raise ValueError(
                "reward.functions: wanted a sandbox for code, got one that does not protect, or limits too "
                f"low for Python itself (a first program {verdict.replace('_', ' ')})"
            )

    def __call__(self, response: str, answer: str, rollout: Rollout) -> float:
        text = final_text(response, rollout, pay_truncated=self.pay_truncated)
        if text is None:
            return 0.0
        prompt = rollout.prompt
        problem = prompt.problem if isinstance(prompt.problem, str) else ""
        verdict = judge(task_of(problem, text, answer, prompt.row[ENTRY]), self.limits, self.timeout_s)
        self.num_timed_out += verdict == "timed_out"
        return float(verdict == "passed")

    def check_reference(self, answer: str, row: Mapping[str, Any]) -> str | None:
        """Why this row's programs cannot be judged; None when they can."""
        entry = row.get(ENTRY)
        if not (isinstance(entry, str) and entry.isidentifier()):
            return f"wanted a function's name in the column {ENTRY!r}, got {entry!r}"
        if not is_code(answer):
            return "the test (data.answer_column) is no Python"
        missing = sorted(imports_of(answer) - sys.stdlib_module_names)
        return f"the test imports {missing[0]}, and there are no packages in the sandbox" if missing else None


def limits_of(config: RewardConfig) -> Limits:
    return Limits(
        cpu_s=config.code_cpu_s,
        memory=config.code_memory_mib * MIB,
        disk=config.code_disk_mib * MIB,
        open_files=config.code_open_files,
        threads=config.code_threads,
        output=config.code_output_kib * KIB,
    )


def task_of(problem: str, response: str, test: str, entry: str) -> Task:
    """Of a response: its last block of code that defines the function, else its last block, else all of it,
    after the problem where that is code (helpers and imports stand there)."""
    before = problem if is_code(problem) else ""
    blocks = [block for block in FENCE.findall(response) if block.strip()]
    defining = [block for block in blocks if defines(block, entry)]
    code = (defining or blocks or [response])[-1]
    between = "\n" if defines(code, entry) and not before.endswith("\n") else ""
    return Task(program=before + between + code, entry=entry, problem=before, test=test)


def defines(code: str, entry: str) -> bool:
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(entry)}\b", code, re.MULTILINE) is not None


def imports_of(code: str) -> set[str]:
    """Names of the modules that it imports, without those inside them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def is_code(text: str) -> bool:
    """Whether a text of the data is Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
