"""Programs that want out of the sandbox, or a verdict that they did not earn."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from g2rpo_fast.rewards.code.seccomp import ARCHITECTURES, REFUSED, filter_program
from runs import HELPERS
from sandboxes import needs_sandbox, verdict_of

pytestmark = pytest.mark.xdist_group("sandbox")
"""One of these counts what runs in sandboxes."""
REPOSITORY = Path(__file__).parents[2]
TRIES = """
import os
def done(attempts):
    succeeded = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, MemoryError, ValueError):
            continue
        succeeded.append(name)
    return succeeded
"""
"""`done`: names of those attempts that nothing refused."""

ATTEMPTS = {
    "fork": """
import ctypes, multiprocessing, subprocess
def raw(number, *args):
    if ctypes.CDLL(None, use_errno=True).syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "refused")
attempts = {"fork": os.fork, "spawn": lambda: subprocess.run(["/bin/sh", "-c", "true"]),
    "again": lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", "1"], {}),
    "process": lambda: multiprocessing.get_context("fork").Process(target=print).start(),
    "vfork": lambda: raw(58), "clone": lambda: raw(56, 17, 0, 0, 0, 0)}""",
    "daemons": """
def daemon():
    os.setsid()
    if os.fork() == 0: os.execv(sys.executable, [sys.executable, "-c", "while True: pass"])
attempts = {"daemon": daemon, "double": lambda: os.fork() or os.fork()}""",
    "memory": """
def grow():
    held = []
    while True: held.append(bytearray(1 << 24))
attempts = {"at once": lambda: bytearray(1 << 40), "bit by bit": grow, "string": lambda: "x" * (1 << 34)}""",
    "limits": """
import resource
RLIM = resource.RLIM_INFINITY
attempts = {name: lambda name=name: resource.setrlimit(getattr(resource, name), (RLIM, RLIM))
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC")}
attempts["nice"] = lambda: os.nice(-5)""",
    "huge files": """
def fill():
    for number in range(1000):
        with open(f"/tmp/{number}", "wb") as file: file.write(bytes(1 << 20))
def one():
    with open("/tmp/one", "wb") as file:
        while True: file.write(bytes(1 << 20))
def sparse():
    with open("/tmp/sparse", "wb") as file: file.truncate(1 << 33)
attempts = {"many": fill, "one": one, "sparse": sparse}""",
    "open files": """
def many():
    files = [open("/dev/null") for _ in range(300)]
attempts = {"many": many, "memfd": lambda: os.memfd_create("x")}""",
    "network by address": """
import socket
def tcp(host, port): return lambda: socket.create_connection((host, port), timeout=5)
attempts = {"out": tcp("1.1.1.1", 53), "loopback": tcp("127.0.0.1", PORT),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX), "netlink": lambda: socket.socket(socket.AF_NETLINK)}""",
    "network by name": """
import socket, urllib.request
attempts = {"dns": lambda: socket.getaddrinfo("example.com", 80),
    "http": lambda: urllib.request.urlopen("http://example.com", timeout=5)}""",
    "reading": """
attempts = {path: lambda path=path: (os.listdir if path.endswith("/") else open)(path)
    for path in ("/etc/shadow", "/etc/passwd", "/etc/", HOME, REPOSITORY, "/home/", "/var/", "/sys/",
    "/proc/", "/run/", "/bin/sh", "/usr/bin/", "/usr/bin/env", "/dev/sda", "/dev/mem", "/dev/shm/",
    "/dev/fd/", "/dev/tty", MARKER)}""",
    "writing": """
import sys, os.path
places = ("/x", "/usr/lib/x", "/lib/x", "/dev/x", "/tmp/../x", os.path.dirname(os.__file__) + "/x", MARKER,
    sys.executable, os.__file__)
attempts = {path: lambda path=path: open(path, "w") for path in places}
attempts |= {"mkdir": lambda: os.mkdir("/new"), "unlink": lambda: os.unlink(os.__file__),
    "rename": lambda: os.rename(os.__file__, os.__file__ + ".x"),
    "mknod": lambda: os.mknod("/tmp/n", 0o60666, 0x800)}""",
    "links": """
def through(target):
    def attempt():
        link = "/tmp/link" + target.replace("/", "_")
        os.symlink(target, link)
        (os.listdir if os.path.isdir(link) else open)(link)
    return attempt
targets = ("/etc/shadow", "/proc/self/environ", "../../../../etc/shadow", HOME + ".bashrc", MARKER)
attempts = {target: through(target) for target in targets}
attempts["hard"] = lambda: os.link(os.__file__, "/tmp/hard")""",
    "proc": """
import ctypes
def mounted():
    os.makedirs("/tmp/proc", exist_ok=True)
    if ctypes.CDLL(None).mount(b"proc", b"/tmp/proc", b"proc", 0, None): raise OSError
attempts = {path: lambda path=path: open(path).read() for path in ("/proc/1/environ", "/proc/self/environ",
    "/proc/self/maps", "/proc/self/mem", "/proc/self/mountinfo", "/proc/1/root/etc/shadow",
    "/proc/sys/kernel/hostname", "/proc/kcore", "/proc/cmdline", "/sys/kernel/profiling")}
attempts |= {"fd": lambda: os.listdir("/proc/self/fd"), "mount": mounted,
    "release": lambda: open("/proc/sys/kernel/core_pattern", "w")}""",
    "system calls": """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
numbers = NUMBERS
def raw(number, *args):
    def attempt():
        ctypes.set_errno(0)
        value = libc.syscall(number, *args)
        assert value == -1, value
        assert ctypes.get_errno() == 1, ctypes.get_errno()  # by the filter, before any look at the arguments
        raise OSError
    return attempt
attempts = {name: raw(number, 0, 0, 0, 0, 0) for name, number in numbers.items()}
if platform.machine() == "x86_64":
    attempts |= {"clone user": raw(56, 0x10000000 | 17, 0, 0, 0, 0),
        "clone net": raw(56, 0x40000000 | 17, 0, 0, 0, 0)}""",
    "privileges": """
def suid():
    open("/tmp/suid", "w").close()
    os.chmod("/tmp/suid", 0o4755)
    os.chown("/tmp/suid", 0, 0)
attempts = {"suid": suid, "setuid": lambda: os.setuid(0), "setgid": lambda: os.setgid(0),
    "groups": lambda: os.setgroups([0]), "chroot": lambda: os.chroot("/tmp"),
    "chmod": lambda: os.chmod(os.__file__, 0o777)}""",
}

SPOILT = {
    "exit": "import sys\ndef f(): return 42\nsys.exit(0)",
    "exit when called": "import sys\ndef f(): sys.exit(0)",
    "hard exit": "import os\ndef f(): os._exit(0)",
    "replaced by another program": "import os, sys\ndef f(): os.execv(sys.executable, ['python', '-c', '0'])",
    "verdict printed": """
import os, sys
def f():
    for _ in range(3): print('"passed"', flush=True); print('{"value": 42}', flush=True, file=sys.stderr)
    return 41""",
    "verdict to every descriptor": """
import os
for number in range(256):
    try: os.write(number, b'"passed"\\n"begun"\\n"passed"\\n')
    except OSError: pass
def f():
    for number in range(256):
        try: os.write(number, b'"passed"\\n')
        except OSError: pass
    os._exit(0)""",
    "answers before they are asked for": """
import sys
frame = sys._getframe(1)
while "replies" not in frame.f_locals: frame = frame.f_back
frame.f_locals["replies"].write(b'{"value": 41}\\n' * 9); frame.f_locals["replies"].flush()
def f(): return 42""",
    "equal to everything": """
class Same(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(): return Same(41)""",
    "equal to everything, and no number": """
class Same:
    def __eq__(self, other): return True
def f(): return Same()""",
    "checker patched": """
import builtins, json, sys
main = sys.modules["__main__"]
main.plain = main.value_of = lambda value: 42
builtins.exec = builtins.compile = lambda *args: None
builtins.AssertionError = type("Never", (Exception,), {})
json.dumps = lambda value: "{}"
def f(): return 41""",
    "killing": """
import os, signal
def f():
    for pid in (1, -1, 0, os.getppid(), VICTIM):
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
    return 41""",
    "stops itself": "import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSEGV)",
    "too deep": "def f():\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "too long": "def f(): return 'x' * (1 << 22)",
    "raises what it likes": "class E(BaseException): pass\ndef f(): raise E",
    "no such function": "def g(): return 42",
    "no Python": "def f(: return 42",
    "temporary files": "import shutil\nshutil.rmtree('/tmp', ignore_errors=True)\ndef f(): return 41",
}

ENDLESS = {
    "loop": "def f():\n    while True: pass",
    "at once": "while True: pass",
    "output": "def f():\n    while True: print('x' * (1 << 20))",
    "deaf": """
import signal
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
def f():
    while True: pass""",
    "threads": """
import threading
def spin():
    while True: pass
def f():
    while True:
        try: threading.Thread(target=spin).start()
        except RuntimeError: spin()""",
}


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    needs_sandbox()


@pytest.fixture(scope="module")
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user's that a program would like to end."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_hostile_program_gets_nowhere(name: str, tmp_path: Path) -> None:
    """It runs to its end, and says which of its attempts were not refused."""
    marker = tmp_path / "marker"
    marker.write_text("here")
    column = ARCHITECTURES[os.uname().machine][1]
    numbers = {call: each[column] for call, each in REFUSED.items() if each[column] is not None}
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = {
            "PORT": server.getsockname()[1], "MARKER": str(marker), "HOME": f"{Path.home()}/",
            "REPOSITORY": f"{REPOSITORY}/", "NUMBERS": numbers,
        }  # fmt: skip
        given = "".join(f"{key} = {value!r}\n" for key, value in known.items())
        program = (
            f"import sys\n{TRIES}{given}{ATTEMPTS[name]}\ndef f(): return len(attempts), done(attempts)\n"
        )
        test = "tried, succeeded = f()\nassert tried > 1 and succeeded == [], succeeded"
        assert verdict_of(program, test) == "passed"
    assert marker.read_text() == "here"


def test_the_attempts_succeed_where_nothing_refuses_them(tmp_path: Path) -> None:
    """So what the test above sees is the sandbox, not a mistake in a program."""
    (tmp_path / "marker").write_text("here")
    tried = f"'read': lambda: open('{tmp_path}/marker'), 'fork': lambda: os.fork() or os._exit(0)"
    program = f"{TRIES}attempts = {{{tried}}}\nprint(done(attempts))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "['read', 'fork']\n"


@pytest.mark.parametrize("name", SPOILT)
def test_a_verdict_cannot_be_faked(name: str, victim: subprocess.Popen[bytes], tmp_path: Path) -> None:
    program = SPOILT[name].replace("VICTIM", str(victim.pid))
    assert verdict_of(program, "assert f() == 42") in ("failed", "timed_out")
    assert victim.poll() is None
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ENDLESS)
def test_a_program_without_end_is_over_its_time(name: str) -> None:
    assert verdict_of(ENDLESS[name], "assert f() == 42", cpu_s=1) == "timed_out"


def test_a_program_that_only_waits_is_over_its_time() -> None:
    assert verdict_of("import time\ndef f(): time.sleep(3600)", "f()", timeout_s=1.0) == "timed_out"


def test_nothing_of_a_program_is_left_behind() -> None:
    before = set(_sandboxed())
    program = ENDLESS["threads"].replace("import threading", "import threading  # left behind?")
    assert verdict_of(program, "assert f() == 42", timeout_s=2.0) == "timed_out"
    while set(_sandboxed()) - before:
        time.sleep(0.05)  # what stays fails by the suite's own limit


def test_a_program_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    before = set(_sandboxed())
    script = "import sandboxes; sandboxes.verdict_of('while True: pass', 'f()')"
    paths = os.pathsep.join([str(HELPERS), *filter(None, sys.path)])
    run = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    while len(set(_sandboxed()) - before) < 2:
        assert run.poll() is None
        time.sleep(0.05)
    groups = {os.getpgid(int(pid)) for pid in set(_sandboxed()) - before}
    assert (
        os.getpgid(run.pid) not in groups
    )  # Ctrl-C, which the run gets with its group, is not the program's
    run.kill()
    run.wait()
    while set(_sandboxed()) - before:
        time.sleep(0.05)  # what stays fails by the suite's own limit


def _sandboxed() -> Iterator[str]:
    """Processes that run `inside.py`, or bubblewrap for it."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"generated program, then calls" in (entry / "cmdline").read_bytes():
                yield entry.name
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def test_a_program_does_not_see_its_test_nor_the_environment() -> None:
    program = """
import gc, os, sys
def f():
    texts = [str(value) for value in gc.get_objects() if isinstance(value, (dict, list, tuple))]
    secret = " ".join(["the", "secret"])
    found = any(secret in text for text in texts) or secret in str(sys.argv) + str(os.environ)
    return found, sorted(os.environ)"""
    test = "# the secret\nassert f() == (False, ['LANG', 'LD_LIBRARY_PATH', 'PWD', 'PYTHONHASHSEED'])"
    assert verdict_of(program, test) == "passed"


def test_threads_are_bounded() -> None:
    program = """
import threading
def f():
    done = threading.Event()
    threads = []
    try:
        for _ in range(500):
            threads.append(threading.Thread(target=done.wait))
            threads[-1].start()
    except RuntimeError: pass
    done.set()
    return len(threads)"""
    assert verdict_of(program, "assert 2 < f() < 450", memory=256 << 20) == "passed"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_by_hand(machine: str) -> None:
    """A little interpreter of the program, for some calls."""
    import struct

    lines = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    number, column = ARCHITECTURES[machine]

    def outcome(call: int, flags: int = 0, architecture: int = number) -> int:
        data, value, place = {0: call, 4: architecture, 16: flags}, 0, 0
        while True:
            code, if_true, if_false, operand = lines[place]
            place += 1
            if code == 0x20:
                value = data[operand]
            elif code == 0x06:
                return operand
            else:
                holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
                place += if_true if holds else if_false

    allowed, refused, absent, killed = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    assert {outcome(n) for each in REFUSED.values() if (n := each[column]) is not None} == {refused}
    clone = (56, 220)[column]
    assert outcome(clone, 0x10F00) == allowed
    assert outcome(clone, 17) == refused
    assert outcome(clone, 0x10F00 | 0x10000000) == refused
    assert outcome(435) == absent
    assert {outcome(call) for call in ((0, 1, 3, 9), (63, 64, 57, 222))[column]} == {allowed}
    assert outcome(0, architecture=3) == killed
    assert outcome(0x40000000) == killed
