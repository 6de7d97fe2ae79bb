"""Where a run takes place: the submissions, a copy of the course, and everything worth attacking, all in one folder.

Whatever a hostile submission is after lies here and belongs to nobody: secrets that are right answers, a process that
may be killed, a home that may be spoiled, listeners that may be called.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

import memcourse

from .notebook import CHAPTER, write_notebook

GOOD = """\
def attention_weights(query, key):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
"""
OUTSIDE = ("/tmp", "/var/tmp", "/dev/shm")  # where everybody may write


@dataclass
class Place:
    root: Path
    token: str  # marks what is written outside of the place
    canary: subprocess.Popen[bytes]  # a process that may be killed
    ports: list[int] = field(default_factory=list)

    @property
    def submissions(self) -> Path:
        return self.root / "submissions"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def course(self) -> Path:
        """The folder that holds the copy of the package."""
        return self.root / "course"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"

    @property
    def loot(self) -> Path:
        return self.root / "solutions" / "loot.py"

    def notebook(self, learner: str) -> Path:
        return self.submissions / f"{learner}_{CHAPTER}.ipynb"

    def constants(self) -> str:
        """A cell that tells a hostile submission all that it could guess."""
        known = {
            "ROOT": str(self.root),
            "SUBMISSIONS": str(self.submissions),
            "REPORT": str(self.report),
            "COURSE": str(self.course),
            "HOME": str(self.home),
            "TEMPORARY": str(self.temporary),
            "LOOT": str(self.loot),
            "TOKEN": self.token,
            "CANARY": self.canary.pid,
            "TCP": self.ports[0],
            "UDP": self.ports[1],
            "UNIX": str(self.root / "unix"),
            "ABSTRACT": f"\0{self.token}",
            "OUTER_PROCESSES": os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else "",
        }
        return "\n".join(f"{name} = {value!r}" for name, value in known.items())

    def environment(self) -> dict[str, str]:
        """Of the grader: its secret is a right answer, its course the copy, its home and temporary folder ours."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        ours = {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(self.course),
            "GRADER_SECRET": GOOD,
            "MPLCONFIGDIR": str(self.root / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "inductor"),  # which importing parts of torch makes
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return kept | ours

    def fingerprint(self) -> dict[str, str]:
        """Of every file that is not to change: its content, its mode and where it leads."""
        found = {}
        for folder in (self.submissions, self.course, self.home, self.loot.parent):
            for path in (folder, *folder.rglob("*")):
                state = path.lstat()
                content = b""
                if stat.S_ISLNK(state.st_mode):
                    content = os.readlink(path).encode()
                elif stat.S_ISREG(state.st_mode):
                    content = path.read_bytes()
                name = str(path.relative_to(self.root))
                found[name] = f"{state.st_mode:o} {hashlib.sha256(content).hexdigest()}"
        return found

    def left_outside(self) -> list[Path]:
        """Files with this place's token, where everybody may write."""
        return [path for folder in OUTSIDE for path in Path(folder).glob(f"*{self.token}*")]


@contextmanager
def place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    canary = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], env={"GRADER_SECRET": GOOD})
    found = Place(root, secrets.token_hex(8), canary)
    listeners: list[socket.socket] = []
    try:
        _furnish(found)
        listeners += _listen(found)
        yield found
    finally:
        for listener in listeners:
            listener.close()
        canary.kill()
        canary.wait()
        for path in found.left_outside():
            with suppress(OSError):
                path.unlink()
        _remove(root)


def _furnish(found: Place) -> None:
    for folder in (found.submissions, found.home, found.temporary, found.loot.parent):
        folder.mkdir(mode=0o755)
    found.root.chmod(0o755)  # as anybody's folder is
    found.temporary.chmod(0o1777)
    found.loot.write_text(GOOD)
    (found.home / ".bashrc").write_text("# mine\n")
    package = Path(memcourse.__file__).parent
    shutil.copytree(package, found.course / "memcourse", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(matplotlib.get_cachedir(), found.root / "matplotlib")  # making a list of fonts takes a while
    (found.course / "solutions").mkdir()
    write_notebook(found.course / "solutions" / f"{CHAPTER}.ipynb", GOOD)  # its time sets the limit of the others


def _listen(found: Place) -> list[socket.socket]:
    """Whoever reaches one of them is given a right answer."""
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    found.ports += [tcp.getsockname()[1], udp.getsockname()[1]]
    unix, abstract = (socket.socket(socket.AF_UNIX) for _ in range(2))
    unix.bind(str(found.root / "unix"))
    (found.root / "unix").chmod(0o777)
    abstract.bind(f"\0{found.token}")
    for listener in (unix, abstract):
        listener.listen()
    for listener in (tcp, unix, abstract):
        threading.Thread(target=_give_away, args=(listener,), daemon=True).start()
    threading.Thread(target=_echo, args=(udp,), daemon=True).start()
    return [tcp, udp, unix, abstract]


def _give_away(listener: socket.socket) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(GOOD.encode())


def _echo(udp: socket.socket) -> None:
    with suppress(OSError):
        while True:
            _, address = udp.recvfrom(1024)
            udp.sendto(GOOD.encode(), address)


def _remove(root: Path) -> None:
    """Also where a submission has taken the rights away, or made folders too deep for rmtree."""
    subprocess.run(["chmod", "-R", "u+rwX", str(root)], capture_output=True, check=False)
    subprocess.run(["rm", "-rf", str(root)], check=True)
