"""A world of its own for an answer: other users, processes, network and files do not exist in it.

Three processes come of one. The outer one waits, outside, and ends as the answer ends. The first process of the new
world (its number 1) collects what ends there; when it dies, the kernel kills all that live there. The third returns.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from . import linux

NOBODY = 65534  # the answer's user in its world

_NEW_MOUNTS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEW_USERS, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_ALL = _NEW_MOUNTS | _NEW_CGROUP | _NEW_UTS | _NEW_IPC | _NEW_USERS | _NEW_PROCESSES | _NEW_NETWORK

_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_RECURSIVE, _PRIVATE = 16384, 1 << 18
_DETACH = 2
_MOUNT_SETATTR = 442
_CLONE, _PIVOT_ROOT = {"x86_64": 56, "aarch64": 220}, {"x86_64": 155, "aarch64": 41}
_HERE, _WHOLE_TREE = -100, 0x8000

_NO_CAPABILITIES_FOR_ROOT = 0xEF  # every secure bit and its lock, but the one that keeps capabilities over setuid

_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/nix/store")
_SYSTEM = (*_LIBRARIES, "/etc/ld.so.cache")


def enter(
    scratch: Path, readable: Sequence[Path], hidden: Sequence[Path], scratch_bytes: int, user: int | None
) -> None:
    """Return in a process that sees `readable` without `hidden`, the system's libraries and an empty `scratch`.

    user: who the answer is outside, where root starts it; None for others, who can only be themselves.
    """
    if user is not None:
        os.setgroups([])
    told, tell = os.pipe()
    ended, end = os.pipe()
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else the new process's maps of users belong to root
    first = linux.call("syscall", _CLONE[os.uname().machine], _ALL | signal.SIGCHLD, 0, 0, 0, 0)
    if first:
        os.close(told)
        os.close(end)
        _map_users(first, tell, user)
        _wait_outside(first, ended)
    linux.die_with_parent()
    os.close(tell)
    os.close(ended)
    if not os.read(told, 1):  # the outer process has ended
        os._exit(1)
    os.close(told)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # closed to the answer, which may be the same user outside
    _build(scratch, readable, hidden, scratch_bytes)
    answer = os.fork()
    if answer:
        _be_first(answer, end)
    os.close(end)
    linux.die_with_parent()
    _become_nobody()
    linux.die_with_parent()


# ---- who is who ----


def _map_users(first: int, tell: int, user: int | None) -> None:
    """Say who the users of the new world are outside, which can only be said there; then tell its first process."""
    root = "0 0 1\n" if user is not None else ""  # who makes the mounts
    folder = Path(f"/proc/{first}")
    try:
        (folder / "setgroups").write_text("deny")
        (folder / "uid_map").write_text(f"{root}{NOBODY} {os.getuid() if user is None else user} 1\n")
        (folder / "gid_map").write_text(f"{root}{NOBODY} {os.getgid() if user is None else user} 1\n")
        os.write(tell, b"1")
    finally:
        os.close(tell)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)


def _become_nobody() -> None:
    """Nobody, with no capability and no way to get one. The ids first: that needs a capability."""
    linux.prctl(linux.PR_SET_SECUREBITS, _NO_CAPABILITIES_FOR_ROOT)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    linux.keep_capabilities()


# ---- the processes that wait ----


def _wait_outside(first: int, ended: int) -> NoReturn:
    """End as the answer ended: with its exit code, or by its signal."""
    _close_all_but(ended)
    told = os.read(ended, 4)
    status = os.waitpid(first, 0)[1]
    if told:
        status = struct.unpack("=i", told)[0]
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), -code)
        code = 128 - code
    os._exit(code)


def _be_first(answer: int, tell: int) -> NoReturn:
    """Collect what ends here until the answer does; tell its status."""
    _close_all_but(tell)
    while True:
        process, status = os.wait()
        if process == answer:
            os.write(tell, struct.pack("=i", status))
            os._exit(0)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 16)


# ---- the new root ----


def _build(scratch: Path, readable: Sequence[Path], hidden: Sequence[Path], scratch_bytes: int) -> None:
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)  # nothing that is mounted here is seen outside
    root = Path(scratch)
    _mount("root", root, "tmpfs", _NO_SETUID | _NO_DEVICES, "size=1m,mode=755")
    for path in _outermost([*readable, *(Path(path) for path in _SYSTEM if os.path.lexists(path))]):
        _show(path, root)
    for device in _DEVICES:
        _show(Path(device), root, devices=True)
    for path in hidden:
        _hide(path, root)
    _show_processes(root)
    place = _place(scratch, root)
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={scratch_bytes},mode=700,uid={NOBODY},gid={NOBODY}"
    _mount("scratch", place, "tmpfs", _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS, options)
    _make_root(root)


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Without those that lie in another, and are shown with it."""
    found: list[Path] = []
    for path in sorted({Path(os.path.abspath(path)) for path in paths}):
        if not any(path.is_relative_to(other) for other in found if not other.is_symlink()):
            found.append(path)
    if Path("/") in found:
        raise ValueError("readable names the whole file system; it can name folders in it.")
    return found


def _place(path: Path, root: Path) -> Path:
    return root / os.path.abspath(path).lstrip("/")


def _show(path: Path, root: Path, *, devices: bool = False) -> None:
    if not os.path.lexists(path):
        raise FileNotFoundError(errno.ENOENT, f"readable names {path}, which does not exist")
    place = _place(path, root)
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        place.symlink_to(os.readlink(path))
        return
    if path.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    _mount(str(path), place, None, _BIND | _RECURSIVE)
    _make_read_only(place, _READ_ONLY | _NO_SETUID | (_NO_PROGRAMS if devices else _NO_DEVICES))


def _make_read_only(place: Path, flags: int) -> None:
    """The mount and all below it; a kernel before 5.12 is asked for each."""
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)  # set, clear, propagation, user namespace
    try:
        linux.call("syscall", _MOUNT_SETATTR, _HERE, bytes(place), _WHOLE_TREE, attributes, len(attributes))
    except OSError:
        for below, present in _mounts_in(place):
            _mount(None, below, None, _REMOUNT | _BIND | flags | present)


def _mounts_in(place: Path) -> list[tuple[str, int]]:
    """Each mount there with the flags that it has, which a user namespace may not take away."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split()[4].encode().decode("unicode_escape").encode("latin-1").decode()
        if Path(where).is_relative_to(place):
            known = os.statvfs(where).f_flag
            found.append((where, known & (_READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS | 1024 | 2048)))
    return found


def _hide(path: Path, root: Path) -> None:
    place = _place(path, root)
    if place.is_dir():
        _mount("hidden", place, "tmpfs", _READ_ONLY | _NO_SETUID | _NO_DEVICES, "size=4k,mode=755")
    elif place.exists():
        _mount("/dev/null", place, None, _BIND)


def _show_processes(root: Path) -> None:
    place = root / "proc"
    place.mkdir(exist_ok=True)
    with suppress(OSError):  # some systems forbid it; nothing that a computation needs is lost
        _mount("proc", place, "proc", _READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS)


def _make_root(root: Path) -> None:
    os.chdir(root)
    linux.call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")  # the old root now lies over the new one
    linux.call("umount2", b".", _DETACH)
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES)


def _mount(source: str | None, place: Path | str, kind: str | None, flags: int, options: str | None = None) -> None:
    linux.call("mount", _bytes(source), os.fsencode(place), _bytes(kind), flags, _bytes(options))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)
