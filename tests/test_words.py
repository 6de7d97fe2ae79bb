"""How the arguments of a case are shown: their numbers where they are few, else their shapes."""

import torch

from memcourse.course.words import numbers, shapes


def test_few_numbers_are_printed_and_of_more_the_shape():
    case = (torch.tensor([[0.5, -1.0]]), torch.zeros(17), 3, None)
    assert numbers(["x", "y", "k", "state"], case) == (
        "With x = [[0.5, -1]]\n     y of shape (17,)\n     k = 3\n     state = None"
    )
    assert shapes(["x", "k"], (case[0], 3)) == "With x of shape (1, 2) and k = 3"


def test_a_mask_is_rows_of_digits():
    mask = torch.eye(5, dtype=torch.bool)
    assert numbers(["mask"], (mask,)) == "With mask = [10000, 01000, 00100, 00010, 00001], 1 for True"
    assert numbers(["mask"], (mask[:2, :2],)) == "With mask = [[True, False], [False, True]]"
    assert numbers(["mask"], (torch.ones(5, 13, dtype=torch.bool),)) == "With mask of shape (5, 13)"


def test_a_few_tensors_of_a_dict_or_a_list_show_their_shapes():
    one, two = torch.zeros(2, 3), torch.zeros(5, 3)
    assert numbers(["W"], ({"in": one, "f": two},)) == "With W of shapes in (2, 3) and f (5, 3)"
    assert numbers(["blocks"], ([one, two],)) == "With blocks of shapes (2, 3) and (5, 3)"
    assert numbers(["W"], (dict.fromkeys("abcde", one),)) == "With W = a dict"
    assert numbers(["W"], ({"rate": 0.5},)) == "With W = a dict"
    assert numbers(["ks", "none"], ([5, 2], [])) == "With ks = a list of 2\n     none = a list of 0"
