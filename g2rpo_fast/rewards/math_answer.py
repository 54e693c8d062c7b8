"""Mathematical equality of answers, by the library math-verify in a process of its own.

SymPy can spend for ever, and all memory, on what a model writes (9**9**9**9). The library's own timeouts are
signals: they work in the main thread only and cannot interrupt one long C call. So the comparison runs in a
child process with bounded memory, which is killed and replaced when it takes too long.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from g2rpo_fast.types import Rollout

START_TIMEOUT_S = 120.0


class MathVerify:
    """The reward "math": 1.0 when the response's final answer equals the reference answer, else 0.0.

    The final answer is the last \\boxed{...}, else what follows the last "####", else what math-verify finds.
    A comparison that exceeds `timeout_s`, or that twice ends its process, is abandoned: it counts as wrong,
    and in `num_abandoned`. Usable from any thread.
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self.num_abandoned = 0
        self._lock = threading.Lock()
        self._start()

    def __call__(self, response: str, answer: str, rollout: Rollout) -> float:
        if plain_answer(response) == answer.strip() != "":
            return 1.0
        with self._lock:
            reply = self._compare(response, answer)
        if isinstance(reply, dict):
            raise ValueError(reply["error"])
        return float(reply)

    def close(self) -> None:
        """Ends the child process; it also ends with this object, and with this process."""
        self._stop()

    def _compare(self, response: str, answer: str) -> Any:
        request = json.dumps({"answer": answer, "response": response}).encode() + b"\n"
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


def plain_answer(response: str) -> str:
    """What stands after the last "####", or in a last \\boxed{} without inner braces; "" when neither is.

    Text equal to the reference needs no algebra.
    """
    _, boxed, rest = response.rpartition("\\boxed{")
    if boxed:
        content, closed, _ = rest.partition("}")
        return content.strip() if closed and "{" not in content else ""
    _, marker, final = response.rpartition("####")
    return final.strip().partition("\n")[0].strip() if marker else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # unsent bytes of a request to a dead process
            continue
