"""A new version of the course meets a learner's notebook: no answer is lost, and all else follows."""

import copy
import hashlib
import json
import random
from pathlib import Path

import nbformat
import pytest

from memcourse.course import merge as module
from memcourse.course.merge import CannotMerge, merge, read, source, write

ROOT = Path(__file__).resolve().parents[1]


def code(text, **more):
    return {"cell_type": "code", "metadata": {}, "source": text, "outputs": [], "execution_count": None, **more}


def prose(text, **more):
    return {"cell_type": "markdown", "metadata": {}, "source": text, **more}


def named(cells):
    """With ids that follow from the text, as the build makes them."""
    seen = {}
    for cell in cells:
        digest = hashlib.sha256(f"{cell['cell_type']}\n{source(cell)}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return cells


def notebook(*cells, version="0.1.0", kind="exercises"):
    about = {"version": version, "chapter": "01_a", "kind": kind}
    return {"cells": named(list(cells)), "metadata": {"memcourse": about}, "nbformat": 4, "nbformat_minor": 5}


def exercise(id, name, question="What?", stub="raise NotImplementedError"):
    return [
        prose(f"### {id} A title\n\n{question}"),
        code(f"def {name}(x):\n    {stub}"),
        code(f'check("{id}", {name})'),
    ]


def course(*exercises, version="0.1.0"):
    cells = [prose("# Exercises"), code(f'device = setup("{version}", seed=0)')]
    return notebook(*cells, *(cell for triple in exercises for cell in triple), version=version)


def changed(notebook, place, text, **more):
    theirs = copy.deepcopy(notebook)
    theirs["cells"][place] |= {"source": text, **more}
    return theirs


def without_ids(notebook):
    bare = copy.deepcopy(notebook)
    for cell in bare["cells"]:
        del cell["id"]
    return bare | {"nbformat_minor": 4}


def texts(notebook):
    return [source(cell) for cell in notebook["cells"]]


BASE = course(exercise("1.1", "f"), exercise("1.2", "g"))
ANSWER = "def g(x):\n    return x + 1"
OUTPUT = [{"output_type": "stream", "name": "stdout", "text": "passed"}]
ANSWERED = changed(BASE, 6, ANSWER, outputs=OUTPUT, execution_count=3)
SAME_IDS_OR_NONE = pytest.mark.parametrize("saved", [copy.deepcopy, without_ids], ids=["ids kept", "ids lost"])


@SAME_IDS_OR_NONE
def test_an_answer_stays_and_all_else_follows(saved):
    new = course(exercise("1.1", "f", "What, then?", "pass"), exercise("1.2", "g", "Why?"), version="0.2.0")
    merged = merge(BASE, saved(ANSWERED), new)
    assert texts(merged) == [*texts(new)[:6], ANSWER, texts(new)[7]]
    nbformat.validate(json.loads(write(merged)))
    assert (merged["cells"][6]["outputs"], merged["cells"][6]["execution_count"]) == (OUTPUT, 3)
    assert merged["metadata"]["memcourse"]["version"] == "0.2.0"


@SAME_IDS_OR_NONE
def test_a_new_exercise_in_between_moves_the_numbers_and_no_answer(saved):
    new = course(exercise("1.1", "f"), exercise("1.2", "between"), exercise("1.3", "g"))
    merged = merge(BASE, saved(ANSWERED), new)
    assert texts(merged) == [*texts(new)[:9], ANSWER, 'check("1.3", g)']


@SAME_IDS_OR_NONE
def test_what_both_changed_is_the_learners_and_the_courses_text_stands_below_once(saved):
    new = course(exercise("1.1", "f"), exercise("1.2", "g", stub="raise NotImplementedError  # mended"))
    merged = merge(BASE, saved(ANSWERED), new)
    assert texts(merged)[:7] == texts(ANSWERED)[:7] and texts(merged)[8:] == texts(ANSWERED)[7:]
    shown = merged["cells"][7]
    assert shown["cell_type"] == "markdown" and f"~~~python\n{source(new['cells'][6])}\n~~~" in source(shown)

    again = merge(new, merged, new)
    assert again == merged
    newer = course(exercise("1.1", "f"), exercise("1.2", "g", stub="raise NotImplementedError  # twice"))
    later = merge(new, merged, newer)
    assert len(later["cells"]) == len(merged["cells"])
    assert "# twice" in texts(later)[7] and "# mended" not in "".join(texts(later))

    edited = changed(merged, 7, source(shown) + "\nmy note")  # now it is the learner's too
    assert texts(merge(new, edited, newer))[8] == source(shown) + "\nmy note"


@SAME_IDS_OR_NONE
def test_a_text_that_both_changed_is_known_by_its_likeness(saved):
    base, mine, new = (
        notebook(prose("# A"), prose(f"A store of many pairs.{more}"), code("x")) for more in ("", "!", "?")
    )
    mine = saved(changed(base, 1, source(mine["cells"][1])))
    merged = texts(merge(base, mine, new))
    assert merged[:2] == ["# A", "A store of many pairs.!"] and merged[3:] == ["x"]
    assert "~~~markdown\nA store of many pairs.?\n~~~" in merged[2]


@SAME_IDS_OR_NONE
def test_a_text_that_is_another_altogether_is_a_cell_of_its_own(saved):
    base = notebook(prose("# A"), prose("A store of many pairs."), code("x"))
    mine = changed(base, 1, "MINE")
    new = notebook(prose("# A"), prose("What does a softmax do?"), code("x"))
    assert texts(merge(base, saved(mine), new)) == ["# A", "MINE", "What does a softmax do?", "x"]


def test_where_both_changed_it_alike_nothing_is_shown_below():
    new = course(exercise("1.1", "f"), exercise("1.2", "g", stub="return x + 1"))
    assert merge(BASE, ANSWERED, new)["cells"] == ANSWERED["cells"]


def test_a_cell_that_the_learner_moved_is_found_by_its_text_where_ids_are_lost():
    base = notebook(prose("# A"), prose("one"), code("x"), prose("two"))
    mine = copy.deepcopy(base)
    mine["cells"].append(mine["cells"].pop(1))
    new = notebook(prose("# A mended"), prose("one"), code("x"), prose("two"))
    assert texts(merge(base, without_ids(mine), new)) == ["# A mended", "x", "two", "one"]


@SAME_IDS_OR_NONE
def test_what_the_course_removed_goes_unless_the_learner_changed_it(saved):
    new = course(exercise("1.1", "f"))
    assert texts(merge(BASE, saved(BASE), new)) == texts(new)
    assert texts(merge(BASE, saved(ANSWERED), new)) == [*texts(new), ANSWER]


@SAME_IDS_OR_NONE
def test_what_the_learner_deleted_stays_deleted(saved):
    mine = copy.deepcopy(BASE)
    del mine["cells"][5:8]
    new = course(exercise("1.1", "f", "What, then?"), exercise("1.2", "g", "Why?"))
    assert texts(merge(BASE, saved(mine), new)) == texts(new)[:5]


def test_of_two_cells_with_one_text_the_deleted_one_is_not_taken_for_the_other():
    base = notebook(code("draw(1, 2, 3)"), code("y"), code("draw(1, 2, 3)"))
    mine = copy.deepcopy(base)
    del mine["cells"][2]
    new = notebook(code("draw(1, 2, 3)"), code("y"), code("draw(1, 2, 3, 4)"))
    assert texts(merge(base, mine, new)) == ["draw(1, 2, 3)", "y"]


def test_a_cell_that_was_moved_is_not_taken_for_the_deleted_one_whose_place_it_has():
    base = notebook(code("a"), code("draw(1, 2, 3)"), code("b"), code("draw(1, 2, 3, 4)"))
    mine = copy.deepcopy(base)
    mine["cells"][1] = mine["cells"].pop(3)
    new = notebook(code("a"), code("draw(1, 2, 3)"), code("b"), code("draw(1, 2, 3, 4, 5)"))
    assert texts(merge(base, mine, new)) == ["a", "draw(1, 2, 3, 4, 5)", "b"]


def test_what_the_learner_added_stays_behind_its_neighbour():
    mine = copy.deepcopy(BASE)
    mine["cells"].insert(8, prose("at the end", id="a"))
    mine["cells"].insert(3, code("x = 1", id="b"))
    mine["cells"].insert(0, prose("on top", id="c"))
    new = course(exercise("1.1", "f", "What, then?"), exercise("1.2", "between"), exercise("1.3", "g"))
    expected = texts(new)
    expected.append("at the end")
    expected.insert(3, "x = 1")
    expected.insert(0, "on top")
    assert texts(merge(BASE, mine, new)) == expected


def test_the_learners_order_goes_before_the_courses():
    mine = copy.deepcopy(BASE)
    mine["cells"][2:8] = mine["cells"][5:8] + mine["cells"][2:5]
    new = course(exercise("1.1", "f", "What, then?"), exercise("1.2", "g"), exercise("1.3", "h"))
    expected = texts(new)
    assert texts(merge(BASE, mine, new)) == [*expected[:2], *expected[5:11], *expected[2:5]]


def test_the_courses_order_is_followed_where_the_learner_has_none_of_their_own():
    new = course(exercise("1.1", "g"), exercise("1.2", "f"))
    merged = merge(BASE, ANSWERED, new)
    assert texts(merged) == [*texts(new)[:3], ANSWER, *texts(new)[4:]]


def test_a_check_that_is_mended_comes_without_an_output_from_before_the_answer():
    new = course(exercise("1.1", "f"), exercise("1.2", "g"))
    new["cells"][7] |= code('check("1.2", g)  # mended', outputs=OUTPUT, execution_count=9, id="new")
    cell = merge(BASE, ANSWERED, new)["cells"][7]
    assert (source(cell), cell["outputs"], cell["execution_count"]) == ('check("1.2", g)  # mended', [], None)


def test_a_chapter_brings_its_figures():
    base = notebook(code("draw()"), kind="chapter")
    new = notebook(code("draw(2)", outputs=OUTPUT, execution_count=1), kind="chapter")
    assert merge(base, base, new)["cells"][0]["outputs"] == OUTPUT


BROKEN = {
    "cut off": (b'{"cells": [', "is not JSON, or was cut off"),
    "empty": (b"", "is not JSON, or was cut off"),
    "another encoding": (b"\xff\xfe\x00", "is not JSON, or was cut off"),
    "very deep": (b"[" * 100_000, "is not JSON, or was cut off"),
    "a list": (b"[]", "is JSON, but no notebook"),
    "no notebook": (b'{"cells": []}', "is JSON, but no notebook"),
    "format 3": (b'{"nbformat": 3, "worksheets": []}', "is in notebook format 3, and only 4 can be merged"),
    "a cell without source": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}',
        "malformed",
    ),
    "a cell that is a word": (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": ["a"]}', "malformed"),
    "an id that is a number": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "raw", "source": "", "id": 1}]}',
        "malformed",
    ),
    "metadata of another kind": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {"memcourse": "a"}, "cells": []}',
        "malformed",
    ),
    "metadata that is a list": (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": [], "cells": []}', "malformed"),
}


@pytest.mark.parametrize("content, says", BROKEN.values(), ids=BROKEN)
def test_what_is_no_notebook_is_said_to_be_none(content, says):
    with pytest.raises(CannotMerge, match=says):
        read(content)


def test_half_a_surrogate_pair_comes_through():
    mine = copy.deepcopy(BASE)
    mine["cells"].append(code("'\\ud800'", outputs=[{"output_type": "stream", "name": "stdout", "text": "\ud800"}]))
    mine["cells"].append(prose("\ud800"))
    assert read(write(merge(BASE, read(write(mine)), BASE)))["cells"][-1]["source"] == "\ud800"


# laws, on a real notebook of the course

EXERCISES = [path.read_bytes() for path in sorted((ROOT / "exercises").glob("*.ipynb"))[:3]]


def next_version(base, chance):
    """Texts mended, cells gone, an exercise more."""
    new = copy.deepcopy(base)
    cells = []
    for cell in new["cells"]:
        match chance.choice(["keep"] * 5 + ["mend", "drop", "insert"]):
            case "keep":
                cells.append(cell)
            case "mend":
                cells.append(cell | {"source": source(cell) + f"\n# mended {chance.random()}"})
            case "insert":
                cells += [cell, *exercise(f"9.{len(cells)}", f"new_{len(cells)}", f"{chance.random()}")]
    return new | {"cells": named(cells)}


def learners(base, chance):
    """Cells answered, added, deleted, copied, run."""
    mine = copy.deepcopy(base)
    cells = []
    for cell in mine["cells"]:
        match chance.choice(["keep"] * 4 + ["change", "delete", "add", "copy", "run"]):
            case "keep":
                cells.append(cell)
            case "run":
                cells.append(cell | ({"outputs": OUTPUT} if cell["cell_type"] == "code" else {}))
            case "change":
                cells.append(cell | {"source": f"mine = {chance.random()}"})
            case "add":
                cells += [cell, code(f"added = {chance.random()}", id=f"{chance.getrandbits(32):x}")]
            case "copy":
                cells += [cell, cell | {"id": f"{chance.getrandbits(32):x}"}]
    if chance.random() < 0.2:
        chance.shuffle(cells)
    return mine | {"cells": cells}


@pytest.mark.parametrize("seed", range(60))
@SAME_IDS_OR_NONE
def test_laws(seed, saved):
    chance = random.Random(seed)
    base = read(EXERCISES[seed % len(EXERCISES)])
    new, mine = next_version(base, chance), saved(learners(base, chance))
    given = copy.deepcopy((base, mine, new))
    merged = merge(base, mine, new)
    assert (base, mine, new) == given
    nbformat.validate(json.loads(write(merged)))
    assert len({cell["id"] for cell in merged["cells"]}) == len(merged["cells"])

    courses = set(texts(base))
    own = [(text, cell.get("outputs")) for text, cell in zip(texts(mine), mine["cells"], strict=True)]
    own = [each for each in own if each[0] not in courses]
    stays = {text for text, _ in own}
    assert [(source(c), c.get("outputs")) for c in merged["cells"] if source(c) in stays] == own

    everything = "\n".join(texts(merged))
    gone = set(texts(base)) - set(texts(new))
    copied = [text for text in gone if texts(mine).count(text) > texts(base).count(text)]
    assert not gone - set(copied) & set(texts(merged))
    assert all(text in everything for text in texts(new) if text not in courses and "mended" not in text)

    assert merge(base, base, new)["cells"] == [
        module._as_not_run(cell) if cell not in base["cells"] else cell for cell in new["cells"]
    ]
    assert texts(merge(base, mine, base)) == texts(mine)
    if saved is not without_ids:
        assert merge(base, mine, base) == mine
    assert merge(new, merged, new) == merged
