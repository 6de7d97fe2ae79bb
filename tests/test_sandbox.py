"""Whatever an answer does, it costs its own points and nothing else."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from memcourse.course import sandbox
from memcourse.course.answers import collect
from memcourse.course.checks import all_exercises
from memcourse.course.classroom.extra_checks import STAGE, _hidden
from memcourse.course.runner import confine
from memcourse.course.sandbox import processes, session

EXERCISE = next(exercise for exercise in all_exercises() if exercise.name == "attention_weights")
GOOD = "def attention_weights(query, key):\n    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)"


def run(*cells, **limits):
    return sandbox.run(EXERCISE, collect(cells).closure("attention_weights"), **limits)


def answer(body, before=""):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"import os, sys, time\n{before}\ndef attention_weights(query, key):\n{lines}    return query\n"


@pytest.fixture(scope="module", autouse=True)
def server():
    """It makes a temporary folder of its own, which stays until the tests end."""
    assert run(GOOD).outcome == "passed"


@pytest.fixture
def nothing_else(tmp_path, monkeypatch, capfd):
    """The caller's folder, files, output, temporary files and processes are the same afterwards."""
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(folder)
    environment = without_pytest(os.environ)
    yield
    assert Path.cwd() == folder
    assert [path.name for path in folder.iterdir()] == ["mine.txt"] and (folder / "mine.txt").read_text() == "mine"
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert without_pytest(os.environ) == environment
    if sys.platform == "linux":
        until = time.monotonic() + 5  # what was killed may take a moment to end
        while living_in(temporary) and time.monotonic() < until:
            time.sleep(0.05)
        assert living_in(temporary) == []


def without_pytest(environment):
    return {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}


def living_in(folder):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            known = os.readlink(entry / "cwd") + (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in known:
            found.append(entry.name)
    return found


def test_a_good_answer_passes_with_all_its_points(nothing_else):
    report = run(GOOD)
    assert (report.outcome, report.points, report.max_points) == ("passed", EXERCISE.points, EXERCISE.points)
    assert "values" in report.stages


def test_an_untouched_stub_is_not_attempted(nothing_else):
    assert run(EXERCISE.stub).outcome == "not attempted"


LATE, TOO_BIG, ZERO = "It took longer than 0.5 s", "It used more than 256 MB of memory", "ZeroDivisionError"
CUT_OFF = "It cut itself off from the grader"
ALL_PIPES = "for n in range(3, 99):\n    try:\n        {}\n    except OSError: pass\n"
HOSTILE = {  # what it does: (the cell, what the report says)
    "loops for ever": (answer("while True: pass"), LATE),
    "sleeps": (answer("time.sleep(99)"), LATE),
    "loops while it is defined": (answer("", "@(lambda f: [0 for _ in iter(int, 1)])"), LATE),
    "ignores signals": (
        answer("import signal\nfor s in (2, 14, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"),
        LATE,
    ),
    "fills the memory": (answer("x = []\nwhile True: x.append(bytearray(1 << 24))"), TOO_BIG),
    "keeps what it filled": (answer("while True: kept.append(bytearray(1 << 9))", "kept = []"), TOO_BIG),
    "fills it to the last byte": (
        answer(
            "size = 1 << 24\nwhile size > 16:\n    try: kept.append(bytearray(size))\n"
            "    except MemoryError: size //= 2\nraise MemoryError",
            "kept = []",
        ),
        TOO_BIG,
    ),
    "asks torch for too much": (answer("import torch\ntorch.zeros(1 << 40)"), TOO_BIG),
    "ends the process": (
        answer("os._exit(3)"),
        "It ended the process (exit code 3) before the checks were done.",
    ),
    "ends it as if all were well": (answer("os._exit(0)"), "It ended the process (exit code 0)"),
    "exits while it is defined": (answer("", "@lambda f: os._exit(5)"), "It ended the process (exit code 5)"),
    "raises SystemExit": (answer("sys.exit(4)"), "SystemExit: 4"),
    "raises KeyboardInterrupt": (answer("raise KeyboardInterrupt"), "KeyboardInterrupt"),
    "kills itself": (answer("os.kill(os.getpid(), 9)"), "It was ended by signal 9"),
    "kills its parent": (
        answer("os.kill(os.getppid(), 9)\nos._exit(0)"),
        CUT_OFF if os.geteuid() else "PermissionError",  # started by root it is another user
    ),
    "segfaults": (answer("import ctypes\nctypes.string_at(0)"), "It was ended by signal 11"),
    "cannot be imported": (
        "import no_such_module\n" + answer("no_such_module.x"),
        "No module named 'no_such_module'",
    ),
    "prints a megabyte": (answer("print('x' * (1 << 20))\nos.write(2, b'y' * (1 << 20))\n1 / 0"), ZERO),
    "reads what nobody types": (answer("input()"), "EOFError"),
    "changes the folder": (answer("os.chdir('/')\nos.environ['HOME'] = '/'\n1 / 0"), ZERO),
    "writes and deletes files": (answer("open('mine.txt', 'w').close()\nos.remove('mine.txt')\n1 / 0"), ZERO),
    "writes a huge file": (answer("open('big', 'wb').write(bytes(1 << 26))"), "File too large"),
    "recurses for ever": (answer("return attention_weights(query, key)"), "RecursionError"),
    "recurses without a limit": (
        answer("sys.setrecursionlimit(10 ** 9)\nx = ()\nfor _ in range(300_000): x = (x,)\nhash(x)"),
        "It was ended by signal 11",
    ),
    "leaves a child": (
        answer("from subprocess import Popen\nPopen(['sleep', '60'], start_new_session=True, cwd='/')\n1 / 0"),
        ZERO,
    ),
    "leaves a fork": (answer("if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n1 / 0"), ZERO),
    "leaves a thread": (
        answer("from threading import Thread\nThread(target=time.sleep, args=(60,)).start()\n1 / 0"),
        ZERO,
    ),
    "writes on every pipe": (
        answer(ALL_PIPES.format("os.write(n, b'rubbish\\n')") + "os._exit(0)"),
        "could not be read",
    ),
    "fills every pipe": (
        answer(ALL_PIPES.format("while True: os.write(n, b'x' * 65536)")),
        "could not be read",
    ),
    "closes every pipe": (answer("os.closerange(3, 99)\nos._exit(6)"), "exit code 6"),
    "closes every pipe and waits": (answer("os.closerange(3, 99)\ntime.sleep(60)"), CUT_OFF),
    "raises a megabyte": (answer("raise ValueError('\\ud800\\x1b[2J' + 'x' * (1 << 20))"), "ValueError"),
    "replaces what the grader uses": (
        answer("import json, pytest\njson.dumps = pytest.main = print = None\nos._exit(7)"),
        "It ended the process (exit code 7)",
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits are POSIX")
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_answer_costs_its_own_points(hostile, nothing_else):
    cell, said = HOSTILE[hostile]
    # at the weakest level, where the most is left to clean up; tests/hostile has them all
    report = run(cell, level="limits", seconds=0.5 if said == LATE else 20.0, memory_bytes=1 << 28)
    assert report.outcome == "crashed"
    assert report.points == 0
    assert said in report.message
    assert len(report.message) < 5000 and "\x1b" not in report.message
    report.message.encode()
    assert run(GOOD, level="limits").outcome == "passed"  # the next one is never blamed


def test_the_limit_is_the_exercises_unless_another_is_given(nothing_else):
    quick = dataclasses.replace(EXERCISE, time_limit=0.3)
    started = time.monotonic()
    report = sandbox.run(quick, collect([answer("while True: pass")]).closure("attention_weights"))
    assert "longer than 0.3 s" in report.message
    assert time.monotonic() - started < 5


def test_an_answer_costs_little_after_the_first(nothing_else):
    run(GOOD)
    started = time.monotonic()
    run(GOOD)
    assert time.monotonic() - started < 1.0  # importing torch alone takes longer


def test_a_crash_names_the_learners_own_line(nothing_else):
    message = run("import torch", "# mine\n" + GOOD.replace("softmax", "sofmax")).message
    assert "line 3 of your notebook, cell 2" in message
    assert "return (query @ key.mT / query.shape[-1] ** 0.5).sofmax(-1)" in message


def test_a_definition_that_raises_names_its_line(nothing_else):
    message = run("x = 1", "half = 1 / 0", GOOD.replace("0.5", "half")).message
    assert "while it was defined, at line 1 of your notebook, cell 2:\n    half = 1 / 0\nZeroDivisionError" in message


def test_modules_beside_the_notebook_are_found(nothing_else, tmp_path):
    (beside := tmp_path / "beside").mkdir()
    (beside / "helpers_of_mine.py").write_text(GOOD)
    cell = "from helpers_of_mine import attention_weights as f\ndef attention_weights(*given): return f(*given)"
    assert run(cell, folder=beside).outcome == "passed"
    assert "No module named" in run(cell).message


def test_a_program_of_its_own(tmp_path):
    """No module of its folder reaches the grader, and no output of an answer reaches the terminal."""
    for name in ("json", "typing", "torch", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    code = (
        "import sys; sys.path.remove('')\n"
        "from tests.test_sandbox import *\n"
        "print(run(GOOD).outcome, run(HOSTILE['prints a megabyte'][0]).outcome)"
    )
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("passed crashed\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_the_group_is_killed_where_there_is_no_proc(nothing_else, monkeypatch):
    monkeypatch.setattr(session, "_living_in", lambda _: ())
    run(answer("from subprocess import Popen\nPopen(['sleep', '60'])\n1 / 0"))
    time.sleep(0.1)  # the fixture looks for what is left


def test_a_server_that_was_killed_is_started_again(nothing_else):
    run(GOOD)
    for zygote in processes._zygotes.values():
        zygote.process.kill()
    assert run(GOOD).outcome == "passed"


def test_a_timed_answer_leaves_the_server_alone():
    """Its twin ends before it does."""
    timed = next(exercise for exercise in all_exercises() if exercise.name == "windowed_attention")
    run(GOOD)
    before = {folder: zygote.process.pid for folder, zygote in processes._zygotes.items()}
    mask = "(i[:, None] < i) | (i[:, None] - i >= window)"
    code = "import torch\ndef windowed_attention(query, key, value, window):\n    i = torch.arange(len(query))\n"
    code += f"    scores = (query @ key.T / query.shape[1] ** 0.5).masked_fill({mask}, -torch.inf)\n"
    code += "    return scores.softmax(-1) @ value"
    assert sandbox.run(timed, collect([code]).closure(timed.name)).outcome == "passed"
    assert {folder: zygote.process.pid for folder, zygote in processes._zygotes.items()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_kills_the_answer(nothing_else):
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(answer("time.sleep(60)"), seconds=60)


def test_a_process_that_does_not_start_is_no_fault_of_the_answer(nothing_else, monkeypatch):
    monkeypatch.setattr(processes, "START", "raise SystemExit")
    monkeypatch.setattr(processes, "_zygotes", {})
    with pytest.raises(sandbox.SandboxFault, match="did not start|could be started"):
        run(GOOD)


def test_without_fork_the_process_starts_anew(nothing_else, monkeypatch):
    monkeypatch.setattr(processes, "FORKS", False)
    assert run(GOOD).outcome == "passed"
    assert run(answer("os._exit(3)"), level="limits").message.startswith("It ended the process (exit code 3)")


def test_a_level_that_there_is_not_is_refused(monkeypatch):
    with pytest.raises(sandbox.SandboxFault, match="no level 'fort'; there are limits, seccomp, namespaces"):
        run(GOOD, level="fort")
    monkeypatch.setattr(confine, "available", lambda: ("limits",))
    with pytest.raises(sandbox.SandboxFault, match="does not offer the level 'namespaces': "):
        run(GOOD, level="namespaces")


@pytest.mark.parametrize("level", confine.available())
def test_the_report_says_how_the_answer_was_confined_and_how_long_it_took(level):
    report = run(answer("time.sleep(0.3)\n1 / 0"), level=level)
    assert report.level == level and 0.3 <= report.seconds < 5


def test_a_table_of_the_known_cases_is_no_answer():
    """It passes in the notebook, and not on numbers that it has never seen."""
    known = [(case, EXERCISE.oracle(*(part.double().numpy() for part in case))) for case in EXERCISE.cases()]
    table = [(query.tolist(), weights.tolist()) for (query, _), weights in known]
    body = f"for asked, weights in {table!r}:\n    if query.tolist() == asked: return torch.tensor(weights)"
    code = f"import torch\nfrom torch import tensor\n{answer(body)}"
    exercise = dataclasses.replace(EXERCISE, gradient=False, properties=())
    report = sandbox.run(exercise, collect([code]).closure("attention_weights"))
    assert (report.outcome, report.points) == ("wrong", 0)
    assert "with other numbers in them it is wrong" in report.message


@pytest.mark.parametrize("line", ["from memcourse.attention import attend", "from memcourse import attend"])
def test_the_module_that_the_chapter_teaches_is_left_out(line):
    report = run(answer(f"{line}\nreturn attend(query, key, key)[1]"))
    assert report.outcome == "crashed" and "memcourse.attention is what this chapter teaches" in report.message


def test_the_course_is_not_there():
    report = run(answer("import memcourse.course.checks.attention_oracles"))
    assert "No module named 'memcourse.course'" in report.message


def compares_on_secret_numbers(answer):
    query, key = torch.full((1, 5), 1234.5), torch.randn(7, 5)
    assert torch.allclose(answer(query, key), (query @ key.T / 5**0.5).softmax(-1))


SECRETLY = dataclasses.replace(EXERCISE, properties=(*EXERCISE.properties, _hidden(compares_on_secret_numbers)))
RIGHT = "(query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)"


def secretly(code):
    return sandbox.run(SECRETLY, collect([f"import os, torch\n{code}"]).closure("attention_weights"))


def test_a_hidden_check_is_not_passed_by_spoiling_what_it_compares_with():
    body = f"    if len(query) > 1: return {RIGHT}\n    query.zero_()\n    return torch.full((1, len(key)), 1 / 7)"
    report = secretly(f"def attention_weights(query, key):\n{body}")
    assert (report.outcome, report.points) != ("passed", EXERCISE.points) and report.points == 0
    good = secretly(f"def attention_weights(query, key):\n    return {RIGHT}")
    assert (good.outcome, good.stages[-1]) == ("passed", STAGE)


@pytest.mark.parametrize("end", ["raise ValueError(str(seen))", "os._exit(int(seen[-1]) % 256)"])
def test_what_a_hidden_check_asks_is_not_told(end):
    body = f"    seen.append(query.max().item())\n    if query.max() > 1000: {end}\n    return {RIGHT}"
    report = secretly(f"seen = []\ndef attention_weights(query, key):\n{body}")
    assert report.outcome != "passed" and report.points == 0 and "1234" not in report.message
    if "_exit" in end:
        assert report.message == "It ended while hidden checks ran."
