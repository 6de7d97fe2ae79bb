"""Pages and files for people and for other systems: complete, well-formed, and closed to what a submission says."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image
from typer.testing import CliRunner

from memcourse.course.checks import exercises
from memcourse.course.classroom import commands, drawings, github, gradescope, junit, pages, similarity
from memcourse.course.classroom.class_config import ClassConfig
from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.results import Graded, save
from memcourse.course.exercise import Report

CHAPTER = "01_attention"
NASTY = "Zoë</title><script>alert(1)</script>\x00\u202e\ud800"
WRONG = 'expected <b>0.5</b>, found "0.4" & \x1b[31mmore\x0b'
PICTURE = {
    "kind": "matrices",
    "found": [[0.5, 0.5], [1.0, 0.0]],
    "expected": [[0.25, 0.75], [1.0, 0.0]],
    "marks": [[0, 0], [0, 1]],
    "title": "attend: 2 of 4 cells are wrong",
    "rows": "query",
    "columns": "key",
}
VOID = {"meta", "img", "br", "link", "hr", "input"}


def submission(learner: str, chapter: str = CHAPTER, seed: int = 0) -> Graded:
    """One that passes, crashes and is wrong here and there; `seed` says where."""
    reports = []
    for place, exercise in enumerate(exercises(chapter), start=seed):
        outcome = ("passed", "wrong", "passed", "crashed", "not attempted")[place % 5]
        says = exercise.mistakes[0].says if outcome == "wrong" and exercise.mistakes else None
        points = exercise.points if outcome == "passed" else 0
        message = {"wrong": f"values: {says}.\n{WRONG}", "crashed": "NameError: troch"}.get(outcome, "")
        reports.append(
            Report(exercise.id, exercise.name, outcome, points, exercise.points, (), message, says, seconds=0.25)
        )
    got, most = sum(report.points for report in reports), sum(report.max_points for report in reports)
    at = "2026-03-01T23:30:00+00:00"
    return Graded(learner, chapter, f"{learner}.ipynb", at, tuple(reports), got, got, most, "", "", "seccomp", 1.5)


FAULTY = Graded("dora", "", "dora.zip", None, (), 0, 0, 0, "", "It is not a zip that can be read.", None, 0.0)
LATE = replace(submission("late-lena"), points=1.6, raw_points=2, late="2 days late: 80 %")
CLASS = [submission(f"learner{number:02d}", seed=number) for number in range(6)] + [submission(NASTY), LATE, FAULTY]


class Page(HTMLParser):
    """What a browser would make of a page; an unbalanced tag is an AssertionError."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_bytes().decode()
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""

    def all(self, *tags):
        return [attributes for tag, attributes in self.tags if tag in tags]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    pages.write(CLASS, out, ClassConfig(title="Memory & more"))
    return out


@pytest.fixture(scope="module")
def index(folder):
    return Page(folder / "index.html")


def learner_page(folder, learner):
    return Page(folder / pages._page_of(learner))


def test_every_page_stands_alone_and_runs_nothing(folder):
    found = sorted(folder.rglob("*"))
    assert [path for path in found if path.is_file() and path.suffix != ".html"] == []
    assert len([path for path in found if path.is_file()]) == 1 + len(CLASS)
    for path in found:
        if not path.is_file():
            continue
        page = Page(path)
        (policy,) = [
            meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
        ]
        assert "default-src 'none'" in policy and "script-src" not in policy
        assert page.all("html") == [{"lang": "en"}]
        assert len(page.all("title")) == 1 == len(page.all("h1"))
        assert not page.all("script", "link", "iframe", "object", "form")
        assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
        assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))


def test_the_class_page_shows_everyone_and_links_to_them(folder, index):
    links = [link["href"] for link in index.all("a")]
    assert len(links) == len(CLASS) - 1  # the one that could not be graded is listed with its reason
    assert all((folder / unquote(link)).is_file() for link in links)
    assert "dora.zip" in index.text and FAULTY.fault in index.text
    assert all(printable(graded.learner) in index.text for graded in CLASS)
    assert "2 days late: 80 %" in index.text and "seccomp" in index.text
    assert "not proof" in index.text


def test_the_class_page_counts_outcomes_and_misconceptions(index):
    reports = [report for graded in CLASS for report in graded.reports]
    for exercise in exercises(CHAPTER):
        own = [report for report in reports if report.exercise == exercise.id]
        counts = [sum(report.outcome == outcome for report in own) for outcome in drawings.LOOKS]
        assert re.search(rf"{exercise.id} {exercise.name}{''.join(rf'{count}' for count in counts)}\n", index.text)
        for says in {report.mistake for report in own if report.mistake}:
            assert pages.capital(says) in index.text
    picture = index.all("img")[0]["src"].partition(",")[2]
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert image.width > 900
    tones = {tone for count, tone in image.convert("L").getcolors() if count > 4000}
    assert len(tones) >= 3, "passed, wrong and not attempted differ in grey print"


def test_matches_are_on_the_class_page_and_on_no_other(tmp_path):
    prints = {"1.5": f"{similarity.SHORT}-abc"}
    copies = [replace(submission(name), fingerprints=prints) for name in ("ada", "bo")]
    pages.write(copies, tmp_path, ClassConfig())
    assert "ada, bo" in Page(tmp_path / "index.html").text
    assert "bo" not in re.findall(r"\w+", learner_page(tmp_path, "ada").text)


def test_a_learners_page_names_nobody_else(folder):
    for graded in CLASS:
        text = learner_page(folder, graded.learner).text
        assert printable(graded.learner) in text
        assert [other.learner for other in CLASS if other != graded and printable(other.learner) in text] == []


def test_a_learners_page_says_what_is_wrong(folder):
    page = learner_page(folder, "learner01")
    for report in CLASS[1].reports:
        assert f"{report.exercise} {report.name}" in page.text
        assert printable(report.message) in page.text
    late = learner_page(folder, "late-lena").text
    assert "1.6 of 20 points" in late and "2 days late: 80 % of 2 points" in late


def test_why_a_submission_was_not_graded_is_a_sentence_of_its_own(folder):
    text = learner_page(folder, "dora").text
    assert "This submission was not graded. dora.zip: It is not a zip that can be read.\n" in text
    tests = github.points([FAULTY])["tests"] + gradescope.results_json([FAULTY])["tests"]
    assert [test.get("message", test.get("output")) for test in tests] == [FAULTY.refusal] * 2


def test_a_note_is_a_sentence_on_the_learners_page(tmp_path):
    pages.write([replace(LATE, note="it was in UTF-16")], tmp_path, ClassConfig())
    assert "\nIt was in UTF-16.\n" in learner_page(tmp_path, LATE.learner).text


def test_a_learner_reads_why_nothing_was_attempted(tmp_path):
    report = Report("1.2", "attention_weights", "not attempted", 0, 2, message="The notebook does not define it.")
    silent = Report("1.3", "attend", "not attempted", 0, 2)
    pages.write([replace(LATE, reports=(report, silent))], tmp_path, ClassConfig())
    text = learner_page(tmp_path, LATE.learner).text
    assert "1.2 attention_weights: not attempted" in text and report.message in text
    assert "1.3 attend: not attempted" not in text


def test_pages_of_learners_who_are_gone_are_removed(tmp_path):
    both = [submission("ada"), submission("Bo")]
    for results in (both, both[:1]):
        pages.write(results, tmp_path, ClassConfig())
        gradescope.write(results, tmp_path / "gradescope")
    assert [path.name for path in (tmp_path / "learners").iterdir()] == ["ada.html"]
    assert [path.name for path in (tmp_path / "gradescope").iterdir()] == ["ada"]


def test_what_else_lies_beside_them_stays(tmp_path):
    gradescope.write([submission("ada"), submission("bo")], tmp_path / "gradescope")
    pages.write([submission("ada")], tmp_path, ClassConfig())
    for name in ("learners/notes.txt", "gradescope/bo/notes.txt"):
        (tmp_path / name).write_text("the instructor's")
    gradescope.write([submission("ada")], tmp_path / "gradescope")
    pages.write([submission("eve")], tmp_path, ClassConfig())
    assert {path.name for path in (tmp_path / "learners").iterdir()} == {"eve.html", "notes.txt"}
    assert [path.name for path in (tmp_path / "gradescope" / "bo").iterdir()] == ["notes.txt"]


def test_the_runs_notes_stand_before_the_chapters_and_the_confinement_last(tmp_path):
    pages.write([submission("ada"), FAULTY], tmp_path, ClassConfig(), ["The class's file names <adda>."])
    text = Page(tmp_path / "index.html").text
    note, last = "The class's file names <adda>.", "How the answers were confined"
    parts = [FAULTY.fault, note, f"{CHAPTER}\n", "with the same syntax tree", last]
    assert all(part in text for part in parts) and sorted(parts, key=text.index) == parts


@pytest.mark.parametrize(
    ("passed", "title"),
    [
        ([3, 3, 3], "Checks passed: 3 of 6 in every exercise"),
        ([3, 1, 3], "Checks passed by the fewest: 1.2 b, 1 of 6"),
        ([1, 1, 3], "Checks passed by the fewest: 1.1 and 1.2, 1 of 6 each"),
        ([1, 1, 1, 1, 3], "Checks passed by the fewest: 4 exercises, 1 of 6 each"),
        ([2], "Checks passed: 2 of 6"),
    ],
)
def test_the_title_of_the_plot_names_those_that_stand_out(passed, title):
    counts = {f"1.{n}": Counter(passed=many, wrong=6 - many) for n, many in enumerate(passed, start=1)}
    assert drawings.title(dict(zip(counts, "abcde", strict=False)), counts) == title


def test_all_pages_say_checks_passed(folder, index):
    assert "checks passed" in index.text and not re.search(r"(?<!checks )\bpassed\b(?! (its|the) checks)", index.text)
    assert "checks passed" in learner_page(folder, "learner00").text


def test_nothing_of_a_submission_is_taken_for_html(folder):
    for path in folder.rglob("*.html"):
        source = path.read_text()
        assert "<script" not in source and "<b>0.5" not in source
        assert not set(source) & set("\x00\x0b\x1b\u202e")


def test_a_picture_is_drawn_once_for_all_who_see_the_same(tmp_path, monkeypatch):
    from memcourse.course import pictures

    draw, drawn = pictures.figure, []
    monkeypatch.setattr(pictures, "figure", lambda picture: drawn.append(picture) or draw(picture))
    drawings._picture.cache_clear()
    one = submission("ada")
    shown = replace(
        one, reports=tuple(replace(r, picture=PICTURE if r.outcome == "wrong" else None) for r in one.reports)
    )
    pages.write([shown, replace(shown, learner="bo")], tmp_path, ClassConfig())
    assert drawn == [PICTURE]
    images = Page(tmp_path / "learners" / "bo.html").all("img")
    assert images and {image["alt"] for image in images} == {PICTURE["title"]}


def test_a_run_in_which_nothing_could_be_graded_has_a_page(tmp_path):
    pages.write([FAULTY], tmp_path, ClassConfig())
    assert FAULTY.fault in Page(tmp_path / "index.html").text


# ---- JUnit ----


def test_junit_says_the_same_as_the_results(tmp_path):
    junit.write(CLASS, tmp_path / "junit.xml")
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot().findall("testsuite")
    assert len(suites) == len(CLASS)
    for suite, graded in zip(suites, CLASS, strict=True):
        cases = suite.findall("testcase")
        assert len(cases) == int(suite.get("tests"))
        for kind, outcome in (("failure", "wrong"), ("error", "crashed"), ("skipped", "not attempted")):
            said = [case for case in cases if case.find(kind) is not None]
            named = [f"{r.exercise} {r.name}" for r in graded.reports if r.outcome == outcome]
            assert [case.get("name") for case in said] == named + ["grading"] * (kind == "error" and bool(graded.fault))
            assert len(said) == int(suite.get({"failure": "failures", "error": "errors"}.get(kind, kind)))
    (fault,) = suites[-1].iter("error")
    assert fault.text == "dora.zip: It is not a zip that can be read."


def test_what_xml_forbids_is_replaced(tmp_path):
    junit.write([submission(NASTY, seed=1)], tmp_path / "junit.xml")
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("name") == rf"Zoë</title><script>alert(1)</script>\x00\u202e\ud800 {CHAPTER}"
    failure = next(suite.iter("failure"))
    assert failure.text.partition("\n")[2] == r'expected <b>0.5</b>, found "0.4" & \x1b[31mmore\x0b'
    assert failure.get("message") == failure.text.partition("\n")[0]


# ---- GitHub Classroom ----


def test_the_workflow_installs_grades_and_reports():
    document = yaml.safe_load(github.workflow("git+https://example.org/memcourse@v1.0"))
    assert document["permissions"] == {"contents": "read"}
    (job,) = document["jobs"].values()
    assert job["permissions"] == {"contents": "read", "actions": "read", "checks": "write"}
    assert Requirement(job["env"]["COURSE"]).url == "git+https://example.org/memcourse@v1.0"
    steps = job["steps"]
    used = [step["uses"].partition("@")[0] for step in steps if "uses" in step]
    assert used == [
        "actions/checkout",
        "actions/setup-python",
        "actions/upload-artifact",
        "classroom-resources/autograding-grading-reporter",
    ]
    assert steps[1]["with"]["python-version"] == "3.11" and steps[1]["with"]["cache"] == "pip"
    ran = "\n".join(step["run"] for step in steps if "run" in step)
    assert re.search(r"memcourse grade submissions --out report --level \w+", ran)
    assert "${{" not in ran, "what a push says is never pasted into a command"
    (points,) = [step for step in steps if step.get("id")]
    reporter = steps[-1]
    assert reporter["with"]["runners"] == points["id"]
    assert list(reporter["env"]) == [f"{points['id'].upper()}_RESULTS"]
    assert f"steps.{points['id']}.outputs.result" in reporter["env"]["GRADE_RESULTS"]


@pytest.mark.parametrize("course", ["memcourse==1.0", "memcourse[course]==1.0", "https://example.org/memcourse.whl"])
def test_the_course_is_a_version_or_an_address(course):
    assert "course" in Requirement(github.requirement(course)).extras


@pytest.mark.parametrize(
    "course", ["memcourse", "memcourse>=1", "torch==2.6", "", 'x"; rm -rf ~', "memcourse==1\n- run: x"]
)
def test_another_course_is_refused_by_name(course):
    with pytest.raises(github.BadCourse, match=re.escape(repr(course))):
        github.workflow(course)


def test_points_for_github_classroom_add_up():
    line = github.output([CLASS[0], FAULTY])
    name, _, encoded = line.partition("=")
    found = json.loads(base64.b64decode(encoded))
    assert name == "result" and "\n" not in line
    assert found["max_score"] == CLASS[0].max_points
    assert sum(test["score"] for test in found["tests"]) == CLASS[0].raw_points
    assert found["status"] == "fail" and {test["status"] for test in found["tests"]} == {"pass", "fail", "error"}
    done = replace(CLASS[0], reports=tuple(replace(report, outcome="passed") for report in CLASS[0].reports))
    assert github.points([done])["status"] == "pass"


def test_the_commands_print_what_a_workflow_needs(tmp_path):
    save(CLASS[0], tmp_path)
    run = CliRunner().invoke
    assert run(commands.app, ["classroom-workflow", "--course", "memcourse==1.0"]).output == github.workflow(
        "memcourse==1.0"
    )
    assert run(commands.app, ["classroom-points", str(tmp_path)]).output == f"{github.output([CLASS[0]])}\n"
