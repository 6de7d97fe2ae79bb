"""A filter of system calls: an answer can compute, and use its own files; it cannot reach anyone else.

The filter is a small program that the kernel runs before every system call of the process. It is written
here instruction by instruction (classic BPF), so that nothing has to be installed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

from . import linux

# Number on x86_64, number on aarch64; None where the machine has no such call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # the network
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    # new processes, and what moves or slows other ones
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # looking into other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    # memory and messages that other processes share, that outlive the process, or that no limit counts
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # another view of the file system
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fsconfig": (431, 431),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # another user
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
    "capset": (126, 91),
    # parts of the kernel that a computation has no use for
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
TO_ITSELF = {  # allowed where the first argument is the process's own number
    "kill": (62, 129),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
TO_ITSELF_OR_ZERO = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}  # where zero means itself
CLONE, CLONE3 = (56, 220), (435, 435)
FCNTL, IOCTL, PRCTL = (72, 25), (16, 29), (157, 167)
NEWEST = 450  # a call that a newer kernel adds does not exist for an answer: what it does is not known here

CLONE_THREAD = 0x00010000
F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 8, 15, 0x8901, 0x8902  # a file that sends signals to its owner
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # typing into a terminal
PR_SET_PTRACER = 0x59616D61

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, the kernel's own name

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # absolute word; jumps; return a constant
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_SECCOMP = (317, 277)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def install() -> None:
    """Filter the system calls of this process, and of its threads to come, for good."""
    column, machine = MACHINES[platform.machine()]
    instructions = list(_filter(column, machine, os.getpid()))
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(buffer)))
    linux.call("syscall", _SECCOMP[column], _SET_MODE_FILTER, _ALL_THREADS, program)


def _filter(column: int, machine: int, own: int) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _MACHINE)
    yield (_EQUAL, 1, 0, machine)
    yield (_RETURN, 0, 0, _KILL)
    yield (_LOAD, 0, 0, _NUMBER)
    yield from _when(_GREATER, (1 << 30) - 1, [(_RETURN, 0, 0, _KILL)])  # x32: other numbers for the same calls
    yield from _when(_GREATER, NEWEST, [_error(errno.ENOSYS)])
    for numbers in REFUSED.values():
        yield from _call(numbers[column], [_error(errno.EPERM)])
    for numbers in TO_ITSELF.values():
        yield from _call(numbers[column], _only(_EQUAL, 0, own))
    for numbers in TO_ITSELF_OR_ZERO.values():
        yield from _call(numbers[column], _only(_EQUAL, 0, own, 0))
    yield from _call(CLONE3[column], [_error(errno.ENOSYS)])  # its flags are out of sight; libraries go on with clone
    yield from _call(CLONE[column], _only(_ANY_BIT, 0, CLONE_THREAD))
    yield from _call(IOCTL[column], _never(1, TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP))
    yield from _call(FCNTL[column], _never(1, F_SETOWN, F_SETOWN_EX))
    yield from _call(PRCTL[column], _never(0, linux.PR_SET_PDEATHSIG, linux.PR_SET_DUMPABLE, PR_SET_PTRACER))
    yield (_RETURN, 0, 0, _ALLOW)


def _call(number: int | None, then: list[Instruction]) -> Iterator[Instruction]:
    return iter(()) if number is None else _when(_EQUAL, number, then)


def _when(test: int, value: int, then: list[Instruction]) -> Iterator[Instruction]:
    yield (test, 0, len(then), value)
    yield from then


def _only(test: int, argument: int, *values: int) -> list[Instruction]:
    """Allow the call if its argument passes the test with one of the values."""
    tests = [i for value in values for i in _when(test, value, [(_RETURN, 0, 0, _ALLOW)])]
    return [_argument(argument), *tests, _error(errno.EPERM)]


def _never(argument: int, *values: int) -> list[Instruction]:
    """Refuse the call if its argument is one of the values."""
    tests = [i for value in values for i in _when(_EQUAL, value, [_error(errno.EPERM)])]
    return [_argument(argument), *tests, (_RETURN, 0, 0, _ALLOW)]


def _argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)  # the low half: both machines are little-endian


def _error(number: int) -> Instruction:
    return (_RETURN, 0, 0, _ERROR | number)
