"""The synthetic tasks: each batch is read again by plain Python that knows the rules and nothing of the code."""

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from memcourse import Batch, tasks

Row = list[tuple[str, str]]  # (what is read, what should be said after it)


def rows(batch: Batch, words: list[str]) -> list[Row]:
    return [tasks.describe(batch, words, row) for row in range(len(batch.tokens))]


def share_right(solver: Callable[[list[str]], list[str]], examples: list[Row]) -> float:
    """Share of the scored places where the solver, which sees the tokens alone, says what is scored."""
    right = [
        said == target
        for example in examples
        for said, (_, target) in zip(solver([word for word, _ in example]), example, strict=True)
        if target
    ]
    return sum(right) / len(right)


def scored_at(example: Row) -> list[int]:
    return [place for place, (_, target) in enumerate(example) if target]


# ---- associative recall

RECALL = {"batch_size": 50, "n_pairs": 5, "n_keys": 7, "n_values": 3, "n_queries": 2, "length": 17}


def recall_examples(seed: int = 0, **changed: int) -> list[Row]:
    words = tasks.associative_recall_words(n_keys=7, n_values=3)
    return rows(tasks.associative_recall(**RECALL | changed, seed=seed), words)


def look_up(words: list[str]) -> list[str]:
    """Whoever keeps a dictionary of every value by the key before it."""
    known: dict[str, str] = {}
    said = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("v"):
            known[before] = word
        said.append(known.get(word, ""))
    return said


def test_associative_recall_is_what_its_definition_says() -> None:
    for example in recall_examples():
        read, asked = [word for word, _ in example[:17]], example[17:]
        pairs = [(a, b) for a, b in itertools.pairwise(read) if a[0] == "k" and b[0] == "v"]
        assert len(example) == 19 and len(pairs) == 5 == len(dict(pairs))
        assert Counter(word[0] for word in read) == {"k": 5, "v": 5, ".": 7}
        assert scored_at(example) == [17, 18]
        assert [dict(pairs)[key] for key, _ in asked] == [target for _, target in asked]
        assert asked[0] != asked[1]


def test_associative_recall_is_solved_by_a_dictionary() -> None:
    assert share_right(look_up, recall_examples()) == 1.0


def test_without_a_length_the_pairs_follow_each_other() -> None:
    batch = tasks.associative_recall(batch_size=3, n_pairs=4, seed=0)
    assert batch.tokens.shape == (3, 9) and len(tasks.associative_recall_words()) == 33
    for example in rows(batch, tasks.associative_recall_words()):
        assert [word[0] for word, _ in example] == ["k", "v"] * 4 + ["k"]


def test_every_key_may_be_used_and_asked() -> None:
    for example in recall_examples(n_pairs=7, n_queries=7):
        assert {word for word, _ in example[17:]} == {f"k{i}" for i in range(7)}


def test_the_shown_value_that_came_most_often_is_right_as_often_as_documented() -> None:
    def most_often(words: list[str]) -> list[str]:
        return [Counter(word for word in words if word[0] == "v").most_common(1)[0][0]] * len(words)

    batch = tasks.associative_recall(batch_size=4000, n_pairs=4, seed=3)
    assert share_right(most_often, rows(batch, tasks.associative_recall_words())) == pytest.approx(0.34, abs=0.025)


def test_pairs_lie_anywhere_with_equal_chance() -> None:
    batch = tasks.associative_recall(batch_size=6000, n_pairs=2, length=6, seed=1)
    is_key = (batch.tokens[:, :6] < 16).long()
    found = Counter(tuple(row.nonzero().flatten().tolist()) for row in is_key)
    assert set(found) == {(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}  # all the ways to place two pairs in six
    assert all(abs(count - 1000) < 120 for count in found.values())  # four standard deviations


# ---- passkey


def passkey_examples(**sizes: int) -> list[Row]:
    return rows(tasks.passkey(batch_size=200, seed=4, **sizes), tasks.passkey_words())


def what_follows_the_mark(words: list[str]) -> list[str]:
    return [words[words.index("MARK") + 1]] * len(words)


@pytest.mark.parametrize("distance", [None, 0, 1, 3])
def test_passkey_is_what_its_definition_says(distance: int | None) -> None:
    segment = 3 - (3 if distance is None else distance)
    examples = passkey_examples(n_segments=4, segment_len=10, **({} if distance is None else {"distance": distance}))
    for example in examples:
        read = [word for word, _ in example]
        mark = read.index("MARK")
        assert len(read) == 40 and read[-1] == "QUERY" and scored_at(example) == [39]
        assert example[-1][1] == read[mark + 1] in [str(value) for value in range(16)]
        assert all(word.startswith("f") for word in [*read[:mark], *read[mark + 2 : -1]])
    places = {[word for word, _ in example].index("MARK") for example in examples}
    assert places == {10 * segment + offset for offset in range(4)}  # with its value it stays in the first half


def test_passkey_is_solved_by_a_search() -> None:
    assert share_right(what_follows_the_mark, passkey_examples(n_segments=3)) == 1.0


def test_passkey_draws_values_and_fillers_alike() -> None:
    examples = rows(tasks.passkey(batch_size=1600, n_segments=2, seed=0), tasks.passkey_words())
    values = Counter(example[-1][1] for example in examples)
    fillers = Counter(word for example in examples for word, _ in example if word.startswith("f"))
    assert len(values) == 16 and all(abs(count - 100) < 45 for count in values.values())
    assert len(fillers) == 12 and max(fillers.values()) < 1.08 * min(fillers.values())


# ---- flip-flop


def flip_flop_examples(n: int = 200, p_ignore: float = 0.8, length: int = 32) -> list[Row]:
    batch = tasks.flip_flop(batch_size=n, n_instructions=length, p_ignore=p_ignore, seed=6)
    return rows(batch, tasks.flip_flop_words())


def one_bit(words: list[str]) -> list[str]:
    """Whoever keeps one bit: the one behind the last w."""
    bit, said = "", []
    for before, word in zip(["", *words], words, strict=False):
        bit = word if before == "w" else bit
        said.append(bit)
    return said


@pytest.mark.parametrize("p_ignore", [0.8, 0.98, 0.1, 0.0, 1.0])
def test_flip_flop_is_what_its_definition_says(p_ignore: float) -> None:
    for example in flip_flop_examples(p_ignore=p_ignore):
        read = [word for word, _ in example]
        instructions, bits = read[::2], read[1::2]
        assert len(instructions) == len(bits) == 32 and set(instructions) <= set("wri") and set(bits) <= set("01")
        assert instructions[0] == "w" and instructions[-1] == "r"
        memory = bits[0]
        for place, (instruction, bit) in enumerate(zip(instructions, bits, strict=True)):
            memory = bit if instruction == "w" else memory
            assert example[2 * place][1] == (memory if instruction == "r" else "")
            assert instruction != "r" or bit == memory
        assert scored_at(example) == [2 * place for place, instruction in enumerate(instructions) if instruction == "r"]


def test_flip_flop_is_solved_by_one_bit() -> None:
    assert all(share_right(one_bit, flip_flop_examples(p_ignore=p)) == 1.0 for p in (0.8, 0.98, 0.1))


@pytest.mark.parametrize("p_ignore", [0.8, 0.98, 0.1])
def test_flip_flop_draws_instructions_and_bits_as_often_as_it_should(p_ignore: float) -> None:
    examples = flip_flop_examples(n=1000, p_ignore=p_ignore)
    between = [word for example in examples for word, _ in example[2:-2:2]]  # 30 000
    count = Counter(between)
    for instruction, share in {"i": p_ignore, "w": (1 - p_ignore) / 2, "r": (1 - p_ignore) / 2}.items():
        assert count[instruction] / len(between) == pytest.approx(share, abs=0.012)
    free = [b for example in examples for (a, _), (b, _) in itertools.pairwise(example) if a in ("w", "i")]
    assert free.count("1") / len(free) == pytest.approx(0.5, abs=0.015)


def test_repeating_the_bit_before_the_read_is_right_as_often_as_documented() -> None:
    found = share_right(lambda words: ["", *words][: len(words)], flip_flop_examples(n=1000, length=64))
    assert found == pytest.approx(1 - 0.8 / 2, abs=0.02)


# ---- selective copy


def selective_copy_examples(**sizes: int) -> list[Row]:
    batch = tasks.selective_copy(**{"batch_size": 200, "n_items": 4, "length": 11} | sizes, seed=8)
    return rows(batch, tasks.selective_copy_words())


def queue(words: list[str]) -> list[str]:
    """Whoever stores symbols in a queue and ignores the noise."""
    stored = [word for word in words if word.startswith("s")]
    return [stored.pop(0) if word == "COPY" else "" for word in words]


def test_selective_copy_is_what_its_definition_says() -> None:
    for example in selective_copy_examples():
        read = [word for word, _ in example]
        symbols = [word for word in read[:11] if word != "."]
        assert len(read) == 15 and read[11:] == ["COPY"] * 4 and scored_at(example) == [11, 12, 13, 14]
        assert len(symbols) == 4 and all(word.startswith("s") for word in symbols)
        assert [target for _, target in example[11:]] == symbols


def test_selective_copy_is_solved_by_a_queue() -> None:
    assert share_right(queue, selective_copy_examples()) == 1.0
    assert share_right(queue, selective_copy_examples(n_items=11)) == 1.0  # no noise at all


def test_selective_copy_scatters_its_symbols_evenly() -> None:
    batch = tasks.selective_copy(batch_size=4000, n_items=3, length=9, seed=2)
    at_each_place = (batch.tokens[:, :9] < 14).float().mean(dim=0)
    assert at_each_place.tolist() == pytest.approx([1 / 3] * 9, abs=0.035)
    symbols = torch.bincount(batch.targets[:, 9:].flatten(), minlength=14)
    assert len(symbols) == 14 and (symbols - 12000 / 14).abs().max() < 130


# ---- all of them

SEEDED: dict[str, Callable[[int], Batch]] = {
    "associative recall": lambda seed: tasks.associative_recall(batch_size=4, n_pairs=5, seed=seed),
    "passkey": lambda seed: tasks.passkey(batch_size=4, n_segments=2, seed=seed),
    "flip-flop": lambda seed: tasks.flip_flop(batch_size=4, n_instructions=16, seed=seed),
    "selective copy": lambda seed: tasks.selective_copy(batch_size=4, n_items=5, length=20, seed=seed),
}


@pytest.mark.parametrize("task", SEEDED)
def test_the_seed_decides_everything_and_the_global_generator_nothing(task: str) -> None:
    first = SEEDED[task](3)
    before = torch.get_rng_state()
    torch.rand(5)
    again, other = SEEDED[task](3), SEEDED[task](4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.tokens, other.tokens)
    torch.set_rng_state(before)
    SEEDED[task](3)
    assert torch.equal(before, torch.get_rng_state())
    assert first.tokens.dtype == first.targets.dtype == torch.int64 and first.tokens.shape == first.targets.shape


def test_the_words_of_a_task_differ_from_each_other() -> None:
    for words in (
        tasks.associative_recall_words(n_keys=5, n_values=3),
        tasks.passkey_words(n_values=5, n_fillers=3),
        tasks.flip_flop_words(),
        tasks.selective_copy_words(n_symbols=6),
    ):
        assert len(set(words)) == len(words)
    assert len(tasks.passkey_words()) == 30
