"""What the instructor's guide and the rubric say is so: commands, numbers, keys, questions, examples."""

import re
from pathlib import Path
from typing import Any

import pytest

from memcourse.course.checks import CHAPTERS, exercises, find

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "INSTRUCTORS.md").read_text(encoding="utf-8")
RUBRIC = (ROOT / "RUBRIC.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """Every row of every table: its cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def section(title: str) -> str:
    """The part of the guide under a heading, to the next of the same depth or a higher one."""
    depth = title.split(" ")[0]
    _, _, rest = GUIDE.partition(f"\n{title}\n")
    assert rest, title
    return re.split(rf"\n#{{2,{len(depth)}}} ", rest)[0]


# ---- commands ----


def commands() -> list[str]:
    """Each `memcourse ...` of the guide, in a code block or in the text."""
    blocks = re.findall(r"^    (memcourse [^\n#]+)", GUIDE, flags=re.MULTILINE)
    return sorted({*blocks, *re.findall(r"`(memcourse [^`]+)`", GUIDE)})


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_guide_exists_with_its_options(line: str) -> None:
    import typer
    from typer.testing import CliRunner

    from memcourse.course.cli import app

    words = line.split()[1:]
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    while hasattr(command, "commands"):
        path.append(words.pop(0))
        assert path[-1] in command.commands, line
        command = command.commands[path[-1]]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, line
    assert CliRunner().invoke(app, [*path, "--help"]).exit_code == 0


def test_the_guide_names_the_commands_that_a_class_needs() -> None:
    named = set(" ".join(commands()).split())
    assert named >= {"start", "grade", "gradescope", "classroom-workflow"}
    assert named >= {"--learner", "--out", "--config", "--extra-checks", "--level"}


# ---- the syllabus ----


def test_every_chapter_stands_in_the_syllabus_with_its_minutes_and_points() -> None:
    stated = {row[0]: row for row in rows(section("### The chapters")) if row[0] in CHAPTERS}
    assert list(stated) == list(CHAPTERS)
    reading = dict(re.findall(r"\| \[(\d\d) [^|]*\|[^|]*\|[^|]*\| (\d+ min) \|", README))
    for chapter, (_, _, read, minutes, points, each) in stated.items():
        here = exercises(chapter)
        assert read == reading[chapter[:2]], chapter
        assert minutes == f"{sum(exercise.minutes for exercise in here)} min", chapter
        assert points == str(sum(exercise.points for exercise in here)), chapter
        assert each.split(" · ") == [
            f"{exercise.id}{'' if exercise.asks_for_code else '*'} ({exercise.points}, {exercise.minutes})"
            for exercise in here
        ]


def asked(cell: str) -> list[str]:
    """ "0.1, 1.1 to 1.3" as ids."""
    ids = []
    for part in cell.split(", "):
        first, _, last = part.partition(" to ")
        chapter, start = first.split(".")
        ids += [f"{chapter}.{number}" for number in range(int(start), int((last or first).split(".")[1]) + 1)]
    return ids


@pytest.mark.parametrize(("title", "weeks"), [("### Twelve weeks", 12), ("### Six weeks", 6)])
def test_the_weeks_add_up(title: str, weeks: int) -> None:
    table = [row for row in rows(section(title)) if row[0].isdigit()]
    assert [row[0] for row in table] == [str(week) for week in range(1, weeks + 1)]
    for _, _, cell, minutes, points, *_ in table:
        given = [find(id) for id in asked(cell)]
        assert (minutes, points) == (str(sum(e.minutes for e in given)), str(sum(e.points for e in given))), cell
    given_out = [id for row in table for id in asked(row[2])]
    assert len(set(given_out)) == len(given_out)
    if weeks == 12:
        assert given_out == [exercise.id for chapter in CHAPTERS for exercise in exercises(chapter)]


def test_what_is_handed_in_is_complete_by_then() -> None:
    for title in ("### Twelve weeks", "### Six weeks"):
        done: set[str] = set()
        for row in rows(section(title)):
            if row[0].isdigit():
                done |= set(asked(row[2]))
                for number in filter(None, row[6].split(", ")):
                    chapter = next(name for name in CHAPTERS if name.startswith(number))
                    assert {exercise.id for exercise in exercises(chapter)} <= done, (title, row[0])


def test_what_is_starred_has_variants_and_quizzes_are_predictions() -> None:
    starred = re.findall(r"(\d\.\d)\*", section("### The chapters"))
    assert starred and all(find(id).variant for id in starred)
    quizzes = re.findall(r"(\d\.\d)\*", section("### Twelve weeks"))
    assert quizzes and {find(id).kind for id in quizzes} == {"predict, then run"}


# ---- the rubric ----


def questions(chapter: str) -> list[str]:
    source = (ROOT / "source" / "chapters" / f"{chapter}.py").read_text(encoding="utf-8")
    _, _, rest = source.partition("# ### Three questions to think about\n")
    return re.findall(r"^# \d\. (.*)$", rest.split("\n# The exercises")[0].split("\n# ###")[0], flags=re.MULTILINE)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_open_question_has_its_rubric(chapter: str) -> None:
    asked_there = questions(chapter)
    assert len(asked_there) == 3
    for number, question in enumerate(asked_there, start=1):
        _, _, rest = RUBRIC.partition(f"### {chapter[:2]}, question {number}\n\n> ")
        stated, _, answer = rest.partition("\n\n")
        assert stated == question
        answer = re.split(r"\n##", answer)[0]
        parts = re.findall(r"^(\d)\. ", answer, flags=re.MULTILINE)
        assert len(parts) >= 4 and parts == [str(part) for part in range(1, len(parts) + 1)]
        assert re.search(r"^- .", answer, flags=re.MULTILINE), "what is worth less"


# ---- class.toml ----


def test_the_class_file_of_the_guide_is_read_and_names_every_key() -> None:
    import tomllib

    from memcourse.course.classroom import class_config

    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, flags=re.DOTALL)
    config = class_config.parse(tomllib.loads(text))
    assert config.points and config.deadlines and config.roster and config.extra_days and config.submitted
    named = {row[0].strip("`") for row in rows(section("## 2. class.toml")) if row[0].startswith("`")}
    assert named == {*class_config.KEYS, *(f"late.{key}" for key in class_config.LATE_KEYS)} - {"late"}


# ---- examples and facts ----


def test_the_hidden_check_of_the_guide_tells_right_from_wrong() -> None:
    import torch

    (program,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    defined: dict[str, object] = {}
    exec(compile(program, "INSTRUCTORS.md", "exec"), defined)
    checks = defined["CHECKS"]
    assert isinstance(checks, dict) and list(checks) == ["1.2"]
    for check in checks["1.2"]:
        check(lambda query, key: (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1))
        with pytest.raises(AssertionError):
            check(lambda query, key: (query @ key.mT).softmax(-1) * torch.arange(1, len(key) + 1))


def test_the_quiz_of_the_guide_prints_a_question_and_its_answers(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r'^    python -c "(.*?)"$', GUIDE, flags=re.MULTILINE | re.DOTALL)
    exec(program.replace("\n    ", "\n"), {})
    assert find("1.1").name in capsys.readouterr().out


def test_the_levels_of_the_guide_are_those_of_the_sandbox() -> None:
    from memcourse.course.runner.confine import LEVELS

    (heading,) = (row for row in rows(GUIDE) if row[0] == "what an answer may try")
    assert heading[1:] == list(LEVELS)


def test_every_file_that_the_guide_and_the_rubric_link_exists() -> None:
    prose = re.sub(r"```.*?```", "", GUIDE + RUBRIC, flags=re.DOTALL)
    targets = set(re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose))
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_the_guide_says_which_answers_are_compared() -> None:
    from memcourse.course.classroom import similarity

    assert f"fewer than {similarity.SHORT} nodes" in " ".join(GUIDE.split())


def test_the_guide_says_how_many_variants_there_are() -> None:
    from memcourse.course.checks import all_exercises
    from memcourse.course.variants import variant

    varied = [exercise for exercise in all_exercises() if exercise.variant]
    learners = [f"learner {number}" for number in range(70)]
    counts = {one.id: len({repr(variant(one, learner).oracle()) for learner in learners}) for one in varied}
    assert counts.pop("2.5") == 9 and min(counts.values()) == 12
    assert "nine variants of 2.5 and at least a dozen of every other" in " ".join(GUIDE.split())


def test_what_a_class_leaves_in_the_clone_is_ignored() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/submissions/", "/report/"} <= set(ignored)


def test_the_guide_stays_short() -> None:
    assert len(GUIDE.splitlines()) < 450
