"""What confinement asks of Linux that Python 3.11 does not offer: calls into the C library."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38

CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
TO_RULE_ANOTHER_USER = (0, 1, 5, 6, 7)  # chown, dac_override, kill, setgid, setuid
_CAPABILITY_VERSION_3 = 0x20080522


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array | None) -> int:
    """Call a function of the C library with integers, strings and arrays; OSError where it answers -1."""
    result = int(getattr(_libc(), name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, argument: int) -> None:
    call("prctl", option, argument, 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the parent ends. Any change of user undoes it, so it is said again after each."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def capabilities() -> int:
    """Those in effect, a bit for each."""
    data = (ctypes.c_uint32 * 6)()
    call("capget", _own_capabilities(), data)
    return int(data[0] | data[3] << 32)


def has_capability(number: int) -> bool:
    return bool(capabilities() >> number & 1)


def keep_capabilities(*numbers: int) -> None:
    """Give up every capability but these, for this process and whatever it may become."""
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for numbers from 32
    call("capget", _own_capabilities(), data)
    data[0], data[3] = data[1], data[4]
    call("capset", _own_capabilities(), data)
    if has_capability(CAP_SETPCAP):
        with suppress(OSError):  # beyond the last one
            for number in range(64):
                prctl(PR_CAPBSET_DROP, number)
    kept = sum(1 << number for number in numbers)
    call("capset", _own_capabilities(), (ctypes.c_uint32 * 6)(kept, kept))


def _own_capabilities() -> ctypes.Array:
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)


def address_space() -> int:
    """Bytes of memory that the process has asked for, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


def tasks_of(user: int) -> int:
    """Processes of the user, with their threads."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # gone by now
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            count += int(fields["Threads"]) if int(fields["Uid"].split()[0]) == user else 0
    return count


def forget_environment() -> None:
    """Overwrite the variables that the process was started with; /proc/self/environ shows them else."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end: fields 50 and 51 of proc(5)
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
