"""Bad input to key-value memory is refused with a ValueError: the argument, the value and what is allowed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memcourse import KeyValueMemory, KeyValueStore, ProductKeys
from memcourse.key_value import address, erase_and_add, read, write

DRAW = torch.zeros
LAYER = KeyValueMemory(12, 5)
PRODUCT = ProductKeys(3, 4)


def store(dtype: torch.dtype | None = None) -> KeyValueStore:
    held = KeyValueStore(4, 3, 2)
    if dtype:
        held.put(DRAW(2, 3, dtype=dtype), DRAW(2, 2, dtype=dtype))
    return held


def addressed(**kwargs: Any) -> Tensor:
    return address(DRAW(2, 3), DRAW(4, 3), **kwargs)


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "keys of another width": (lambda: address(DRAW(2, 3), DRAW(4, 5)), ["keys", "(4, 5)", "3"]),
    "a query without a length": (lambda: address(DRAW(3), DRAW(4, 3)), ["query", "(3,)", "two-dimensional"]),
    "another batch of keys": (lambda: address(DRAW(2, 6, 3), DRAW(5, 4, 3)), ["keys", "(5,)", "(2,)"]),
    "another similarity": (lambda: addressed(similarity="l2"), ["similarity", "'l2'", "cosine"]),
    "negative sharpness": (lambda: addressed(sharpness=-1.0), ["sharpness", "-1.0", "at least 0"]),
    "sharpness of nan": (lambda: addressed(sharpness=float("nan")), ["sharpness", "nan", "finite"]),
    "endless sharpness": (lambda: addressed(sharpness=float("inf")), ["sharpness", "inf", "finite"]),
    "top_k of 0": (lambda: addressed(top_k=0), ["top_k", "0", "1 to the 4 slots"]),
    "top_k beyond the slots": (lambda: addressed(top_k=5), ["top_k", "5", "1 to the 4 slots"]),
    "no slots": (lambda: address(DRAW(2, 3), DRAW(0, 3), top_k=1), ["top_k", "1", "0 slots"]),
    "weights of other slots": (lambda: read(DRAW(2, 3), DRAW(4, 5)), ["weights", "(2, 3)", "4"]),
    "weights of one slot": (lambda: read(DRAW(2, 1), DRAW(4, 5)), ["weights", "(2, 1)", "4"]),
    "read in another batch": (lambda: read(DRAW(3, 2, 4), DRAW(2, 4, 5)), ["values", "(2,)", "(3,)"]),
    "write, weights of another length": (lambda: write(DRAW(4, 5), DRAW(3), DRAW(5)), ["weights", "(3,)", "(4,)"]),
    "write, one weight for all": (lambda: write(DRAW(4, 5), DRAW(1), DRAW(5)), ["weights", "(1,)", "(4,)"]),
    "write, delta of width 1": (lambda: write(DRAW(4, 5), DRAW(4), DRAW(1)), ["delta", "(1,)", "(5,)"]),
    "write, delta without a batch": (lambda: write(DRAW(2, 4, 5), DRAW(2, 4), DRAW(5)), ["delta", "(5,)", "(2, 5)"]),
    "write into a vector": (lambda: write(DRAW(4), DRAW(4), DRAW(4)), ["values", "(4,)", "two-dimensional"]),
    "erase of another width": (
        lambda: erase_and_add(DRAW(4, 5), DRAW(4), DRAW(4), DRAW(5)),
        ["erase", "(4,)", "(5,)"],
    ),
    "add of another width": (lambda: erase_and_add(DRAW(4, 5), DRAW(4), DRAW(5), DRAW(4)), ["add", "(4,)", "(5,)"]),
    "erase above 1": (
        lambda: erase_and_add(DRAW(4, 5), DRAW(4), DRAW(5) + 1.5, DRAW(5)),
        ["erase", "1.5", "[0, 1]"],
    ),
    "erase below 0": (lambda: erase_and_add(DRAW(4, 5), DRAW(4), DRAW(5) - 0.5, DRAW(5)), ["erase", "-0.5", "[0, 1]"]),
    "erase of nan": (
        lambda: erase_and_add(DRAW(4, 5), DRAW(4), DRAW(5) * float("nan"), DRAW(5)),
        ["erase", "nan", "[0, 1]"],
    ),
    "capacity of 0": (lambda: KeyValueStore(0, 3, 2), ["capacity", "0", "at least 1"]),
    "key_dim of 0": (lambda: KeyValueStore(4, 0, 2), ["key_dim", "0", "at least 1"]),
    "value_dim of 0": (lambda: KeyValueStore(4, 3, 0), ["value_dim", "0", "at least 1"]),
    "another eviction": (lambda: KeyValueStore(4, 3, 2, evict="newest"), ["evict", "'newest'", "least_used"]),
    "put, keys of another width": (lambda: store().put(DRAW(2, 4), DRAW(2, 2)), ["keys", "(2, 4)", "(2, 3)"]),
    "put, fewer values": (lambda: store().put(DRAW(2, 3), DRAW(1, 2)), ["values", "(1, 2)", "(2, 2)"]),
    "put, a scalar": (lambda: store().put(DRAW(()), DRAW(2)), ["keys", "()"]),
    "put, a batch of batches": (lambda: store().put(DRAW(2, 2, 3), DRAW(2, 2, 2)), ["keys", "(2, 2, 3)"]),
    "put, integers": (lambda: store().put(DRAW(3).long(), DRAW(2)), ["keys.dtype", "int64", "floating-point"]),
    "put, two dtypes": (lambda: store().put(DRAW(3), DRAW(2).double()), ["values.dtype", "float64", "float32"]),
    "put, two devices": (
        lambda: store().put(DRAW(3), DRAW(2, device="meta")),
        ["values.device", "meta", "cpu"],
    ),
    "put, another dtype than before": (
        lambda: store(torch.float64).put(DRAW(3), DRAW(2)),
        ["keys", "float32 on cpu", "float64 on cpu"],
    ),
    "get, another width": (lambda: store().get(DRAW(2, 4)), ["query", "(2, 4)", "(2, 3)"]),
    "get, a scalar": (lambda: store().get(DRAW(())), ["query", "()"]),
    "get, another dtype": (lambda: store(torch.float64).get(DRAW(3)), ["query", "float32 on cpu", "float64 on cpu"]),
    "get, another device": (
        lambda: store(torch.float32).get(DRAW(3, device="meta")),
        ["query", "on meta", "on cpu"],
    ),
    "get, top_k of 0": (lambda: store(torch.float32).get(DRAW(3), top_k=0), ["top_k", "0"]),
    "no slots to learn": (lambda: KeyValueMemory(12, 0), ["n_slots", "0", "at least 1"]),
    "memory of no width": (lambda: KeyValueMemory(0, 5), ["d_model", "0", "at least 1"]),
    "x of another width": (lambda: LAYER(DRAW(1, 3, 8)), ["x", "(1, 3, 8)", "d_model=12"]),
    "the state of more slots": (
        lambda: LAYER(DRAW(2, 3, 12), KeyValueMemory(12, 6).initial_state(2)),
        ["state.memory", "(2, 6, 12)", "5, 12"],
    ),
    "no sub-keys": (lambda: ProductKeys(0, 4), ["n_sub_keys", "0", "at least 1"]),
    "odd key_dim": (lambda: ProductKeys(3, 5), ["key_dim", "5", "even"]),
    "key_dim of 0 halves": (lambda: ProductKeys(3, 0), ["key_dim", "0", "even"]),
    "product query of another width": (lambda: PRODUCT(DRAW(2, 5), 1), ["query", "(2, 5)", "key_dim=4"]),
    "k of 0": (lambda: PRODUCT(DRAW(2, 4), 0), ["k", "0", "1 to the 9 slots"]),
    "k beyond the slots": (lambda: PRODUCT(DRAW(2, 4), 10), ["k", "10", "1 to the 9 slots"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match="must be .*, got ") as error:
        call()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{error.value} does not say {missing}"


def test_a_refused_put_stores_nothing() -> None:
    held = store(torch.float64)
    before = held.keys.clone()
    with pytest.raises(ValueError, match="values"):
        held.put(DRAW(3, 3, dtype=torch.float64), DRAW(3, 5, dtype=torch.float64))
    assert len(held) == 2 and torch.equal(held.keys, before)


def test_a_first_put_that_is_refused_fixes_no_dtype() -> None:
    held = store()
    with pytest.raises(ValueError, match="keys"):
        held.put(DRAW(4, dtype=torch.float64), DRAW(2, dtype=torch.float64))
    held.put(DRAW(3), DRAW(2))
    assert held.keys.dtype == torch.float32
