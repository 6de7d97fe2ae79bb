"""The arena: fair contestants, tasks that ask for what they say, competitions that repeat, costs that are counted."""

from __future__ import annotations

import copy as copying
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from memcourse import Batch, ParallelGatedMemory, tasks
from memcourse.course import arena, arena_figure, arena_text
from memcourse.training import NOT_SCORED

REACH = arena.LAYERS * (arena.SEGMENT - 1)  # tokens that two windows reach back
needs_data = pytest.mark.skipif(
    "MEMCOURSE_DATA" not in os.environ, reason="MEMCOURSE_DATA names no folder of real data"
)


def test_contestants_have_about_as_many_parameters() -> None:
    counts = [arena.n_parameters(name) for name in arena.CONTESTANTS]
    middle = (max(counts) + min(counts)) / 2
    assert len(counts) >= 11
    assert max(abs(count - middle) for count in counts) < 0.06 * middle


@pytest.mark.parametrize("n_pairs", arena.TASKS["recall"].places)
def test_recall_asks_for_pairs_that_no_window_reaches(n_pairs: int) -> None:
    words = tasks.associative_recall_words(**arena.RECALL_WORDS)
    for tokens, targets in zip(*arena.recall(n_pairs, 5, 3), strict=True):
        row = [words[token] for token in tokens.tolist()]
        asked = [at for at, target in enumerate(targets.tolist()) if target != NOT_SCORED]
        value_of = {key: row[at + 1] for at, key in enumerate(row[: asked[0]]) if key.startswith("k")}
        last_value = max(at for at, word in enumerate(row) if word.startswith("v"))
        assert len(value_of) == n_pairs and len(asked) == min(n_pairs, 8)
        assert all(words[targets[at]] == value_of[row[at]] for at in asked)
        assert asked[0] - last_value > REACH


def test_passkey_is_asked_for_at_ends_of_segments_and_always_at_the_end() -> None:
    words, on_the_way = tasks.passkey_words(**arena.PASSKEY_WORDS), 0
    for seed in range(20):
        tokens, targets = arena.train_passkey(seed)
        row = [words[token] for token in tokens[0].tolist()]
        asked = [at for at, target in enumerate(targets[0].tolist()) if target != NOT_SCORED]
        assert asked == [at for at, word in enumerate(row) if word == "QUERY"]
        assert asked[-1] == len(row) - 1 and all(at % arena.SEGMENT == arena.SEGMENT - 1 for at in asked)
        assert {words[targets[0, at]] for at in asked} == {row[row.index("MARK") + 1]}
        on_the_way += len(asked) - 1
    assert on_the_way > 20
    assert (arena.passkey(4, 3, 0).targets != NOT_SCORED).sum() == 3  # the test asks once


@pytest.mark.parametrize("task", ["recall", "passkey", "flip-flop", "copy"])
def test_tests_are_of_one_make_and_of_no_training_seed(task: str) -> None:
    rules = arena.TASKS[task]
    seen: list[int] = []

    def make(batch_size: int, seed: int) -> Batch:
        seen.append(seed)
        return rules.test(rules.places[0])[0]

    arena.tests(make)
    longest_training = 1_000_003 * 1000 + rules.steps  # the 999th seed
    assert min(seen) >= arena.TEST_SEED > longest_training - 1_000_003
    sizes = [len(batch.tokens) for batch in rules.test(rules.places[-1])]
    assert 32 <= sum(sizes) <= 256
    n_words = rules.n_words()
    assert all(int(batch.tokens.max()) < n_words for batch in rules.test(rules.places[0]))


@pytest.fixture
def few_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "tests", partial(arena.tests, tokens=1))  # 32 rows


def test_a_competition_repeats_and_its_seed_matters(few_tests: None) -> None:
    short: dict[str, Any] = {"steps": 2, "places": (0.1,)}
    first, again, other = (arena.compete("window", "flip-flop", seed, **short) for seed in (0, 0, 1))
    assert first["loss"] == again["loss"] and first["nats"] == again["nats"]
    assert first["loss"] != other["loss"]
    assert first["places"] == [0.1] and len(first["accuracy"]) == 1 and len(first["loss"]) == first["steps"] == 2


def test_a_memory_joins_by_one_line_and_learns(few_tests: None) -> None:
    maker = arena.stack(32, lambda d_model: ParallelGatedMemory(d_model))
    found = arena.compete(maker, "flip-flop", 0, steps=40, learning_rate=1e-2, places=(0.1,))
    assert found["accuracy"][0] > 0.9


@pytest.mark.parametrize("arguments, named", [(("windw", "copy"), "window"), (("window", "copi"), "copy")])
def test_an_unknown_name_is_refused_with_those_that_exist(arguments: tuple[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        arena.compete(*arguments, seed=0)


def test_costs_count_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "BATCH_SIZE", 2)
    monkeypatch.setattr(arena, "DECODED", 2)
    monkeypatch.setattr(arena, "SHORT", 32)
    monkeypatch.setattr(arena, "LONG", 96)
    names = list(arena.CONTESTANTS)
    found = dict(zip(names, arena.costs(names, rounds=1), strict=True))
    shift, position = 48 * 4, 2 * 8  # the last token's embedding; each layer's count of tokens
    full = found["full attention"]
    assert full["state_bytes"] == 2 * 2 * 32 * 48 * 4 + shift + position  # layers, keys and values, tokens, width
    assert full["state_bytes_long"] == 2 * 2 * 96 * 48 * 4 + shift + position
    assert all(
        found[name]["state_bytes"] == found[name]["state_bytes_long"] for name in names if name != "full attention"
    )
    assert found["gated"]["state_bytes"] == (2 + 1) * 44 * 4
    assert all(value > 0 for cost in found.values() for value in cost.values())


@needs_data
@pytest.mark.parametrize("n_tokens", [48, 128])
def test_babi_in_prose_follows_from_its_facts(n_tokens: int) -> None:
    word_of = {number: word for word, number in arena_text.babi_words().items()}
    places = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"}
    tokens, targets = arena_text.babi_in_prose(n_tokens, 8, 1, part="test")
    one_fact = arena_text.babi_in_prose(n_tokens, 8, 1, n_facts=1, part="test").targets
    assert (one_fact != NOT_SCORED).sum(dim=1).tolist() == [1] * 8
    for row, said in zip(tokens.tolist(), targets.tolist(), strict=True):
        words, at_home, person = [word_of[token] for token in row], {}, ""
        for at, word in enumerate(words):
            if words[at : at + 2] == ["Where", "is"]:
                assert word_of[said[at + 3]] == at_home.pop(words[at + 2]) and words[at + 3] == "?"
            elif word in ("John", "Mary", "Sandra", "Daniel"):
                person = word
            elif word in places and words[at - 1] == "the":
                at_home[person] = word
        assert not at_home  # everybody was asked for
        assert sum(target != NOT_SCORED for target in said) == words.count("Where")


@needs_data
def test_books_score_every_next_token_and_the_held_out_ones_a_part() -> None:
    tokens, targets = arena_text.books(24, 3, 0)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    batch = arena_text.held_out_books(64, 16, 32)[0]
    scored = batch.targets != NOT_SCORED
    assert scored.sum(dim=1).tolist() == [16] * len(scored) and bool(scored[:, 16:32].all())
    assert torch.equal(batch.targets[:, 16:31], batch.tokens[:, 17:32])


@pytest.fixture
def found() -> dict[str, Any]:
    """Results of three contestants who are right in half, a quarter and all of it."""
    rights = {"window": 0.5, "full attention": 0.25, "mine": 1.0}
    cost = {"state_bytes": 640, "state_bytes_long": 64_000, "forward": 2e5, "training": 5e4, "decode": 1e-3}
    costs = {name: cost | {"decode_long": 2e-3, "training": 1e4 * n} for n, name in enumerate(rights, start=1)}

    def scores(places: int) -> Callable[[float], dict[str, Any]]:
        return lambda mean: {
            "accuracy": {"mean": [mean] * places, "low": [mean - 0.2] * places, "high": [mean] * places}
        }

    of_tasks = {
        name: {
            "places": list(task.places),
            "chance": task.chance,
            "contestants": {who: scores(len(task.places))(right) for who, right in rights.items()},
        }
        for name, task in arena.TASKS.items()
        if name in ("recall", "passkey", "flip-flop", "copy")
    }
    return {"parameters": dict.fromkeys(rights, 60_000), "costs": costs, "tasks": of_tasks}


def test_the_scorecard_shows_every_number_and_ratios_to_full_attention(found: dict[str, Any]) -> None:
    [ax] = arena_figure.scorecard(found).axes
    texts = [text.get_text() for text in ax.texts]
    columns = sum(map(len, arena_figure.GROUPS.values()))
    assert len(ax.patches) == 3 * columns
    assert texts.count("25") == columns and texts.count("100") == columns
    assert texts.count("5–25") == columns  # a spread of twenty points is shown
    assert texts.count("64 kB") == 3 and "0.50×" in texts and "1.50×" in texts


def test_a_second_try_counts_where_it_was_better(found: dict[str, Any]) -> None:
    better = {"mean": [0.75] * 7, "low": [0.7] * 7, "high": [0.8] * 7}
    worse = {"mean": [0.125] * 7, "low": [0.1] * 7, "high": [0.15] * 7}
    found["second_tries"] = [
        {"task": "recall", "contestant": "full attention", "learning_rate": 2e-3, "accuracy": better},
        {"task": "passkey", "contestant": "full attention", "learning_rate": 2e-3, "accuracy": worse},
    ]
    [ax] = arena_figure.scorecard(found).axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("75†") == len(arena_figure.GROUPS["recall\npairs"])
    assert not any(text.startswith("12") and text.endswith("†") for text in texts)
    assert any("0.002" in text for text in texts)  # the note says which learning rate


def test_the_table_has_a_row_for_each_and_its_spread(found: dict[str, Any]) -> None:
    table = arena_figure.table(found).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {len(row) for row in cells} == {len(cells[0])} and [row[0] for row in cells[2:]] == list(found["costs"])
    assert cells[3][2] == "25 (5 to 25)" and cells[3][1] == "60,000"
    assert cells[3][cells[0].index("state, 4,096")] == "64 kB"


def test_the_scorecard_leaves_out_tasks_that_have_not_run(found: dict[str, Any]) -> None:
    partly = copying.deepcopy(found)
    del partly["tasks"]["copy"]
    [ax] = arena_figure.scorecard(partly).axes
    left_out = len(arena_figure.GROUPS["copy\nitems"])
    assert len(ax.patches) == 3 * (sum(map(len, arena_figure.GROUPS.values())) - left_out)
