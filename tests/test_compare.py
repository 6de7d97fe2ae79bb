"""The comparison: what each stage lets through, and what it says about the rest."""

import math

import numpy as np
import pytest
import torch

from memcourse.course import compare
from memcourse.course.exercise import Wrong

PAIR = np.arange(6.0).reshape(2, 3)


class OwnTensor(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (torch.zeros(2, 3), PAIR),
        (torch.nn.Parameter(torch.zeros(2, 3)), PAIR),
        (torch.tensor(0.5), np.float64(0.5)),
        (1, 0.5),
        (np.float32(1), 0.5),
        (np.int64(1), 2),
        (np.True_, True),
        ("yes", "no"),
        (None, None),
        ((torch.zeros(2), 3), (np.zeros(2), 3)),
        ({"a": [1, 2]}, {"a": [3, 4]}),
    ],
)
def test_right_types(found, expected):
    compare.check_type(found, expected)


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        (PAIR, PAIR, r"a torch.Tensor; found a NumPy array of shape \(2, 3\): stay in torch"),
        (0.5, np.float64(0.5), r"found the float 0.5: .item\(\)"),
        (torch.zeros(2, 3).as_subclass(OwnTensor), PAIR, r"found a OwnTensor of shape \(2, 3\)"),
        (torch.zeros(2, 3).to_sparse(), PAIR, "a torch.Tensor"),
        ([torch.zeros(3)] * 2, PAIR, "a list of 2: torch.stack"),
        (None, PAIR, "found None: is a `return` missing"),
        ((torch.zeros(2, 3),), PAIR, "found a tuple of 1"),
        (torch.tensor(0.5), 0.5, r"a number; found a torch.Tensor of shape \(\): .item\(\)"),
        (True, 0.5, "a number; found the bool True"),
        (True, 1, "an int; found the bool True"),
        (1.0, 1, "an int; found the float 1.0"),
        (1, True, "True or False; found the int 1"),
        (1, "one", "a str; found the int 1"),
        (0, None, "should be None"),
        ([1, 2], (1, 2), "a tuple of 2; found a list of 2"),
        ((1, 2, 3), (1, 2), "a tuple of 2; found a tuple of 3"),
        ({"a": 1}, {"a": 1, "b": 2}, "the keys 'a', 'b'; found a dict with the keys 'a'"),
        ((1, [2, "x"]), (1, [2, 3]), "part 2 of part 2 of the result should be an int"),
        ({"a": 0.5}, {"a": np.zeros(2)}, r"the result\['a'\] should be a torch.Tensor"),
        ({"a": None}, {"a": 1}, "an int; found None$"),  # no return in a dict
    ],
)
def test_wrong_types(found, expected, says):
    with pytest.raises(Wrong, match=says):
        compare.check_type(found, expected)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (1, 2, 3), (3, 2), (2, 3, 1), ()])
def test_no_shape_broadcasts(shape):
    with pytest.raises(Wrong, match=r"should have shape \(2, 3\); found"):
        compare.check_shape(torch.zeros(shape), PAIR)


@pytest.mark.parametrize(
    ("found", "expected", "wanted"),
    [
        (torch.float64, np.float64, "torch.float32"),
        (torch.float16, np.float64, "torch.float32"),
        (torch.int64, np.float64, "torch.float32"),
        (torch.int32, np.int64, "torch.int64"),
        (torch.uint8, np.bool_, "torch.bool"),
    ],
)
def test_dtypes(found, expected, wanted):
    array = np.zeros(2, expected)
    compare.check_dtype(torch.zeros(2, dtype=getattr(torch, wanted.removeprefix("torch."))), array, torch.float32)
    with pytest.raises(Wrong, match=f"should be {wanted}; found {found}"):
        compare.check_dtype(torch.zeros(2, dtype=found), array, torch.float32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_where_finite_is_expected(bad):
    found = torch.tensor(PAIR)
    found[1, 2] = bad
    with pytest.raises(Wrong, match=rf"row 1, column 2: expected 5.000, found {bad} \(1 of 6 entries differ\)"):
        compare.check_finite(found, PAIR)
    compare.check_finite(found, found.numpy())
    with pytest.raises(Wrong):
        compare.check_finite(bad, 0.5)


@pytest.mark.parametrize(
    ("index", "shape", "says"),
    [
        ((), (), "the result: expected"),
        ((3,), (5,), "^position 3: expected"),
        ((1, 3), (2, 5), "^row 1, column 3: expected"),
        ((1, 0, 4), (2, 3, 5), r"^index \[1, 0, 4\]: expected"),
    ],
)
def test_first_difference_in_words(index, shape, says):
    expected = np.zeros(shape)
    found = torch.zeros(shape)
    found[index] = 1.0
    with pytest.raises(Wrong, match=says):
        compare.check_values(found, expected, 1e-5)


def test_values_within_the_tolerance():
    expected = np.array([0.0, 1.0, 1000.0])
    compare.check_values(torch.tensor(expected + [9e-6, 1.9e-5, 9e-3]), expected, 1e-5)
    for at, off in enumerate([1.1e-5, 2.1e-5, 1.1e-2]):
        with pytest.raises(Wrong, match=f"position {at}"):
            compare.check_values(torch.tensor(expected + off * np.eye(3)[at]), expected, 1e-5)


def test_infinity_and_nan_are_values():
    expected = np.array([-np.inf, np.nan, 1.0])
    compare.check_values(torch.tensor(expected), expected, 1e-5)
    for wrong in ([np.inf, np.nan, 1.0], [0.0, np.nan, 1.0], [-np.inf, 0.0, 1.0]):
        with pytest.raises(Wrong):
            compare.check_values(torch.tensor(wrong), expected, 1e-5)


def test_integers_and_bools_are_exact():
    with pytest.raises(Wrong, match="position 1: expected 1000000, found 1000001"):
        compare.check_values(torch.tensor([1, 1_000_001]), np.array([1, 1_000_000]), 0.1)
    with pytest.raises(Wrong, match="position 0: expected True, found False"):
        compare.check_values(torch.tensor([False, True]), np.array([True, True]), 1.0)
    with pytest.raises(Wrong, match="expected 3, found 4"):
        compare.check_values(4, 3, 0.9)


def test_as_many_digits_as_it_takes():
    with pytest.raises(Wrong, match="expected 0.3775, found 0.5000"):
        compare.check_values(torch.tensor(0.5), np.float64(0.3775407), 1e-5)
    with pytest.raises(Wrong, match="expected 1.000000, found 1.000050"):
        compare.check_values(1.00005, 1.0, 1e-5)


def test_strings_regardless_of_case_and_blanks():
    compare.check_values(" Keys ", "keys", 0.0)
    with pytest.raises(Wrong, match="expected 'keys', found 'values'"):
        compare.check_values("values", "keys", 0.0)


def test_parts_are_named():
    with pytest.raises(Wrong, match=r"part 2 of the result\['a'\], row 0, column 1: expected"):
        compare.check_values({"a": (1, torch.tensor([[0.0, 1.0]]))}, {"a": (1, np.zeros((1, 2)))}, 1e-5)


def test_a_secret_is_not_told():
    for check in (lambda: compare.check_values({"a": 4.0}, {"a": 0.25}, 1e-5, secret=True),
                  lambda: compare.check_finite({"a": math.nan}, {"a": 0.25}, secret=True)):  # fmt: skip
        with pytest.raises(Wrong, match=r"^the result\['a'\] is not (4.0|nan)$"):
            check()


def test_on_which_side_of_a_limit():
    expected = {"a": 8, "b": 0.25, "c": "yes", "d": True}
    found = {"a": 16, "b": 0.125, "c": "no", "d": False}
    with pytest.raises(Wrong) as raised:
        compare.check_values(found, expected, 1e-5, secret=True, which_way=True)
    assert str(raised.value).replace("the result", "") == (
        "['a'] is not 16: too large; ['b'] is not 0.125: too small; ['c'] is not 'no'; ['d'] is not False"
    )


SAME = [
    (torch.tensor([1.0, math.nan]), torch.tensor([1.0 + 1e-7, math.nan])),
    ({"a": (1, 0.5)}, {"a": (1, 0.5)}),
    (np.ones(2), np.ones(2)),
    (math.nan, math.nan),
    ("Yes", "yes"),
    (None, None),
    ({"a": 6}, {"a": 6.0}),
]
DIFFERENT = [
    (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    (torch.ones(2), torch.ones(1)),
    (torch.ones(2), torch.ones(1, 2)),
    (torch.ones(2), torch.tensor([1.0, math.nan])),
    (torch.ones(2), np.ones(2)),
    (torch.ones(1), 1.0),
    ((1, 2), [1, 2]),
    ((1, 2), (1, 2, 3)),
    ({"a": 1}, {"b": 1}),
    (np.ones(2), np.ones(1)),
    (0.5, 0.6),
    (True, 1),
    (True, 1.0),
    (3, 4),
    (3, 4.0),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_same(one, other):
    assert compare.same(one, other, 1e-5)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_the_same(one, other):
    assert not compare.same(one, other, 1e-5)
