"""What an answer's process can reach, at each level that this system offers, tried from inside.

A server like the grader's forks one process for each attempt. The tests look at what came out of it, at how it ended,
and at whether anything of it is left. Root tries it twice: as itself, and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memcourse.course.runner import confine, seccomp

if sys.platform != "linux":
    pytest.skip("the levels above the first are Linux's", allow_module_level=True)

PARTS = ("confine", "linux", "seccomp", "namespaces")
ORDINARY = 54321  # a user that owns nothing
SERVER = """
import json, os, signal, sys, tempfile, traceback, types
from pathlib import Path
here, libraries = sys.argv[1:3]
sys.modules["runner"] = package = types.ModuleType("runner")
package.__path__ = [here]
from runner import confine
if libraries:
    sys.path.append(libraries)
    import numpy, torch

def answer(job, scratch, out):
    def say(value):
        os.write(out, json.dumps(value).encode() + b"\\n")
    def attempt(action, *arguments):
        try:
            return repr(action(*arguments))
        except BaseException as error:
            return type(error).__name__
    limits = confine.Limits(**job["limits"])
    readable = [Path(path) for path in (sys.prefix, sys.base_prefix, here, libraries, *job["readable"]) if path]
    try:
        confine.enter(job["level"], limits, scratch, readable, out, [Path(path) for path in job["hidden"]])
        names = {"say": say, "attempt": attempt, "os": os, "out": out, "scratch": scratch, "confine": confine}
        exec(job["code"], names)
    except BaseException:
        say(traceback.format_exc())
        os._exit(99)
    os._exit(0)

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    signal.alarm(30)  # should an attempt not end
    inside, out = os.pipe()
    with tempfile.TemporaryDirectory() as scratch:
        process = os.fork()
        if not process:
            answer(job, Path(scratch), out)
        os.close(out)
        with open(inside) as said:
            lines = [said.readline()] if job["kill"] else []
            if job["kill"]:
                os.kill(process, signal.SIGKILL)
            lines += said.readlines()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps([[json.loads(line) for line in lines if line], code, os.listdir(scratch)]), flush=True)
"""


@dataclass
class Result:
    said: list[Any]
    code: int
    left: list[str]  # in the scratch folder


class Server:
    """Forks the attempts, as one user, with one Python."""

    def __init__(self, python: str, folder: Path, libraries: str = "", **user: Any) -> None:
        self.folder, self.libraries = folder, libraries
        self.command = [python, "-I", "-S", "-c", SERVER, str(folder), libraries]
        environment = {"GRADERS_TOKEN": "hunter2", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, **user
        )
        assert self._line() == "ready\n"

    def run(
        self, level: str, code: str, *, kill: bool = False, readable: tuple = (), hidden: tuple = (), **limits: int
    ) -> Result:
        """What the code said, how its process ended, and what it left; nothing of it lives on."""
        self.order(level, code, kill, readable, hidden, limits)
        result = Result(*json.loads(self._line()))
        self.wait_until_alive_are([self.process.pid])
        return result

    def order(
        self, level: str, code: str, kill: bool = False, readable: tuple = (), hidden: tuple = (), limits: Any = ()
    ) -> None:
        paths = {"readable": [str(path) for path in readable], "hidden": [str(path) for path in hidden]}
        job = {"level": level, "code": code, "kill": kill, "limits": dict(limits)} | paths
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def wait_until_alive_are(self, expected: list[int]) -> None:
        until = time.monotonic() + 5
        while self.alive() != expected and time.monotonic() < until:
            time.sleep(0.005)
        assert self.alive() == expected

    def alive(self) -> list[int]:
        """Every process that was forked from the server, and the server."""
        mark = f"\0{self.folder}\0{self.libraries}\0".encode()
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += [int(file.parent.name)] if file.read_bytes().endswith(mark) else []
            except OSError:  # gone by now
                pass
        return found

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def ordinary_python() -> str | None:
    """A Python that an ordinary user can start, where the tests run as root."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3") if os.getuid() == 0 else ():
        command = [python, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if not subprocess.run(command, user=ORDINARY, group=ORDINARY, extra_groups=[], cwd="/").returncode:
                return python
        except OSError:
            pass
    return None


ORDINARY_PYTHON = ordinary_python()
USERS = ["this user", "an ordinary user"] if ORDINARY_PYTHON else ["this user"]
LEVELS = confine.available()
FILTERED = tuple(level for level in LEVELS if level != "limits")
WORLDS = tuple(level for level in LEVELS if level == "namespaces")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name in USERS:
            copy = Path(folder, name.replace(" ", "_"))
            copy.mkdir()
            for part in PARTS:
                shutil.copy(Path(confine.__file__).parent / f"{part}.py", copy)
            if name == "this user":
                made[name] = Server(sys.executable, copy, sysconfig.get_path("purelib"))
            else:
                Path(folder).chmod(0o755)
                made[name] = Server(str(ORDINARY_PYTHON), copy, user=ORDINARY, group=ORDINARY, extra_groups=[], cwd="/")
        yield made
        for server in made.values():
            server.end()


@pytest.fixture(params=USERS)
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


at_every_level = pytest.mark.parametrize("level", LEVELS)
with_a_filter = pytest.mark.parametrize("level", FILTERED)
in_a_world_of_its_own = pytest.mark.parametrize("level", WORLDS)


# ---- how it ends ----


@at_every_level
@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), 9)", -9),
        ("import ctypes; ctypes.string_at(0)", -11),
        ("os.abort()", -6),
    ],
)
def test_its_ending_arrives_outside(server: Server, level: str, code: str, ending: int) -> None:
    assert server.run(level, code).code == ending


def test_an_endless_loop_ends_at_the_limit(servers: dict[str, Server]) -> None:
    assert servers["this user"].run(LEVELS[-1], "while True: pass", cpu_seconds=1).code == -24  # SIGXCPU


@at_every_level
def test_who_kills_the_outer_process_kills_all(server: Server, level: str) -> None:
    assert server.run(level, "say('here')\nwhile True: pass", kill=True).said == ["here"]


@with_a_filter
def test_it_ends_with_the_server(servers: dict[str, Server], level: str) -> None:
    server = Server(sys.executable, servers["this user"].folder)
    server.order(level, "while True: pass")
    until = time.monotonic() + 5
    while not any(is_filtered(process) for process in server.alive()) and time.monotonic() < until:
        time.sleep(0.005)
    assert any(is_filtered(process) for process in server.alive())
    server.end()
    server.wait_until_alive_are([])


def is_filtered(process: int) -> bool:
    return "Seccomp:\t2" in Path(f"/proc/{process}/status").read_text()


# ---- what it can use ----


@at_every_level
def test_its_memory_and_files_are_limited(server: Server, level: str) -> None:
    code = """
say(attempt(bytearray, 1 << 28)), say(attempt(lambda: len(bytearray(1 << 26))))
say(attempt(lambda: open("large", "wb").write(bytes(1 << 21))))
say(attempt(lambda: [open("many", "wb") for _ in range(64)]))
"""
    assert server.run(level, code, memory_bytes=1 << 27, file_bytes=1 << 20, open_files=32).said == [
        "MemoryError",
        str(1 << 26),
        "OSError",
        "OSError",
    ]


@at_every_level
def test_a_limit_cannot_be_raised(server: Server, level: str) -> None:
    code = "import resource as r; say(attempt(r.setrlimit, r.RLIMIT_AS, (-1, -1)))"
    assert server.run(level, code).said == ["ValueError"]


@at_every_level
def test_its_threads_are_counted(server: Server, level: str) -> None:
    code = """
import threading, time
threading.stack_size(1 << 16)
started = 0
def more():
    global started
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start()
        started += 1
say(attempt(more)), say(started)
"""
    error, started = server.run(level, code, processes=9).said
    assert error == "RuntimeError" and started <= 9


def test_a_fork_bomb_ends_at_the_limit(server: Server) -> None:
    code = """
import time
children = []
def more():
    for _ in range(50):
        child = os.fork()
        if not child:
            time.sleep(30)
        children.append(child)
say(attempt(more)), say(len(children))
for child in children:
    os.kill(child, 9), os.waitpid(child, 0)
"""
    error, started = server.run("limits", code, processes=9).said
    # the system counts all processes of the user, and others of an ordinary user may end meanwhile
    assert error == "BlockingIOError" and started <= 9 + 5


@in_a_world_of_its_own
def test_its_folder_is_limited_and_vanishes(server: Server, level: str) -> None:
    code = """
def fill():
    for number in range(9):
        open(str(number), "wb").write(bytes(1 << 20))
say(attempt(fill)), say(sorted(os.listdir()))
"""
    result = server.run(level, code, scratch_bytes=3 << 20)
    assert result.said == ["OSError", ["0", "1", "2", "3"]] and result.left == []


@at_every_level
def test_it_has_a_folder_of_its_own(server: Server, level: str) -> None:
    code = """
import tempfile
open("file", "w").write("mine"), say(open(scratch / "file").read()), say(os.getcwd() == str(scratch))
say(tempfile.gettempdir() == os.environ["HOME"] == str(scratch))
"""
    result = server.run(level, code)
    assert result.said == ["mine", True, True] and result.left == ([] if level in WORLDS else ["file"])


# ---- what it can see ----


@at_every_level
def test_the_environment_of_the_grader_is_gone(server: Server, level: str) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
say(sorted(os.environ)), say(libc.getenv(b"GRADERS_TOKEN"))
say("hunter2" in attempt(lambda: open("/proc/self/environ").read()))
"""
    names = ["HOME", "LANG", "OMP_NUM_THREADS", "PATH", "TMPDIR", "USER"]
    assert server.run(level, code).said == [names, None, False]


@at_every_level
def test_no_file_of_the_grader_stays_open(server: Server, level: str) -> None:
    code = """
found = []
for number in range(1000):
    try:
        os.fstat(number), found.append(number)
    except OSError:
        pass
say([os.fstat(number).st_rdev == os.stat("/dev/null").st_rdev for number in found])
"""
    streams_and_stdin_again, kept = [True, True, True, True], [False]
    assert sorted(server.run(level, code).said[0]) == sorted(streams_and_stdin_again + kept)


@in_a_world_of_its_own
def test_it_sees_python_and_its_folder_and_nothing_else(server: Server, level: str) -> None:
    with tempfile.NamedTemporaryFile() as secret:
        os.chmod(secret.name, 0o644)
        paths = [secret.name, __file__, "/etc/passwd", "/sys", "/bin/sh", "/dev/mem", "/dev/shm"]
        roots = {Path(path).parts[1] for path in (sys.prefix, sys.base_prefix)}
        code = f"""
say([path for path in {paths!r} if os.path.exists(path)]), say(os.path.exists(os.__file__))
say(sorted(set(os.listdir("/..")) - {{"tmp", "dev", "etc", "proc", "usr", "lib", "lib32", "lib64", "nix", *{roots!r}}}))
say(os.listdir(scratch.parent)), say([name for name in os.listdir("/proc") if name.isdigit()])
say([attempt(open, path, "w") for path in ("/file", scratch.parent / "file", os.__file__, "/proc/1/mem")])
"""
        found, python, above, beside, processes, writing = server.run(level, code).said
    assert (found, python, above, len(processes)) == ([], True, [], 2)
    assert len(set(beside) - set(Path(sys.prefix).parts)) <= 2  # its folder, and the copy of the runner
    assert set(writing) <= {"OSError", "PermissionError"}


@in_a_world_of_its_own
def test_what_is_hidden_is_not_there(server: Server, level: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in ("shown", "hidden"):
            Path(folder, name).mkdir()
            Path(folder, name, "file").write_text(name)
            Path(folder, name, "file").chmod(0o666)
        Path(folder, "alone").write_text("hidden")
        code = f"say([sorted(os.listdir(place)) for place, _, _ in os.walk({folder!r})])\n"
        code += f"say(open({folder!r} + '/alone').read()), say(attempt(os.mkdir, {folder!r} + '/hidden/new'))\n"
        code += f"say(attempt(open, {folder!r} + '/shown/file', 'w'))"
        hidden = (Path(folder, "hidden"), Path(folder, "alone"), Path(folder, "nowhere"))
        tree, alone, made, changed = server.run(level, code, readable=(folder,), hidden=hidden).said
    assert sorted(map(sorted, tree)) == [[], ["alone", "hidden", "shown"], ["file"]]
    assert alone == "" and made == changed == "OSError"


@in_a_world_of_its_own
def test_what_cannot_be_shown_is_named(server: Server, level: str) -> None:
    for path, reason in (
        ("/nowhere/at all", "readable names /nowhere/at all, which does not exist"),
        ("/", "whole file"),
    ):
        result = server.run(level, "", readable=(path,))
        assert result.code == 99 and reason in result.said[0]


@at_every_level
def test_started_by_root_it_is_another_user_each_time(servers: dict[str, Server], level: str) -> None:
    code = "say([os.getresuid(), os.getresgid(), os.getgroups()]), say(os.stat(scratch).st_uid)\n"
    code += "say(open('/proc/self/status').read()), say(attempt(open, '/etc/passwd', 'a'))"
    first, second = (servers["this user"].run(level, code).said for _ in range(2))
    users, owner, status, writing = first
    assert users[0] == [owner] * 3 and users[2] == [] or os.getuid()
    assert (owner, second[1]) == (65534, 65534) if level in WORLDS else (owner != second[1] or os.getuid())
    assert owner != 0 and writing in ("PermissionError", "OSError")
    fields = dict(line.split(":\t") for line in status.splitlines())
    kept = 0 if level in WORLDS or not confine.notes(level) else 1 << 2  # reading every file
    assert [int(fields[name], 16) for name in ("CapEff", "CapPrm")] == [kept, kept]


# ---- whom it can reach ----


@with_a_filter
def test_it_has_no_network(server: Server, level: str) -> None:
    code = """
import socket
say([attempt(socket.socket, family) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16)])
say(attempt(socket.socketpair))
"""
    assert server.run(level, code).said == [["PermissionError"] * 4, "PermissionError"]


@with_a_filter
def test_it_starts_no_process(server: Server, level: str) -> None:
    code = """
import multiprocessing, subprocess, sys
say([attempt(os.fork), attempt(os.posix_spawn, sys.executable, ["x"], {})])
say(attempt(os.execv, sys.executable, ["x"])), say(attempt(os.system, "true"))
say(attempt(subprocess.run, [sys.executable])), say(attempt(multiprocessing.Process().start))
"""
    refused = "PermissionError"
    said = server.run(level, code).said
    assert said[0] == [refused] * 2 and said[1] == refused and said[2] != "0" and said[3:] == [refused] * 2


@with_a_filter
def test_it_signals_nobody_but_itself(server: Server, level: str) -> None:
    code = f"""
import signal, threading
others = [os.getppid(), {os.getpid()}, 1, 0, -1, -os.getpid()]
say([attempt(os.kill, other, 0) for other in others]), say(attempt(os.pidfd_open, os.getppid()))
say(attempt(os.setpriority, os.PRIO_USER, 0, 5)), say(attempt(os.sched_setaffinity, os.getppid(), [0]))
import resource
say(attempt(resource.prlimit, os.getppid(), resource.RLIMIT_CPU))
say([attempt(os.kill, os.getpid(), 0), attempt(signal.pthread_kill, threading.get_ident(), 0)])
say(attempt(os.sched_setaffinity, 0, os.sched_getaffinity(0)))
import fcntl
say(attempt(fcntl.fcntl, out, fcntl.F_SETOWN, os.getppid())), say(attempt(fcntl.fcntl, out, fcntl.F_GETFD))
"""
    refused, itself = "PermissionError", [["None", "None"], "None"]
    assert server.run(level, code).said == [[refused] * 6, *[refused] * 4, *itself, refused, "1"]


@with_a_filter
def test_every_call_on_the_list_is_refused(server: Server, level: str) -> None:
    column = seccomp.MACHINES[platform.machine()][0]
    calls = {name: numbers[column] for name, numbers in seccomp.REFUSED.items() if numbers[column] is not None}
    unshared = 0x10000000 | 17  # clone into a new user namespace
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def error(number, *arguments):
    return libc.syscall(number, *map(ctypes.c_long, arguments)) == -1 and ctypes.get_errno()
say([name for name, number in {calls!r}.items() if error(number, -1, -1, -1, -1) != 1])
say([error({seccomp.CLONE[column]}, {unshared}), error({seccomp.CLONE3[column]}, 0, 0), error(463, 0)])
say([error({seccomp.PRCTL[column]}, option, 0) for option in (1, 4)])
say(error({seccomp.IOCTL[column]}, 0, {seccomp.TIOCSTI}))
error(0x40000000 | {seccomp.CLONE[column]}, 0)
"""
    result = server.run(level, code)
    assert result.said == [[], [1, 38, 38], [1, 1], 1]  # EPERM, ENOSYS
    assert result.code == -31  # SIGSYS: numbers of another machine


# ---- what still works ----


@at_every_level
def test_threads_and_modules_that_were_not_loaded_work(server: Server, level: str) -> None:
    code = """
import asyncio, concurrent.futures, ctypes, decimal, linecache, lzma, sqlite3, threading, unittest, zoneinfo
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    say(list(pool.map(abs, [-1, -2])))
say(str(decimal.Decimal(1) / 8)), say(sqlite3.connect("base").execute("select 6 * 7").fetchone())
say(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 3)()), say(linecache.getline(os.__file__, 1) != "")
"""
    assert server.run(level, code).said == [[1, 2], "0.125", [42], 3, True]


@at_every_level
@pytest.mark.parametrize("threads", [1, 2])
def test_torch_computes(servers: dict[str, Server], level: str, threads: int) -> None:
    code = f"""
import numpy, torch
torch.set_num_threads({threads})
torch.manual_seed(0)
x = torch.randn(200, 200, requires_grad=True)
(x @ x).sum().backward()
say(torch.allclose(x.grad, x.sum(0)[:, None] + x.sum(1)[None], atol=1e-3)), say(torch.get_num_threads())
say(list(torch.nn.Conv1d(3, 5, 3)(torch.randn(2, 3, 7)).shape)), say(torch.linalg.svdvals(torch.eye(3)).tolist())
y = torch.randn(2, 3, 64, 8)
say(list(torch.nn.functional.scaled_dot_product_attention(y, y, y).shape))
say(numpy.linalg.inv(numpy.eye(2) * 2).tolist()), torch.save(x, "x"), say(torch.load("x").shape == x.shape)
"""
    expected = [True, threads, [2, 5, 5], [1.0, 1.0, 1.0], [2, 3, 64, 8], [[0.5, 0.0], [0.0, 0.5]], True]
    assert servers["this user"].run(level, code).said == expected


# ---- what is not offered ----


@with_a_filter
def test_a_level_that_the_system_forbids_is_refused_with_its_sentence(server: Server, level: str) -> None:
    code = """
try:  # the filter forbids what this level needs
    confine.enter("namespaces", confine.Limits(), scratch, [], out)
except confine.Unavailable as fault:
    say(str(fault))
"""
    [sentence] = server.run(level, code).said
    assert sentence.startswith("The level 'namespaces' could not be entered: ")
    assert "Operation not permitted. This system does not let this user make namespaces" in sentence


def test_a_level_that_is_not_written_for_the_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    for level in ("seccomp", "namespaces"):
        assert "not riscv64" in confine.why_not(level)
        with pytest.raises(confine.Unavailable, match="not riscv64"):
            confine.enter(level, confine.Limits(), tmp_path, [], 3)
    assert confine.available() == ("limits",)


def test_a_level_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="level is 'jail'; it can be limits, seccomp, namespaces"):
        confine.enter("jail", confine.Limits(), tmp_path, [], 3)


def test_every_level_says_what_it_promises() -> None:
    assert tuple(confine.PROMISES) == tuple(confine.NOT_PROMISED) == confine.LEVELS
