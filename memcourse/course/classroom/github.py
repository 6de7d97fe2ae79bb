"""GitHub Classroom: the workflow that learners' repositories carry, and points in the form that it reads."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from memcourse.course.classroom import CannotGrade
from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.results import Graded
from memcourse.course.exercise import Report

TEMPLATE = Path(__file__).parent / "templates" / "classroom.yml"
PLACE = "COURSE_GOES_HERE"


class BadCourse(CannotGrade):
    """It says no course that pip could install; the message is one sentence."""


def workflow(course: str) -> str:
    """The workflow file. course: what pip is to install, an address or memcourse==VERSION. Raises BadCourse."""
    return TEMPLATE.read_text().replace(PLACE, json.dumps(requirement(course)))


def requirement(course: str) -> str:
    text = f"memcourse[course] @ {course}" if "://" in course and "@ " not in course else course
    try:
        asked = Requirement(text)
    except InvalidRequirement as error:
        problem = str(error).splitlines()[0]
        raise BadCourse(f"course is {course!r}, and pip cannot read it: {problem}.") from None
    if asked.name != "memcourse":
        raise BadCourse(f"course is {course!r}, which is {asked.name}; it should be an address, or memcourse==VERSION.")
    if asked.url is None and not any(part.operator in ("==", "===") for part in asked.specifier):
        raise BadCourse(f"course is {course!r}, which may be any version; name one, as in memcourse==VERSION.")
    asked.extras.add("course")
    return str(asked)


def output(results: Sequence[Graded]) -> str:
    """The line for $GITHUB_OUTPUT that the reporter of GitHub Classroom reads: `result=`, then JSON in base64."""
    return "result=" + base64.b64encode(json.dumps(points(results)).encode()).decode()


def points(results: Sequence[Graded]) -> dict[str, Any]:
    tests = [_test(report) for graded in results for report in graded.reports]
    tests += [_case("grading", "error", graded.refusal) for graded in results if graded.fault]
    return {
        "version": 1,
        "status": "pass" if all(test["status"] == "pass" for test in tests) else "fail",
        "max_score": sum(graded.max_points for graded in results),
        "tests": tests,
    }


def _test(report: Report) -> dict[str, Any]:
    status = {"passed": "pass", "crashed": "error"}.get(report.outcome, "fail")
    said = report.message or report.outcome
    case = _case(f"{report.exercise} {report.name}", status, "" if status == "pass" else said)
    return case | {"score": report.points, "execution_time": round(report.seconds, 3)}


def _case(name: str, status: str, message: str) -> dict[str, Any]:
    shown = {"name": printable(name), "message": printable(message), "status": status}
    return shown | {"score": 0, "test_code": "", "filename": "", "line_no": 0, "execution_time": 0}
