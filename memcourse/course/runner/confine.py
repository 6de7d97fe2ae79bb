"""The confinement of the process that runs an answer, in three levels that each hold what the one below holds.

This module and those beside it that it needs (linux, seccomp, namespaces) use the standard library alone: they are
copied to where the answer runs.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import platform
import re
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import linux, namespaces, seccomp

LEVELS = ("limits", "seccomp", "namespaces")

PROMISES = {
    "limits": (
        "A process of its own with an empty environment, an empty folder, no terminal and no open file of the "
        "grader's; limits on memory, computing time, the size of a file, open files and processes. Started by root "
        "on Linux, it is another user, one for each answer."
    ),
    "seccomp": (
        "Besides, the kernel refuses it every connection, every new process and program, signals to any process "
        "but itself, a look into another one's memory, and another user's rights."
    ),
    "namespaces": (
        "Besides, it sees Python, the libraries and the course's runner, none of which it can change, and its own "
        "folder, of limited size, which vanishes with it: no other file, process, user or network exists for it."
    ),
}
NOT_PROMISED = {
    "limits": (
        "It can read and write what the grader's user can, open connections and signal that user's processes; a "
        "process that it starts may outlive it until the grader finds it. Started by root on Linux it can change "
        "nothing of the grader's, and still read and connect. On macOS memory is not limited; on Windows only time is."
    ),
    "seccomp": (
        "It can read and write the files that the grader's user can, and see which processes run. Started by root it "
        "can change nothing of the grader's, and may be able to read it."
    ),
    "namespaces": "A fault in the kernel or in the processor can undo it, and answers share the processor's time.",
}

_USERS = 1_900_000_000  # above what systems give to people, services and containers
_TRIAL = """
import sys, types
sys.modules["runner"] = package = types.ModuleType("runner")
package.__path__ = [sys.argv[1]]
from runner import confine
confine._try(sys.argv[2])
"""


class Unavailable(RuntimeError):
    """This system does not offer the level; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What an answer may use. The scratch folder as a whole is limited by namespaces alone."""

    memory_bytes: int = 1 << 30  # beyond what the process has when it is confined
    cpu_seconds: int = 60
    file_bytes: int = 1 << 24
    processes: int = 32  # threads count
    open_files: int = 64
    scratch_bytes: int = 1 << 26


def enter(
    level: str, limits: Limits, scratch: Path, readable: Sequence[Path], keep_fd: int, hidden: Sequence[Path] = ()
) -> None:
    """Confine this process, which has one thread. It may fork: the process that returns is to run the answer.

    The process that was there before ends as the answer ends, by the same exit code or signal; killing it kills
    all. Of the open files only `keep_fd` stays. At the level "namespaces" nothing is seen but `readable` without
    `hidden`, the system's libraries, and a new, empty folder in the place of `scratch`.
    """
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; it can be {', '.join(LEVELS)}.")
    if fault := _missing_here(level):
        raise Unavailable(fault)
    try:
        _leave_the_grader(scratch, keep_fd)
        if sys.platform == "linux":
            _confine_on_linux(level, limits, scratch, readable, hidden)
        else:
            os.chdir(scratch)
            _limit(limits, None, limits.processes)
    except OSError as error:
        raise Unavailable(_sentence(level, error)) from error


def available() -> tuple[str, ...]:
    """The levels that this system offers, weakest first: each has been tried."""
    return tuple(level for level in LEVELS if not why_not(level))


def why_not(level: str) -> str:
    """Why this system does not offer the level, in a sentence; nothing if it does."""
    return _missing_here(level) or str(_trials()[level].get("fault", ""))


def notes(level: str) -> tuple[str, ...]:
    """In what the level is weaker here than it promises."""
    return tuple(_trials()[level].get("notes", ()))


def shield() -> None:
    """Close this process's memory, environment and open files to other processes of its user.

    The grader calls it: an answer that is the same user could write into its memory through /proc.
    """
    if sys.platform == "linux":
        linux.prctl(linux.PR_SET_DUMPABLE, 0)


# ---- what every level does ----


def _leave_the_grader(scratch: Path, keep_fd: int) -> None:
    """A session, a standard input and output, and an environment of its own; no other file stays open."""
    if sys.platform != "win32":
        if os.getpgrp() != os.getpid():
            os.setsid()  # a group of its own, to be killed whole, and out of reach of the terminal's Ctrl-C
        os.closerange(3, keep_fd)
        os.closerange(keep_fd + 1, 1 << 16)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    sys.stdin = open(os.devnull)  # where multiprocessing has put a file of its own
    for name in set(os.environ) - {"SYSTEMROOT"}:  # without that one, Windows starts nothing
        del os.environ[name]
    os.environ.update(PATH=os.defpath, LANG="C.UTF-8", USER="nobody", OMP_NUM_THREADS="1")
    os.environ.update(HOME=str(scratch), TMPDIR=str(scratch))
    tempfile.tempdir = str(scratch)
    sys.dont_write_bytecode = True


def _limit(limits: Limits, address_space: int | None, processes: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    signal.alarm(10 * limits.cpu_seconds + 60)  # should the grader itself be killed
    sizes = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: processes,
    }
    if address_space is not None:  # elsewhere the system does not say, or does not keep to it
        sizes[resource.RLIMIT_AS] = address_space
    for kind, size in sizes.items():
        hard = resource.getrlimit(kind)[1]
        size = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(kind, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))  # a warning, then the end


# ---- Linux ----


def _confine_on_linux(
    level: str, limits: Limits, scratch: Path, readable: Sequence[Path], hidden: Sequence[Path]
) -> None:
    linux.die_with_parent()
    linux.forget_environment()
    shield()
    address_space = linux.address_space() + limits.memory_bytes
    user = _another_user()
    processes = limits.processes + _counted_with_it(level, user)
    if level == "namespaces":
        namespaces.enter(scratch, readable, hidden, limits.scratch_bytes, user)
    elif user is not None:
        _become(user, scratch, readable)
    os.chdir(scratch)
    _limit(limits, address_space, processes)
    if level != "limits":
        seccomp.install()


def _another_user() -> int | None:
    """For root: a user that nobody else is. Others can only be themselves, and so can root without root's rights."""
    if os.getuid() or not all(linux.has_capability(number) for number in linux.TO_RULE_ANOTHER_USER):
        return None
    known = [[int(number) for number in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    users = (_USERS + os.getpid(), namespaces.NOBODY)  # a container may not have the first
    return next((user for user in users for first, _, count in known if first <= user < first + count), None)


def _become(user: int, scratch: Path, readable: Sequence[Path]) -> None:
    """Another user; one that can read every file, where Python or a library could not be read else."""
    os.chown(scratch, user, user)
    os.setgroups([])
    linux.prctl(linux.PR_SET_KEEPCAPS, 1)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    enough = all(os.access(path, os.R_OK) for path in readable)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.keep_capabilities(*(() if enough else (linux.CAP_DAC_READ_SEARCH,)))
    linux.die_with_parent()


def _counted_with_it(level: str, user: int | None) -> int:
    """How many processes and threads the kernel counts with the answer's: those of its user."""
    if user is not None:
        return 0
    version = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if level == "namespaces" and version >= (5, 14):
        return 2  # those that wait for it; others are counted apart
    return linux.tasks_of(os.getuid())


# ---- what this system offers ----


def _missing_here(level: str) -> str:
    if level != "limits" and sys.platform != "linux":
        return f"The level {level!r} stands on a part of Linux, and this is {platform.system()}."
    if level != "limits" and (platform.machine() not in seccomp.MACHINES or sys.maxsize < 1 << 32):
        return f"The filter of system calls is written for {' and '.join(seccomp.MACHINES)}, not {platform.machine()}."
    return ""


def _sentence(level: str, error: OSError) -> str:
    text = f"The level {level!r} could not be entered: {error.strerror or error}."
    if level == "namespaces" and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC):
        text += " This system does not let this user make namespaces (a container, or a setting of the system)."
    return text


@functools.cache
def _trials() -> dict[str, dict[str, Any]]:
    """What became of an attempt at each level, made in a process of its own."""
    if sys.platform == "win32":
        return {level: {} for level in LEVELS}
    command = [sys.executable, "-I", "-S", "-B", "-c", _TRIAL, str(Path(__file__).parent)]
    folders = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *site.getsitepackages()}
    paths = json.dumps(sorted(folder for folder in folders if os.path.isdir(folder)))
    done = subprocess.run([*command, paths], capture_output=True, text=True, timeout=60)
    if done.returncode:
        return {level: {"fault": f"The attempt at it failed: {done.stderr[-500:]}"} for level in LEVELS}
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def _try(paths: str) -> None:
    """Print what becomes of an attempt at each level."""
    readable = [Path(path) for path in json.loads(paths)]
    print(json.dumps({level: _attempt(level, readable) for level in LEVELS}))


def _attempt(level: str, readable: Sequence[Path]) -> dict[str, Any]:
    ours, theirs = os.pipe()
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()
        if not child:
            try:
                stays_root = os.getuid() == 0 and (sys.platform != "linux" or _another_user() is None)
                enter(level, Limits(), Path(scratch), readable, theirs)
                import sqlite3  # noqa: F401  a module with a library of the system

                Path("file").write_text("")
                said: dict[str, Any] = {"notes": _weaker_in(level, stays_root)}
            except (OSError, ImportError, Unavailable) as error:
                said = {"fault": str(error)}
            os.write(theirs, json.dumps(said).encode())
            os._exit(0)
        os.close(theirs)
        with open(ours, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    result: dict[str, Any] = json.loads(answer) if answer else {"fault": f"The attempt at it ended with {status}."}
    return result


def _weaker_in(level: str, stays_root: bool) -> list[str]:
    found = []
    if stays_root:
        found.append("The answer stays root: no limit on processes binds it, and no file that it sees is closed to it.")
    elif level != "namespaces" and sys.platform == "linux" and linux.has_capability(linux.CAP_DAC_READ_SEARCH):
        found.append("The answer can read every file, since Python or a library lies where root alone can read.")
    if level == "namespaces" and not os.path.exists("/proc/self"):
        found.append("The answer has no /proc, since this system forbids a new one.")
    return found
