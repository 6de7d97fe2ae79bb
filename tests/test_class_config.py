"""A class's file: what it says, and what it is told when it says something else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

import memcourse.course.classroom as classroom
from memcourse.course.classroom import CannotGrade
from memcourse.course.classroom.class_config import ClassConfig, read
from memcourse.course.classroom.deadlines import LateRule, lateness

EXAMPLE = Path(classroom.__file__).parent / "templates" / "class.toml"


def config(tmp_path, text):
    path = tmp_path / "class.toml"
    path.write_text(text)
    return read(path)


def test_an_empty_file_is_a_class():
    assert ClassConfig().chapters == () and ClassConfig().late.kept(timedelta(days=400)) == (
        100.0,
        400,
        "400 days late: 100 %",
    )


def test_the_example_shows_every_key_and_is_valid():
    found = read(EXAMPLE)
    plain = ClassConfig()
    assert found.points == {"1.2": 5} and found.roster == {"lovelace_1815": "ada"} and found.extra_days == {"ada": 2}
    assert found.submitted["01_attention"]["ada"] == datetime(2026, 10, 12, 20, 15, tzinfo=UTC)
    for name in ("title", "chapters", "points", "deadlines", "late", "roster", "extra_days", "submitted"):
        assert getattr(found, name) != getattr(plain, name)
    for key in ("time_zone", "variants", "steps"):
        assert key in EXAMPLE.read_text()


def test_a_date_is_the_end_of_that_day_where_the_class_is(tmp_path):
    found = config(
        tmp_path,
        """time_zone = "Asia/Seoul"
        [deadlines]
        01_attention = 2026-10-12
        02_key_value = 2026-10-19T18:00:00
        03_gated = 2026-10-26T18:00:00Z""",
    ).deadlines
    assert found["01_attention"].astimezone(UTC) == datetime(2026, 10, 12, 14, 59, 59, 999999, UTC)
    assert found["02_key_value"] == datetime(2026, 10, 19, 18, tzinfo=ZoneInfo("Asia/Seoul"))
    assert found["03_gated"] == datetime(2026, 10, 26, 18, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("titel = 'x'", "no key 'titel'. The nearest is 'title'"),
        ("title = 3", "title is 3; it should be a text"),
        ("chapters = ['01_atention']", "no chapter '01_atention'. The nearest is '01_attention'"),
        ("chapters = '01_attention'", "chapters is '01_attention'; it should be a list"),
        ("variants = 'yes'", "variants is 'yes'; it should be true or false"),
        ("[points]\n1.2 = 3", "An id stands in quotes"),
        ("[points]\n'1.22' = 3", "no exercise '1.22'. The nearest is"),
        ("[points]\n'1.2' = -1", "[points] 1.2 is -1; it should be a number from 0 to 100,000"),
        ("[points]\n'1.2' = inf", "[points] 1.2 is inf; it should be a number from 0 to 100,000"),
        ("[points]\n'1.2' = true", "[points] 1.2 is True; it should be a number"),
        ("points = 3", "points is 3; it should be a table, [points]"),
        ("[deadlines]\n01_attention = '2026-10-12'", "without quotes"),
        ("[deadlines]\n1_attention = 2026-10-12", "The nearest is '01_attention'"),
        ("[late]\npercent_per_dya = 20", "The nearest is 'percent_per_day'"),
        ("[late]\nfloor = 200", "[late] floor is 200; it should be a number from 0 to 100"),
        ("[late]\nsteps = [{day = 1}]", "number 1 is {'day': 1}; it should be {days = 1, percent = 80}"),
        ("[late]\nsteps = [{days = 1, percent = 80}]\npercent_per_day = 5", "one of them is allowed"),
        ("[roster]\nada = 3", "[roster] ada is 3; it should be a learner's name"),
        ("[submitted]\n01_attention = 2026-10-12", "it should be a table, [submitted.01_attention]"),
        ("time_zone = 'Mars/Olympus'", "time_zone is 'Mars/Olympus'; it should be a name like"),
        ("title = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_that_is_right(tmp_path, text, said):
    with pytest.raises(CannotGrade) as refused:
        config(tmp_path, text)
    assert said in str(refused.value) and str(refused.value).startswith(str(tmp_path / "class.toml"))
    assert "INSTRUCTORS.md" in str(refused.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(CannotGrade, match="class.toml cannot be read: No such file"):
        read(tmp_path / "class.toml")
    (tmp_path / "class.toml").write_bytes(b"title = '\xff'")
    with pytest.raises(CannotGrade, match="is not TOML"):
        read(tmp_path / "class.toml")


DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("rule", "late", "percent", "says"),
    [
        (LateRule(percent_per_day=20), timedelta(), 100, ""),
        (LateRule(percent_per_day=20), timedelta(seconds=1), 80, "1 day late: 80 %"),
        (LateRule(percent_per_day=20), DAY, 80, "1 day late: 80 %"),
        (LateRule(percent_per_day=20), DAY + HOUR, 60, "2 days late: 60 %"),
        (LateRule(percent_per_day=20), 9 * DAY, 0, "9 days late: 0 %"),
        (LateRule(percent_per_day=20, floor=40), 9 * DAY, 40, "9 days late: 40 %"),
        (LateRule(percent_per_day=20, grace=HOUR), HOUR, 100, ""),
        (LateRule(percent_per_day=20, grace=HOUR), 2 * HOUR, 80, "1 day late: 80 %"),
        (LateRule(steps=((1, 80), (7, 50))), DAY, 80, "1 day late: 80 %"),
        (LateRule(steps=((1, 80), (7, 50))), DAY + HOUR, 50, "2 days late: 50 %"),
        (LateRule(steps=((1, 80), (7, 50))), 8 * DAY, 0, "8 days late: 0 %"),
    ],
)
def test_what_a_late_submission_keeps(rule, late, percent, says):
    days = int(says.split()[0]) if says else 0
    assert rule.kept(late) == (percent, days, says)


def test_lateness_counts_from_the_deadline_and_the_learners_own_days():
    deadline = datetime(2026, 10, 12, tzinfo=UTC)
    assert lateness(deadline + 3 * DAY, deadline) == 3 * DAY
    assert lateness(deadline + 3 * DAY, deadline, extra_days=2) == DAY
    assert lateness(deadline - DAY, deadline) == lateness(None, deadline) == lateness(deadline, None) == timedelta()
