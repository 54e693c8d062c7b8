"""Program of the two sandboxes of the reward "code". Never imported by the trainer, of which it sees nothing.

    run     executes a generated program, then calls its function as it is asked to
    check   executes the test that the data bring; the calls in it are made by the other sandbox

So a program never sees its test, and whatever it does to its own process, the verdict is said by another one.
Arguments and results cross as JSON of plain values: nothing that comes back is an object of the program's.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys
from typing import Any, BinaryIO

READY, BEGUN = b'"ready"\n', b'"begun"\n'


def plain(value: Any) -> Any:
    """As JSON has it. Raises TypeError for anything that is no plain value."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in (("list", list), ("tuple", tuple), ("frozenset", frozenset), ("set", set)):
        if isinstance(value, kind):
            return {name: [plain(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(part)] for key, part in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"wanted a plain value, got {type(value).__name__}")


def value_of(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    ((name, parts),) = given.items()
    if name == "dict":
        return {value_of(key): value_of(part) for key, part in parts}
    if name == "bytes":
        return bytes.fromhex(parts)
    if name == "complex":
        return complex(*parts)
    kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[name](map(value_of, parts))


def limit(limits: dict[str, int]) -> None:
    """For good: nothing in a sandbox may raise a limit."""
    cpu_s = limits["cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    for name, key in (("AS", "memory"), ("FSIZE", "disk"), ("NOFILE", "open_files"), ("NPROC", "threads")):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limits[key], limits[key]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(orders: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    say(replies, READY)
    names: dict[str, Any] = {"__name__": "solution"}
    exec(compile(orders["program"], "solution.py", "exec"), names)
    function = names[orders["entry"]]
    while line := requests.readline():
        args, kwargs = value_of(json.loads(line))
        reply = Reply()
        with reply:
            reply.content = {"value": plain(function(*args, **kwargs))}
        say(replies, json.dumps(reply.content).encode() + b"\n")


class Reply:
    """What a call gave; an exception in it, of whatever kind a program has, is one, and goes no further."""

    content: dict[str, Any]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        self.content = {"raised": kind.__name__}
        return True


class Gone(BaseException):
    """The other process does not answer any more, or not within its limits."""


def check(orders: dict[str, Any], verdicts: BinaryIO, requests: BinaryIO, replies: BinaryIO) -> None:
    say(verdicts, BEGUN)
    if replies.readline(len(READY)) != READY:
        say(verdicts, b'"broken"\n')
        return
    most, calls, gone, passed = orders["limits"]["output"], 0, False, False

    def candidate(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, gone
        calls, gone = calls + 1, True  # until it has answered
        try:
            say(requests, json.dumps(plain((args, kwargs))).encode() + b"\n")
            line = replies.readline(most)
            reply = json.loads(line if line.endswith(b"\n") else b"")
            value = value_of(reply["value"]) if "value" in reply else None
            raised = None if "value" in reply else str(reply["raised"])
        except (OSError, TypeError, ValueError, LookupError, RecursionError) as error:
            raise Gone from error
        gone = False
        if raised is not None:
            raise raised_as(raised)("the program raised it")
        return value

    names: dict[str, Any] = {"__name__": "test"}
    try:
        exec(compile(orders["problem"], "problem.py", "exec"), names)
        names[orders["entry"]] = candidate
        exec(compile(orders["test"], "test.py", "exec"), names)
        if callable(names.get("check")):
            names["check"](candidate)
        passed = calls > 0 and not gone
    finally:
        say(verdicts, b'"passed"\n' if passed else b'"failed"\n')


def raised_as(name: str) -> type[Exception]:
    """The built-in exception of that name; another for one that would end a loop of the test in silence."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return RuntimeError
    return RuntimeError if issubclass(kind, StopIteration | StopAsyncIteration) else kind


def say(to: BinaryIO, line: bytes) -> None:
    to.write(line)
    to.flush()


def main() -> None:
    role, *channels = sys.argv[1:]
    first, second = os.dup(0), os.dup(1)
    others = [int(number) for number in channels]
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for number in range(3, 256):
        if number not in (first, second, *others):
            try:
                os.close(number)
            except OSError:
                continue
    given = os.fdopen(first, "rb")
    orders = json.loads(given.readline())
    limit(orders["limits"])
    if role == "run":
        run(orders, given, os.fdopen(second, "wb"))
    else:
        requests, replies = others
        check(orders, os.fdopen(second, "wb"), os.fdopen(requests, "wb"), os.fdopen(replies, "rb"))


if __name__ == "__main__":
    main()
