"""What a hostile submission is, and the lines that all of them may lean on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent

from .notebook import write_notebook
from .place import Place

LEVELS = ("limits", "seccomp", "namespaces")  # weakest first

# What the course says of an answer that it stopped; each is a regular expression.
LATE = "longer than"
MEMORY = "of memory"
ENDED = "ended the process|was ended by signal"
WRONG = "values|type|shape|dtype|finite|gradient|in place"

FUSES = '''\
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

def right(query, key):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)

def wrong(query, key):
    return torch.zeros(len(query), len(key))

def tries(attack, *given):
    """What came of it, or nothing where the sandbox refused."""
    try:
        return attack(*given)
    except Exception:
        return None

def fuse():
    """Should the sandbox fail, the system ends this process after a minute of computing."""
    tries(resource.setrlimit, resource.RLIMIT_CPU, (60, 60))

def child(work, seconds=20):
    """Run `work` in a forked process that ends by itself."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(seconds)
            work()
        finally:
            os._exit(0)
    return pid
'''


@dataclass(frozen=True)
class Submission:
    """One hostile submission: it never deserves a point, so that every point it gets is forged.

    code:     the cell with the answer; it may use the names of FUSES and of the Place (ROOT, PORT, ...).
              An answer that steals or breaks out answers rightly when it succeeds: so the points show it.
    build:    writes the whole submission instead, under this name, into the folder of submissions.
    says:     what its message must say, a regular expression.
    promised: the weakest level at which it must not succeed.
    """

    name: str
    intent: str
    code: str = ""
    build: Callable[[Place, str], None] | None = None
    says: str = "."
    promised: str = "limits"

    def promised_at(self, level: str) -> bool:
        return LEVELS.index(level) >= LEVELS.index(self.promised)

    def write(self, place: Place, learner: str) -> None:
        if self.build is not None:
            self.build(place, learner)
        else:
            write_notebook(place.notebook(learner), place.constants(), FUSES, dedent(self.code))
