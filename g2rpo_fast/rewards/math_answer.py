"""The reward "math": text and exact arithmetic here, algebra by math-verify in a process of its own.

SymPy can spend for ever, and all memory, on what a model writes (x^{9^{9^{9}}}). The library's own timeouts
are signals: they work in the main thread only and cannot interrupt one long C call. So algebra runs in a
child process with bounded memory, which is killed and replaced when it takes too long.
"""

from __future__ import annotations

import json
import re
import selectors
import subprocess
import sys
import threading
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

from g2rpo_fast.rewards.final_answer import final_text, marked_answer
from g2rpo_fast.rewards.notation import plain, squeezed
from g2rpo_fast.rewards.same_answer import is_words, reference_number, same_answer
from g2rpo_fast.types import Rollout

START_TIMEOUT_S = 120.0
WHOLE_ANSWER = 60
"""Characters up to which a text without a mark may be the answer itself."""
LONGEST_TEXT = 20_000
"""Characters of a text, from its end, in which math-verify looks for an answer."""
LONGEST_ANSWER = 2000
"""Characters, and four for each of the reference, beyond which an answer is wrong without algebra."""
MAX_NESTING = 40
MINUS = str.maketrans(dict.fromkeys("−–—", "-"))


class MathVerify:
    """The reward "math": 1.0 when the response's final answer equals the reference answer, else 0.0.

    The final answer is where `final_answer` finds a mark, else what math-verify finds. A response that was
    cut off before its end has none (unless `pay_truncated`), nor one whose thought never closes. A reference
    that is a plain number is compared exactly, a word or a choice as text (see `same_answer`), the rest by
    math-verify, which may round irrational numbers to six decimals and six digits, exact ones never.
    A comparison that exceeds `timeout_s`, or that twice ends its process, is abandoned: it counts as wrong,
    and in `num_abandoned`. Usable from any thread.
    """

    def __init__(self, timeout_s: float = 5.0, pay_truncated: bool = False) -> None:
        self.timeout_s = timeout_s
        self.pay_truncated = pay_truncated
        self.num_abandoned = 0
        self._lock = threading.Lock()
        self._start()

    def __call__(self, response: str, answer: str, rollout: Rollout | None) -> float:
        """`rollout` None: a response that ended by itself, after a prompt that opened no thought.

        Raises ValueError for a reference that cannot be compared with.
        """
        if not plain(answer):
            raise ValueError(self.check_reference(answer))
        text = final_text(response, rollout, pay_truncated=self.pay_truncated)
        if text is None:
            return 0.0
        final = marked_answer(text)
        if final is None and len(text) <= WHOLE_ANSWER and same_answer(text, answer):
            return 1.0
        if final is None:
            final = self._find(text)
        verdict = same_answer(final, answer)
        return float(self._by_algebra(final, answer) if verdict is None else verdict)

    def final_answer(self, response: str, rollout: Rollout | None) -> str | None:
        """The marked answer in one spelling, or a short text without a mark; None for no answer. As text: two
        forms of one number that only algebra makes equal are two answers."""
        text = final_text(response, rollout, pay_truncated=self.pay_truncated)
        final = None if text is None else marked_answer(text)
        if final is None and text is not None and len(text) <= WHOLE_ANSWER:
            final = text
        return None if final is None else squeezed(plain(final)) or None

    def check_reference(self, answer: str, row: object = None) -> str | None:
        """Why this reference cannot be compared with; None when it can."""
        if not plain(answer):
            return f"cannot parse the reference answer {answer!r}: it is empty"
        if reference_number(answer) or is_words(answer):
            return None
        reply = self._ask_child({"answer": answer})
        if reply is False:
            return (
                f"cannot parse the reference answer {answer!r}: math-verify takes over {self.timeout_s:g} s"
            )
        return reply["error"] if isinstance(reply, dict) else None

    def _find(self, text: str) -> str:
        """The answer that math-verify finds in a text without a mark; "" for none."""
        text = re.sub("-{3,}", " ", text[-LONGEST_TEXT:])  # a ruled line, not signs
        found = "" if degenerate(text) else self._ask_child({"find": text})
        return found if isinstance(found, str) else ""

    def _by_algebra(self, final: str, answer: str) -> bool:
        """Raises ValueError for a reference that math-verify cannot read."""
        if degenerate(final) or len(final) > LONGEST_ANSWER + 4 * len(answer):
            return False
        number = reference_number(answer)
        wanted = answer.translate(MINUS) if number is None else _as_latex(number[0].value)
        reply = self._ask_child({"answer": wanted, "final": final.translate(MINUS)})
        if isinstance(reply, dict):
            raise ValueError(reply["error"])
        return bool(reply)

    def close(self) -> None:
        """Ends the child process; it also ends with this object, and with this process."""
        self._stop()

    def _ask_child(self, request: dict[str, str]) -> Any:
        """The reply; False when it was abandoned."""
        with self._lock:
            return self._compare(json.dumps(request).encode() + b"\n")

    def _compare(self, request: bytes) -> Any:
        for _ in range(2):  # a process that died may have been killed by others: it gets a second chance
            try:
                return self._ask(request)
            except TimeoutError:
                self._restart()
                break
            except (BrokenPipeError, EOFError):
                self._restart()
        self.num_abandoned += 1
        return False

    def _ask(self, request: bytes) -> Any:
        if not self._ready:
            self._await_start()
        assert self._process.stdin is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()
        return self._read(self.timeout_s)

    def _restart(self) -> None:
        self._stop()
        self._start()

    def _start(self) -> None:
        """-P: this file's folder must not be on the child's path. A session of its own: Ctrl-C is ours."""
        program = Path(__file__).with_name("math_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._stop = weakref.finalize(self, _end, self._process)
        self._ready = False

    def _await_start(self) -> None:
        try:
            started = self._read(START_TIMEOUT_S) == "ready"
        except (TimeoutError, EOFError) as error:
            raise RuntimeError("the process of the math reward did not start; its error is above") from error
        assert started
        self._ready = True

    def _read(self, timeout_s: float) -> Any:
        """One reply: a line. Raises TimeoutError, or EOFError when the process has ended."""
        pipe = self._process.stdout
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise TimeoutError
        line = pipe.readline()
        if not line:
            raise EOFError
        return json.loads(line)


def degenerate(text: str) -> bool:
    """Whether brackets or signs are heaped as only a loop heaps them: math-verify would take all its time."""
    depth = deepest = 0
    for bracket in re.findall(r"[({\[\]})]", text):
        depth = depth + 1 if bracket in "({[" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest > MAX_NESTING or re.search(r"(?:[-+] ?){20}", text) is not None


def _as_latex(value: Fraction) -> str:
    """An exact number as math-verify reads it: it takes the e of 5e-05 for Euler's number."""
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # unsent bytes of a request to a dead process
            continue
