"""The host model: it learns, streams, generates, saves and loads."""

from pathlib import Path

import pytest
import torch

from memcourse import Batch, CausalAttention, GatedMemory, MemoryTransformer, evaluate, fit, open_model
from memcourse.memory import stream
from memcourse.transformer import MixerBlock


def model(window: int | None = None, d_model: int = 32) -> MemoryTransformer:
    return MemoryTransformer(13, d_model, 2, lambda: CausalAttention(d_model, 2, window=window))


def repeated(step: int) -> Batch:
    """Eight random tokens, then the same eight: what follows is known to whoever remembers."""
    half = torch.randint(13, (16, 8), generator=torch.Generator().manual_seed(step))
    tokens = torch.cat([half, half], dim=1)
    targets = tokens[:, 1:].clone()
    targets[:, :8] = -100
    return Batch(tokens[:, :-1], targets)


@pytest.fixture(scope="module")
def trained() -> MemoryTransformer:
    torch.manual_seed(0)
    learner = model()
    fit(learner, repeated, steps=150, progress=False)
    return learner


def test_it_learns_to_repeat_and_a_short_window_cannot(trained: MemoryTransformer) -> None:
    blind = model(window=2)
    fit(blind, repeated, steps=150, progress=False)
    unseen = [repeated(10_000)]
    assert evaluate(trained, unseen)["accuracy"] > 0.95
    assert evaluate(blind, unseen)["accuracy"] < 0.4  # two layers of window 2 reach three tokens back


@pytest.mark.parametrize("window", [None, 5])
def test_generate_goes_on_exactly_where_the_whole_prompt_leads(window: int | None) -> None:
    language_model = model(window).double()
    prompt = torch.randint(13, (2, 11))
    longer = language_model.generate(prompt, 6)
    assert longer.shape == (2, 17) and torch.equal(longer[:, :11], prompt)
    for t in range(11, 17):  # each token is the best one after all tokens before it
        assert torch.equal(longer[:, t], language_model(longer[:, :t])[0][:, -1].argmax(-1))


def test_generate_repeats_what_it_was_trained_to_repeat(trained: MemoryTransformer) -> None:
    tokens = repeated(10_001).tokens
    assert (trained.generate(tokens[:, :9], 6)[:, 9:] == tokens[:, 9:]).float().mean() > 0.9


def test_generate_samples_at_a_temperature(trained: MemoryTransformer) -> None:
    prompt = torch.zeros(64, 1, dtype=torch.long)
    assert len(trained.generate(prompt, 1, temperature=1.0)[:, 1].unique()) > 3
    assert len(trained.generate(prompt, 1)[:, 1].unique()) == 1


def test_a_prompt_longer_than_a_chunk_drops_no_token() -> None:
    language_model = model(window=3)
    prompt = torch.randint(13, (1, 1500))
    expected = language_model(prompt)[0][:, -1].argmax(-1)
    assert torch.equal(language_model.generate(prompt, 1)[:, -1], expected)


def test_hidden_is_the_input_of_the_last_feed_forward_after_its_norm() -> None:
    language_model, tokens = model(), torch.randint(13, (2, 7))
    seen = []
    language_model.layers[-1].feed_forward.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    hidden = language_model.hidden(tokens)
    assert hidden.shape == (2, 7, 32) and torch.equal(hidden, seen[0])


def test_the_shift_lets_a_token_know_the_one_before_it() -> None:
    language_model = MemoryTransformer(13, 32, 1, lambda: CausalAttention(32, 2, window=1))
    tokens = torch.randint(13, (1, 7))
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 13
    moved = (language_model(tokens)[0] - language_model(changed)[0]).abs().amax(-1)[0]
    assert moved.nonzero()[:, 0].tolist() == [3, 4]


def test_save_and_load(tmp_path: Path) -> None:
    saved, fresh = model(window=5), model(window=5)
    path = tmp_path / "model.safetensors"
    saved.save(path)
    tokens = torch.randint(13, (2, 9))
    assert not torch.equal(saved(tokens)[0], fresh(tokens)[0])
    assert torch.equal(saved(tokens)[0], fresh.load(path)(tokens)[0])


def test_a_list_of_makers_makes_a_hybrid() -> None:
    hybrid = MemoryTransformer(13, 32, 2, [lambda: CausalAttention(32, 2, window=3), lambda: CausalAttention(32, 4)])
    assert [block.config["window"] for block in hybrid.blocks] == [3, None]


def test_a_block_stands_as_it_is() -> None:
    language_model = MemoryTransformer(13, 32, 2, lambda: MixerBlock(CausalAttention(32, 2)))
    assert all(isinstance(block.mixer, CausalAttention) for block in language_model.blocks)


def test_a_token_alone_and_a_stream_of_singles() -> None:
    language_model, tokens = model(window=4).double(), torch.randint(13, (2, 9))
    whole = language_model(tokens)[0]
    streamed = torch.cat([logits for logits, _ in stream(language_model, tokens, 1)], dim=1)
    torch.testing.assert_close(streamed, whole, atol=1e-12, rtol=0)


def test_a_saved_model_is_opened_without_its_source(tmp_path: Path) -> None:
    makers = [lambda: CausalAttention(6, 3, window=5), lambda: GatedMemory(6)]
    model = MemoryTransformer(11, 6, 2, makers)
    model.save(tmp_path / "model.safetensors")
    opened = open_model(tmp_path / "model.safetensors")
    tokens = torch.arange(7)[None]
    assert opened.config == model.config
    assert torch.equal(opened(tokens)[0], model(tokens)[0])
