"""What grading takes out of a notebook: definitions, whatever happened to the cells around them."""

from __future__ import annotations

import builtins
import json
import linecache
import re
import sys
import time
import traceback
import warnings

import nbformat
import pytest

from memcourse import __version__
from memcourse.course.answers import NotACourseNotebook, collect, read
from memcourse.course.checks import all_exercises
from memcourse.course.runner.building import build


def built(cells, name):
    return build(collect(cells).closure(name), name)


def test_an_answer_is_rebuilt_from_what_it_leans_on_and_from_nothing_else():
    cells = [
        "import math\nimport no_such_module",
        "half = 1 / 2\nscale = lambda x: x * half",
        "class Other:\n    raise RuntimeError('another answer')",
        "print('never printed')\n1 / 0",
        "def answer(x):\n    return scale(math.sqrt(x))",
    ]
    definitions = collect(cells)
    assert [d.names[0] for d in definitions.closure("answer")] == ["math", "half", "scale", "answer"]
    assert build(definitions.closure("answer"), "answer")(16.0) == 2.0
    assert definitions.missing("answer") == ()


@pytest.mark.parametrize(
    "cells",
    [
        ["def answer(): return helper()", "def helper(): return 1"],  # reordered
        [
            "def helper(): return 0\ndef answer(): return helper()",
            "def helper(): return 1",
        ],  # the last one counts
        ["def helper(): return 1\ndef answer(): return helper()"] * 2,  # copied
        [
            "raise SystemExit",
            "def helper(): return 1",
            "def answer(): return helper()\nanswer()\n1 / 0",
        ],  # raising
        [
            "@double\ndef answer(): return 0.5",
            "def double(f):\n    n = two()\n    return lambda: n * f()",
            "def two(): return 2",
        ],
        ["def answer(x=[later for _ in (1,)]): return x[0]", "later = 1"],
        [
            "from __future__ import annotations\nfrom typing import get_type_hints",
            "class A:\n    x: B = 1\nclass B: pass\ndef answer(): return len(get_type_hints(A))",
        ],
        ["def answer(x=later): return x", "later = 1"],  # a default, used when the function is defined
        ["class Answer(Base): pass\ndef answer(): return Answer().one", "class Base: one = 1"],
        ["import os, no_such_module", "def answer(): return len(os.sep)"],
        ["n = 0", "n = n + 1", "def answer(): return n"],
        ["a = b = 1", "(c, d), e = (a, b), 0", "def answer(): return c * d"],
        ["table = {'one': [lambda: 1]}", "answer = lambda: table['one'][0]()"],
        ["from math import *", "def answer(): return int(cos(0))"],
        [
            "import xml.dom\nimport xml.sax",
            "def answer(): return (xml.dom is not None) * (xml.sax is not None)",
        ],
        ["%matplotlib inline\n!ls\nmath?", "%%time\n\ndef answer(): return 1"],
        ["\n\n%time x = 1\ndef answer():\n    return 1"],
        ["device = setup('0.1.0', seed=0)\ndef answer(): return 1 if str(device) == 'cpu' else 0"],
        ["from __future__ import annotations\ndef answer(x: Unknown = 1): return x"],
        [
            "from dataclasses import dataclass",
            "@dataclass\nclass P:\n    x: int = 1\ndef answer(): return P().x",
        ],
        ["scale = 1\nclass Holder:\n    scale = scale\ndef answer(): return Holder.scale"],
        ["def answer():\n    global count\n    count = 1\n    return count"],
        [
            "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n and even(n - 1)",
            "def answer(): return int(even(4))",
        ],
        ["def f(): return 0", "g = f", "def f(): return g() + 1", "def answer(): return f()"],
        ["async def later(): return 1\ndef answer():\n    import asyncio\n    return asyncio.run(later())"],
        ["from functools import partial\nanswer = partial(int, 1.0)"],
        ["def answer():\n    display('shown')\n    return 1"],
        ["def answer(): return 1\n", "def other(:"],
        [
            "%%bash\ndef answer(): nonsense",
            "def answer(): return 1",
            "%%writefile x.py\ndef answer(): return 2",
        ],
    ],
)
def test_notebooks_that_lose_nothing(cells):
    definitions = collect(cells)
    assert built(cells, "answer")() == 1
    assert definitions.missing("answer") == ()
    assert definitions.broken("answer") is None


@pytest.mark.parametrize(
    ("cells", "missing"),
    [
        (["def answer(): return unknown"], "unknown"),
        (["def answer(x=unknown): pass"], "unknown"),
        (["@unknown\ndef answer(): pass"], "unknown"),
        (["class answer(unknown): pass"], "unknown"),
        (["class answer:\n    x = unknown"], "unknown"),
        (["def answer(x: unknown): pass"], "unknown"),
        (["def answer():\n    return [y for y in unknown]"], "unknown"),
        (["def answer():\n    def inner(): return unknown.attribute\n    return inner"], "unknown"),
        (["weights = train()", "def helper(): return weights", "def answer(): return helper()"], "weights"),
        (["if True:\n    size = 3", "def answer(): return size"], "size"),
        (["for size in (1, 2): pass", "def answer(): return size"], "size"),
        (["try:\n    import torch\nexcept ImportError: pass", "def answer(): return torch"], "torch"),
        (["def answer(): return get_ipython()"], "get_ipython"),
        (["size = 3", "size = measure()", "def answer(): return size"], "size"),  # carried, but stale
        (["size = 3", "size += 1", "def answer(): return size"], "size"),
        (["answer = None", "answer = measure()"], "answer"),
    ],
)
def test_names_that_are_not_carried_are_known(cells, missing):
    assert collect(cells).missing("answer") == (missing,)


@pytest.mark.parametrize(
    "cell",
    [
        "def answer(x):\n    y = x\n    return [z for z in y if (w := z)] + [w]",
        "def answer(*a, b=1, **c):\n    import math as m\n    with open('f') as h: return m, h, a, b, c",
        "class answer:\n    a = 1\n    b = a\n    def f(self): return self.unknown, __class__",
        "def answer():\n    x = 0\n    def inner():\n        nonlocal x\n        x += 1\n    return __name__",
        "def answer():\n    try: pass\n    except OSError as error: return error",
        "answer = lambda x, *y: (x, y)",
    ],
)
def test_local_names_and_attributes_are_not_missing(cell):
    assert collect([cell]).missing("answer") == ()


def test_a_later_good_value_is_not_stale():
    assert collect(["size = measure()", "size = 3", "def answer(): return size"]).missing("answer") == ()


def test_a_failing_import_costs_only_the_answers_that_lean_on_it():
    cells = ["import no_such_module, math", "def one(): return no_such_module.x", "def two(): return math.pi"]
    assert built(cells, "two")() > 3
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        built(cells, "one")


def test_nothing_is_run_while_collecting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collect(
        [
            "open('ran', 'w')",
            "@open('ran', 'w').write\ndef f(): pass",
            "x = exit()",
            "class C:\n    exit()",
            "!touch ran",
        ]
    )
    assert list(tmp_path.iterdir()) == []


def test_the_notebooks_own_warnings_are_not_shown_again():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert built([r"x = '\d'", "def answer(): return x is 'y'", "1 is 1"], "answer")() is False
    assert shown == []


def test_a_cell_that_does_not_parse_costs_what_it_holds():
    cells = [
        "def kept(): return 1",
        "x = 1\ndef lost(a:\n    return 1\nclass Also: pass",
        "def leaning(): return lost(1)",
    ]
    definitions = collect(cells)
    fault = definitions.broken("lost")
    assert fault is not None and (fault.cell, fault.line, fault.text) == (2, 2, "def lost(a:")
    assert str(fault) == "Cell 2 does not parse. Line 2: '(' was never closed\n    def lost(a:"
    assert definitions.broken("Also") == definitions.broken("leaning") == definitions.broken("x") == fault
    assert definitions.broken("kept") is None
    assert "lost" not in definitions and "lost" in definitions.mentioned


def test_of_a_broken_and_a_good_definition_the_last_counts():
    broken, good = "def answer(:\n    pass", "def answer(): return 1"
    assert collect([broken, good]).broken("answer") is None
    assert collect([good, broken]).broken("answer") is not None


@pytest.mark.parametrize(
    "body", ["def answer(a, a): pass", "def answer():\n    break", "def answer():\n    nonlocal x"]
)
def test_faults_that_only_the_compiler_sees_cost_one_statement(body):
    definitions = collect([f"x = 1\n{body}\ndef other(): return x"])
    assert "other" in definitions and "answer" not in definitions
    fault = definitions.broken("answer")
    assert fault is not None and fault.line == 2 + body.count("\n")


@pytest.mark.parametrize(
    "cell",
    ["x = '\0'", "(" * 10_000, "-" * 100_000 + "1", "x = " + "[" * 300 + "]" * 300, "\ud800", "%", "?"],
)
def test_odd_text_does_not_stop_the_collector(cell):
    assert built([cell, "def answer(): return 1"], "answer")() == 1


def test_magics_go_without_ipython_too(monkeypatch):
    real = builtins.__import__

    def without_ipython(name, *rest, **more):
        if name.startswith("IPython"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_ipython)
    cell = "%matplotlib inline\n!ls -l\nlen?\ndef answer():\n    %time 1\n    return 1"
    definitions = collect([cell])
    assert build(definitions.closure("answer"), "answer")() == 1
    assert definitions.carried[0].line == 4


def test_a_traceback_shows_the_learners_own_line():
    cells = [
        "import math",
        "\n\n%time 1\n# a comment\ndef helper(x):\n    return x / 0  # mine",
        "x = 1; y = 2\nanswer = lambda: helper(x)",
    ]
    with pytest.raises(ZeroDivisionError) as caught:
        built(cells, "answer")()
    frames = traceback.extract_tb(caught.value.__traceback__)[-2:]
    assert [(f.filename, f.lineno) for f in frames] == [
        ("your notebook, cell 3", 2),
        ("your notebook, cell 2", 6),
    ]
    assert [f.line for f in frames] == ["answer = lambda: helper(x)", "return x / 0  # mine"]


def test_building_leaves_the_callers_modules_and_names_alone():
    main = sys.modules["__main__"]
    answer = built(["class A: pass", "def answer(): return A.__module__"], "answer")
    assert sys.modules["__main__"] is main and answer() != "__main__"
    assert "answer" not in vars(main)
    assert any(name.startswith("your notebook") for name in linecache.cache)


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="absent"):
        collect(["x = 1"]).closure("absent")


# ---- reading ----


def notebook(*cells, version=__version__, chapter="01_attention", minor=5):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    if version:
        made.metadata["memcourse"] = {"version": version, "chapter": chapter, "kind": "exercises"}
    return made


@pytest.fixture
def answers():
    """A cell that defines an answer of the course."""
    return f"{all_exercises()[0].name} = 1"


def test_reads_cells_version_and_chapter(tmp_path, answers):
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook("one = 1\n", answers), path)
    assert read(path) == (("one = 1\n", answers), __version__, "01_attention")


def test_the_version_may_stand_in_the_first_cell_or_nowhere(tmp_path, answers):
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook(f"device = setup('{__version__}', seed=0)", answers, version=None), path)
    assert read(path).version == __version__
    nbformat.write(notebook(answers, version=None), path)
    assert read(path).version is None


@pytest.mark.parametrize("first", ["device = setup('0.0.9', seed=0)", 'device = setup("7", seed=0)'])
def test_another_version_is_refused(tmp_path, answers, first):
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook(first, answers, version=None), path)
    with pytest.raises(NotACourseNotebook, match="was made by version"):
        read(path)
    nbformat.write(notebook("1", answers, version="0.0.9"), path)
    with pytest.raises(NotACourseNotebook, match=re.escape("version 0.0.9 of the course")):
        read(path)


def test_format_3_is_read(tmp_path, answers):
    path = tmp_path / "a.ipynb"
    path.write_text(nbformat.writes(notebook(answers, version=None), version=3))
    assert json.loads(path.read_text())["nbformat"] == 3
    assert read(path).cells == (answers,)


def test_text_with_a_byte_order_mark_is_read(tmp_path, answers):
    path = tmp_path / "a.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + nbformat.writes(notebook(answers)).encode())
    assert read(path).cells == (answers,)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not JSON"),
        (b"", "not JSON"),
        (b'{"cells": [{"cell_type": "co', "cut off"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": 1}', "without cells"),
        (b"[1, 2]", "without cells"),
        (b"3", "without cells"),
        (b'{"cells": [], "nbformat": 5, "nbformat_minor": 0, "metadata": {}}', "format 5"),
        (b'{"cells": [], "metadata": {}}', "format None"),
        (b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "malformed"),
        (b'{"cells": [3], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "malformed"),
        (
            b'{"cells": [{"cell_type": "code"}], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
            "malformed",
        ),
        (b'{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {"memcourse": 3}}', "malformed"),
        (b'{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "no answers"),
        (b'{"worksheets": [], "nbformat": 3, "nbformat_minor": 0, "metadata": {}}', "no answers"),
    ],
)
def test_what_is_not_a_notebook_is_refused_with_a_sentence(tmp_path, content, sentence, capfd):
    path = tmp_path / "a.ipynb"
    path.write_bytes(content)
    with pytest.raises(NotACourseNotebook, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(NotACourseNotebook, match="There is no file"):
        read(tmp_path / "none.ipynb")
    with pytest.raises(NotACourseNotebook, match="cannot be read"):
        read(tmp_path)


def test_a_notebook_that_mentions_an_answer_but_defines_none_is_refused(tmp_path):
    path = tmp_path / "a.ipynb"
    name = all_exercises()[0].name
    nbformat.write(notebook(f"check('1.1', {name})", f"'''\ndef {name}(): pass\n'''"), path)
    with pytest.raises(NotACourseNotebook, match="no answers"):
        read(path)


def test_without_nbformat_there_is_a_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    with pytest.raises(NotACourseNotebook, match="pip install 'memcourse\\[course\\]'"):
        read(tmp_path / "a.ipynb")


def test_a_cell_of_many_statements_is_read_in_proportion():
    def seconds(n):
        cell = "\n".join(f"x{i} = {i}" for i in range(n))
        start = time.process_time()
        assert len(collect([cell]).carried) == n
        return time.process_time() - start

    seconds(10)
    assert seconds(4000) < 32 * seconds(500)  # 8 in proportion, 64 squared: a hostile notebook would take a minute
