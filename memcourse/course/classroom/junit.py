"""JUnit XML, which build servers read: a suite for each submission, a case for each exercise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.results import Graded
from memcourse.course.exercise import Outcome, Report
from memcourse.course.start import write_atomically

TAGS: dict[Outcome, str] = {"wrong": "failure", "crashed": "error", "not attempted": "skipped"}


def write(results: Sequence[Graded], path: Path) -> None:
    root = ElementTree.Element("testsuites", name="memcourse")
    root.extend(_suite(graded) for graded in results)
    ElementTree.indent(root)
    write_atomically(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _suite(graded: Graded) -> ElementTree.Element:
    outcomes = Counter(report.outcome for report in graded.reports)
    suite = ElementTree.Element(
        "testsuite",
        name=printable(f"{graded.learner} {graded.chapter}".strip()),
        tests=str(len(graded.reports) + bool(graded.fault)),
        failures=str(outcomes["wrong"]),
        errors=str(outcomes["crashed"] + bool(graded.fault)),
        skipped=str(outcomes["not attempted"]),
        time=f"{graded.seconds:.3f}",
        file=printable(graded.source),
    )
    if graded.submitted:
        suite.set("timestamp", printable(graded.submitted))
    if graded.fault:
        case = ElementTree.SubElement(suite, "testcase", classname=suite.attrib["name"], name="grading", time="0.000")
        _tell(case, "error", graded.refusal)
    for report in graded.reports:
        suite.append(_case(report, suite.attrib["name"]))
    return suite


def _case(report: Report, suite: str) -> ElementTree.Element:
    name, seconds = f"{report.exercise} {report.name}", f"{report.seconds:.3f}"
    case = ElementTree.Element("testcase", classname=suite, name=name, time=seconds)
    if tag := TAGS.get(report.outcome):
        _tell(case, tag, report.message)
    return case


def _tell(case: ElementTree.Element, tag: str, message: str) -> None:
    shown = printable(message)
    ElementTree.SubElement(case, tag, message=shown.partition("\n")[0]).text = shown
