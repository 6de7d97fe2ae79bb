"""Bad input is refused with a ValueError that names the argument, the value and what is allowed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memcourse import (
    AdditiveAttention,
    Batch,
    CausalAttention,
    MemoryTransformer,
    MultiHeadAttention,
    attend,
    evaluate,
    fit,
    hopfield_step,
)
from memcourse import memory as state_of
from memcourse.transformer import open_model

DRAW = torch.zeros


def model(window: int | None = None, d_model: int = 12) -> MemoryTransformer:
    return MemoryTransformer(11, d_model, 2, lambda: CausalAttention(d_model, 2, window=window))


LAYER = CausalAttention(12, 2, window=5)
STATE = LAYER.initial_state(3)
TOKENS = torch.zeros(2, 3, dtype=torch.long)

REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "key of another width": (lambda: attend(DRAW(2, 3), DRAW(4, 5), DRAW(4, 5)), ["key", "(4, 5)", "3"]),
    "value of another length": (lambda: attend(DRAW(2, 3), DRAW(4, 3), DRAW(5, 3)), ["value", "(5, 3)", "4"]),
    "query without a length": (lambda: attend(DRAW(3), DRAW(4, 3), DRAW(4, 3)), ["query", "(3,)"]),
    "mask of numbers": (
        lambda: attend(DRAW(2, 3), DRAW(4, 3), DRAW(4, 3), mask=DRAW(2, 4)),
        ["mask", "float32", "boolean"],
    ),
    "mask of another shape": (
        lambda: attend(DRAW(2, 3), DRAW(4, 3), DRAW(4, 3), mask=DRAW(4, 2).bool()),
        ["mask", "(4, 2)", "(..., 2, 4)"],
    ),
    "beta of zero": (lambda: hopfield_step(DRAW(3), DRAW(4, 3), beta=0.0), ["beta", "0.0", "greater than 0"]),
    "patterns of another width": (
        lambda: hopfield_step(DRAW(3), DRAW(4, 5), beta=1.0),
        ["patterns", "(4, 5)", "3"],
    ),
    "additive of width 0": (lambda: AdditiveAttention(3, 0, 7), ["key_dim", "0", "at least 1"]),
    "additive, wrong query": (
        lambda: AdditiveAttention(3, 5, 7)(DRAW(2, 4, 5), DRAW(2, 6, 5), DRAW(2, 6, 1)),
        ["query", "(2, 4, 5)"],
    ),
    "additive, short value": (
        lambda: AdditiveAttention(3, 5, 7)(DRAW(2, 4, 3), DRAW(2, 6, 5), DRAW(2, 5, 1)),
        ["value", "(2, 5, 1)"],
    ),
    "heads do not divide": (lambda: MultiHeadAttention(10, 3), ["d_model", "10", "multiple of n_heads=3"]),
    "no heads": (lambda: MultiHeadAttention(10, 0), ["n_heads", "0", "at least 1"]),
    "causal with a context": (
        lambda: MultiHeadAttention(12, 2, causal=True)(DRAW(1, 3, 12), DRAW(1, 4, 12)),
        ["context", "causal=True"],
    ),
    "x of another width": (
        lambda: MultiHeadAttention(12, 2)(DRAW(1, 3, 8)),
        ["x", "(1, 3, 8)", "d_model=12"],
    ),
    "context of another width": (
        lambda: MultiHeadAttention(12, 2)(DRAW(1, 3, 12), DRAW(1, 3, 8)),
        ["context", "(1, 3, 8)"],
    ),
    "odd width of a head": (lambda: CausalAttention(6, 2), ["d_model", "6", "even"]),
    "window of 0": (lambda: CausalAttention(12, 2, window=0), ["window", "0", "at least 1"]),
    "x of two dimensions": (lambda: LAYER(DRAW(3, 12)), ["x", "(3, 12)", "(batch, time, d_model=12)"]),
    "state of another class": (
        lambda: LAYER(DRAW(2, 3, 12), model().initial_state(2)),
        ["state", "TransformerState", "KeyValueCache"],
    ),
    "state of another width": (
        lambda: LAYER(DRAW(2, 3, 12), CausalAttention(16, 2, window=5).initial_state(2)),
        ["state.key.shape", "(2, 2, 4, 8)", "(batch, 2, 4, 6)"],
    ),
    "state of another batch size": (lambda: LAYER(DRAW(2, 3, 12), STATE), ["batch size", "3", "2"]),
    "state of another dtype": (
        lambda: LAYER(DRAW(3, 3, 12), state_of.to(STATE, dtype=torch.float64)),
        ["dtype", "float64", "float32"],
    ),
    "state on another device": (
        lambda: LAYER(DRAW(3, 3, 12), state_of.to(STATE, device="meta")),
        ["device", "meta", "cpu"],
    ),
    "a model's state for another model": (
        lambda: (
            model()(TOKENS, model(window=4).initial_state(2))  # fits: a growing cache may have any length
            and model(window=4)(TOKENS, model(window=9).initial_state(2))
        ),
        ["layers.0.key", "(2, 2, 8, 6)"],
    ),
    "rows that do not exist": (lambda: state_of.reset(LAYER, STATE, [3]), ["rows", "[3]", "0 to 2"]),
    "negative rows": (lambda: state_of.reset(LAYER, STATE, [-1]), ["rows", "[-1]"]),
    "chunk of 0": (lambda: next(state_of.stream(LAYER, DRAW(2, 3, 12), 0)), ["chunk", "0", "at least 1"]),
    "bptt of 0": (lambda: next(state_of.stream(LAYER, DRAW(2, 3, 12), 1, bptt=0)), ["bptt", "0"]),
    "state that is none": (lambda: state_of.n_bytes("state"), ["state", "str"]),
    "no vocabulary": (
        lambda: MemoryTransformer(0, 12, 1, lambda: CausalAttention(12, 2)),
        ["vocab_size", "0"],
    ),
    "too few makers": (
        lambda: MemoryTransformer(11, 12, 3, [lambda: CausalAttention(12, 2)]),
        ["memory", "1 makers", "n_layers=3"],
    ),
    "a maker of something else": (
        lambda: MemoryTransformer(11, 12, 1, lambda: torch.nn.Linear(12, 12)),
        ["memory", "Linear"],
    ),
    "a maker of another width": (
        lambda: MemoryTransformer(11, 16, 1, lambda: CausalAttention(12, 2)),
        ["d_model", "16", "12"],
    ),
    "tokens that are vectors": (lambda: model()(DRAW(2, 3)), ["tokens", "float32", "integers"]),
    "token beyond the vocabulary": (lambda: model()(TOKENS + 11), ["tokens", "11", "0 to 10"]),
    "token below 0": (lambda: model()(TOKENS - 1), ["tokens", "-1"]),
    "an empty prompt": (
        lambda: model().generate(TOKENS[:, :0], 3),
        ["prompt", "(2, 0)", "at least one token"],
    ),
    "fewer than no tokens": (lambda: model().generate(TOKENS, -1), ["n", "-1"]),
    "temperature of 0": (lambda: model().generate(TOKENS, 1, temperature=0.0), ["temperature", "0.0"]),
    "no steps": (lambda: fit(model(), lambda _: Batch(TOKENS, TOKENS), steps=0), ["steps", "0"]),
    "learning rate of 0": (
        lambda: fit(model(), lambda _: Batch(TOKENS, TOKENS), steps=1, learning_rate=0.0),
        ["learning_rate"],
    ),
    "nothing scored": (
        lambda: fit(model(), lambda _: Batch(TOKENS, TOKENS - 100), steps=1, progress=False),
        ["targets", "-100"],
    ),
    "nothing to evaluate": (lambda: evaluate(model(), []), ["batches", "no scored target"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.startswith(words[0]) or words[0] in message.split(" must be ")[0]
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


def test_a_state_file_of_another_layer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state_of.save(STATE, path)
    with pytest.raises(ValueError, match=r"previous"):
        state_of.load(path, like=model().initial_state(3))
    with pytest.raises(ValueError, match=r"key in .*float64.*as in `like`.*float32"):
        state_of.load(path, like=state_of.to(STATE, dtype=torch.float64))


def test_a_checkpoint_of_another_configuration_is_refused_naming_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model(window=5).save(path)
    with pytest.raises(ValueError, match=r"memory\.0\.window: 8 here, 5 in the file") as error:
        model(window=8).load(path)
    assert "d_model" not in str(error.value)
    with pytest.raises(ValueError, match=r"d_model: 24 here, 12 in the file"):
        model(window=5, d_model=24).load(path)


def test_weights_from_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state_of.write_safetensors({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="a file written by MemoryTransformer.save"):
        model().load(path)


def test_an_attribute_that_does_not_exist() -> None:
    import memcourse

    with pytest.raises(AttributeError, match="no attribute 'Attention'"):
        memcourse.Attention  # noqa: B018


def test_what_cannot_be_opened_as_a_model(tmp_path: Path) -> None:
    torn, other, unknown = tmp_path / "torn", tmp_path / "other", tmp_path / "unknown"
    torn.write_bytes(b"half a file")
    state_of.save(STATE, other)
    state_of.write_safetensors(model().state_dict(), unknown, model().config | {"memory": [{"class": "Hologram"}]})
    with pytest.raises(ValueError, match="path must be a file written by MemoryTransformer.save, got .*torn"):
        open_model(torn)
    with pytest.raises(ValueError, match="path must be a file written by MemoryTransformer.save, got .*other"):
        open_model(other)
    with pytest.raises(ValueError, match="class in the file must be a memory of memcourse .*, got Hologram"):
        open_model(unknown)
