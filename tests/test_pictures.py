"""The picture of a wrong answer: what is on it, when there is none, and that it can be drawn."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from memcourse.course import engine, pictures
from memcourse.course.checks import find
from memcourse.course.exercise import Report
from memcourse.course.stages import Task

WEIGHTS, ATTEND, WINDOWED = find("1.2"), find("1.3"), find("1.5")


def over_the_queries(query, key):
    return torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=0)


def windowed(ahead):
    """A reader that sees `ahead` tokens of the future."""

    def windowed_attention(query, key, value, window):
        places = torch.arange(len(query))
        seen = (places <= places[:, None] + ahead) & (places > places[:, None] - window)
        scores = (query @ key.T / query.shape[1] ** 0.5).masked_fill(~seen, -torch.inf)
        return scores.softmax(dim=-1) @ value

    return windowed_attention


def nan_where_nothing_is_seen(query, key, value, mask):
    scores = (query @ key.T / query.shape[1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ value


def picture(exercise, answer):
    return engine.run(exercise, answer).picture


def test_found_and_expected_stand_side_by_side_with_what_differs_marked():
    def one_cell_off(query, key):
        weights = torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=-1)
        weights[1, 2] += 0.5
        return weights

    found = picture(WEIGHTS, one_cell_off)
    task = Task(WEIGHTS)
    right = one_cell_off(*task.cases[0]).double().numpy()
    assert found["kind"] == "matrices" and found["marks"] == [[1, 2]]
    assert np.allclose(found["found"], right, atol=1e-5)
    right[1, 2] -= 0.5
    assert np.allclose(found["expected"], right, atol=1e-5)
    assert found["title"].startswith("attention_weights: 1 of 6 cells is wrong; its rows do not sum to 1")
    assert (found["rows"], found["columns"]) == ("query (T)", "key (S)")


def test_a_softmax_over_the_queries_is_said_to_sum_the_other_way():
    assert picture(WEIGHTS, over_the_queries)["title"].endswith("its rows do not sum to 1, its columns do")


def test_a_row_that_is_not_a_number_is_marked_and_json_can_hold_it():
    report = engine.run(ATTEND, nan_where_nothing_is_seen)
    assert report.outcome == "wrong" and report.message.startswith("finite: ")
    found = report.picture
    empty = next(case[3] for case in Task(ATTEND).cases if not case[3].any(dim=1).all())
    rows = [row for row in range(len(empty)) if not empty[row].any()]
    assert sorted({row for row, _ in found["marks"]}) == rows
    assert all(found["found"][row][column] == "nan" for row, column in found["marks"])
    json.dumps(found, allow_nan=False)
    assert Report.from_json(report.to_json()).picture == found


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_leak_shows_which_place_depends_on_which_later_one(ahead):
    found = picture(WINDOWED, windowed(ahead))
    T, window = len(Task(WINDOWED).cases[0][0]), Task(WINDOWED).cases[0][3]

    def sees(t, s, ahead):
        return t - window < s <= t + ahead

    assert found["kind"] == "leak"
    for key, by in (("found", ahead), ("expected", 0)):
        assert found[key] == [[float(sees(t, s, by)) for s in range(T)] for t in range(T)]
    assert found["marks"] == [[t, s] for t in range(T) for s in range(t + 1, min(T, t + ahead + 1))]
    assert "place 0 of the result depends on place 1, after it" in found["title"]


def test_an_answer_that_is_wrong_without_seeing_the_future_has_no_leak():
    def no_scale(query, key, value, window):
        return windowed(0)(query * query.shape[1] ** 0.5, key, value, window)

    assert picture(WINDOWED, no_scale)["kind"] == "matrices"


def test_an_answer_that_stops_when_it_is_asked_about_other_numbers_has_no_leak_to_show():
    first = Task(WINDOWED).cases[0][0]

    def only_its_cases(query, key, value, window):
        if query.shape == first.shape and not torch.equal(query, first):
            raise SystemExit
        return windowed(1)(query, key, value, window)

    assert picture(WINDOWED, only_its_cases)["kind"] == "matrices"


def test_where_there_is_nothing_to_look_at_there_is_no_picture():
    assert picture(WEIGHTS, lambda query, key: query @ key.T @ key) is None  # a shape
    assert picture(WEIGHTS, lambda query, key: 1 / 0) is None
    assert picture(WEIGHTS, None) is None
    right = engine.run(WEIGHTS, lambda query, key: torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=-1))
    assert right.outcome == "passed" and right.picture is None


def test_a_prediction_stays_secret():
    right = torch.eye(3)
    asked = {"cases": lambda: [()], "oracle": lambda: right.numpy(), "properties": (), "mistakes": ()}
    code = dataclasses.replace(WEIGHTS, probe=lambda answer: answer(), **asked)
    value = dataclasses.replace(WEIGHTS, probe=lambda answer: answer, stub="attention_weights = None", **asked)
    assert picture(code, lambda: right + 1)["expected"] == right.tolist()
    report = engine.run(value, right + 1)
    assert (report.outcome, report.picture) == ("wrong", None)


@pytest.mark.parametrize(
    "answer, exercise, crosses",
    [
        (over_the_queries, WEIGHTS, 6),
        (nan_where_nothing_is_seen, ATTEND, None),
        (windowed(1), WINDOWED, 4),
    ],
    ids=["wrong axis", "nan", "leak"],
)
def test_the_figure_has_three_panels_one_scale_and_a_cross_for_each_mark(answer, exercise, crosses):
    found = picture(exercise, answer)
    fig = pictures.figure(json.loads(json.dumps(found)))
    panels = [ax for ax in fig.axes if ax.get_title(loc="left") or ax.get_title()]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in panels] == ["found", "expected", "wrong where crossed"]
    assert panels[0].images[0].norm is panels[1].images[0].norm
    shown = panels[2].collections[0].get_offsets()
    assert sorted(map(tuple, shown)) == sorted((column, row) for row, column in found["marks"])
    assert crosses is None or len(shown) == crosses
    assert all(ax.get_xlabel() == found["columns"] for ax in panels) and panels[0].get_ylabel() == found["rows"]
    assert fig.get_suptitle() == found["title"]
    numbers = [text.get_text() for text in panels[0].texts]
    assert len(numbers) == np.size(found["found"])
    assert numbers.count("nan") == sum(value == "nan" for row in found["found"] for value in row)
    fig.draw_without_rendering()


def test_a_large_matrix_has_no_numbers_and_one_of_nan_alone_can_be_drawn():
    large = {"kind": "matrices", "marks": [[31, 31]], "title": "t", "rows": "row", "columns": "column"}
    ones = np.ones((32, 32)).tolist()
    fig = pictures.figure(large | {"found": ones, "expected": ones})
    assert not any(ax.texts for ax in fig.axes)
    nothing = np.full((2, 2), "nan").tolist()
    pictures.figure(large | {"found": nothing, "expected": nothing, "marks": []}).draw_without_rendering()


def test_the_description_is_one_line_that_says_the_same():
    found = picture(WEIGHTS, over_the_queries)
    line = pictures.description(found)
    assert "\n" not in line and found["title"] in line
    assert "2 rows of 3" in line and line.endswith(": (0, 0), (0, 1), (0, 2), (1, 0) and 2 more.")


@pytest.mark.parametrize("id", ["0.1", "1.4", "3.4", "4.4", "6.5", "7.1", "8.2"])
def test_pictures_of_known_mistakes_are_small_and_can_be_drawn(id):
    for mistake in find(id).mistakes[:3]:
        if found := picture(find(id), mistake.answer):
            assert found["marks"] and len(json.dumps(found, allow_nan=False)) < 20_000
            pictures.figure(found)
