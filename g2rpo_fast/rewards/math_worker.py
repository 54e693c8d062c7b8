"""Program of the process in which `MathVerify` compares answers. Never imported by the trainer.

Reads one JSON object {"answer", "response"} a line, writes one JSON reply a line: true, false, or
{"error": text}. SymPy works on what a model wrote, so memory is bounded here, and time by the parent; an
alarm that nothing handles ends the process even without a parent.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import signal
import sys

from math_verify import parse, verify

MEMORY_BYTES = 4 << 30
ORPHAN_LIMIT_S = 60


def final_answer(response: str) -> str:
    """What to compare: the content of the last boxed expression, else the line after the last "####", else
    everything."""
    boxed = response.rfind("\\boxed{")
    if boxed >= 0:
        return response[boxed : _closing_brace(response, boxed + len("\\boxed{")) + 1]
    _, marker, final = response.rpartition("####")
    if not marker:
        return response
    line = final.strip().partition("\n")[0].strip().replace("\\$", "")
    return f"\\boxed{{{line}}}" if "\\" in line and "$" not in line else line


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


@functools.lru_cache(maxsize=1024)
def parse_answer(answer: str) -> tuple:
    """The reference answer as math-verify reads it."""
    marked = "\\boxed" in answer or "$" in answer
    parsed = parse(answer if marked else f"\\boxed{{{answer}}}", parsing_timeout=None)  # type: ignore[arg-type]
    if not parsed:
        raise ValueError(f"math-verify cannot parse the reference answer {answer!r}")
    return tuple(parsed)


def matches(answer: str, response: str) -> bool:
    """Whether the response's final answer equals the reference answer."""
    gold = list(parse_answer(answer))
    predicted = parse(final_answer(response), parsing_timeout=None)  # type: ignore[arg-type]
    return verify(gold, predicted, timeout_seconds=None)


def reply(line: str) -> bool | dict[str, str]:
    request = json.loads(line)
    try:
        return matches(request["answer"], request["response"])
    except ValueError as error:
        return {"error": str(error)}


def main() -> None:
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like a reply
    replies.write('"ready"\n')
    for line in sys.stdin:
        signal.alarm(ORPHAN_LIMIT_S)
        replies.write(json.dumps(reply(line)) + "\n")
        signal.alarm(0)


if __name__ == "__main__":
    main()
