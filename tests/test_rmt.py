"""The Recurrent Memory Transformer against its definition, row by row and head by head in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from memcourse import KNNLM, Datastore, RecurrentMemoryTransformer, open_model
from memcourse.memory import leaves, stream

Array = NDArray[np.float64]
erf = np.vectorize(math.erf)
V, D, H, M, L = 11, 8, 2, 3, 4


def model(n_layers: int = 2) -> RecurrentMemoryTransformer:
    made = RecurrentMemoryTransformer(V, D, n_layers, H, n_memory=M, segment_len=L).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + np.finfo(np.float64).eps) * weight


def rotated(x: Array, position: int) -> Array:
    """As complex numbers x_i + i x_{i + d/2}, each turned by its own angle."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def may_look(i: int, j: int, n_tokens: int) -> bool:
    """Row i at row j of [read rows; tokens; write rows]."""
    if i < M:
        return j < M
    if i < M + n_tokens:
        return j <= i
    return True


def through_the_layers(w: dict[str, Array], rows: Array, n_tokens: int) -> tuple[Array, Array]:
    d = D // H
    n_layers = max(int(name.split(".")[1]) for name in w if name.startswith("layers.")) + 1
    for layer in range(n_layers):
        at = f"layers.{layer}."
        E = rms_norm(rows, w[at + "norm"])
        q, k, v = (E @ w[f"{at}attention.{name}"].T for name in ("query", "key", "value"))
        read = np.zeros_like(rows)
        for i in range(len(rows)):
            seen = [j for j in range(len(rows)) if may_look(i, j, n_tokens)]
            for h in range(H):
                own = slice(h * d, (h + 1) * d)
                scores = np.array([rotated(q[i, own], i) @ rotated(k[j, own], j) / np.sqrt(d) for j in seen])
                weights = np.exp(scores - scores.max())
                read[i, own] = weights / weights.sum() @ v[seen, own]
        rows = rows + read @ w[at + "attention.output"].T
        hidden = rms_norm(rows, w[at + "feed_forward.norm"])
        inside = hidden @ w[at + "feed_forward.expand"].T
        rows = rows + (inside * (1 + erf(inside / np.sqrt(2))) / 2) @ w[at + "feed_forward.contract"].T
    return rows, hidden


def in_loops(language_model: RecurrentMemoryTransformer, tokens: list[int]) -> tuple[Array, Array, Array]:
    """Logits, hidden rows and H_mem after the last whole segment; an unfinished segment has no write rows."""
    w = {name.removesuffix(".weight"): p.detach().numpy() for name, p in language_model.named_parameters()}
    embedded = w["embedding"][tokens]
    before = np.concatenate([np.zeros((1, D)), embedded[:-1]])
    x = embedded + before @ w["shift"].T
    memory, logits, hiddens = w["initial_memory"], [], []
    for start in range(0, len(x), L):
        segment = x[start : start + L]
        n, whole = len(segment), len(segment) == L
        rows = np.concatenate([memory, segment, memory] if whole else [memory, segment])
        rows, hidden = through_the_layers(w, rows, n)
        top = rms_norm(rows, w["norm"])
        logits.append(top[M : M + n] @ w["embedding"].T)
        hiddens.append(hidden[M : M + n])
        memory = top[M + n :] if whole else memory
    return np.concatenate(logits), np.concatenate(hiddens), memory


@pytest.mark.parametrize("time", [1, 3, L, 2 * L, 3 * L + 2])
def test_definition(time: int) -> None:
    language_model, tokens = model(), torch.randint(V, (2, time))
    logits, state = language_model(tokens)
    hidden = language_model.hidden(tokens)
    for row in range(2):
        expected = in_loops(language_model, tokens[row].tolist())
        for found, wanted in zip((logits, hidden, state.memory), expected, strict=True):
            np.testing.assert_allclose(found[row].detach().numpy(), wanted, atol=1e-10)


def test_definition_in_a_stream_of_odd_pieces() -> None:
    language_model, tokens = model(), torch.randint(V, (1, 15))
    state, pieces = None, []
    for piece in tokens.split([1, 2, 6, 1, 0, 2, 3], dim=1):
        logits, state = language_model(piece, state)
        pieces.append(logits)
    expected, _, memory = in_loops(language_model, tokens[0].tolist())
    np.testing.assert_allclose(torch.cat(pieces, dim=1)[0].detach().numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(state.memory[0].detach().numpy(), memory, atol=1e-10)


def test_a_token_alone_works_on_cached_keys_and_values() -> None:
    language_model, state, rows = model(), None, []
    language_model.layers[0].norm.register_forward_hook(lambda _, __, out: rows.append(out.shape[1]))
    for n in (1, 2, 3, 0, 1):
        _, state = language_model(torch.zeros(2, 1, dtype=torch.long), state)
        assert [part.key.shape[2] for part in state.layers] == [M + n if n else 0] * 2
        assert language_model.tokens_to_segment_end(state) == (L - n if n else 0)
    assert rows == [M + 1, 1, 1, 1 + M, M + 1]  # read rows come with the first token, write rows with the last


def test_generate_goes_on_exactly_where_the_whole_prompt_leads() -> None:
    language_model, prompt = model(), torch.randint(V, (2, 2 * L + 1))
    longer = language_model.generate(prompt, 2 * L)
    assert torch.equal(longer[:, : 2 * L + 1], prompt)
    for t in range(2 * L + 1, 4 * L + 1):
        assert torch.equal(longer[:, t], language_model(longer[:, :t])[0][:, -1].argmax(-1))


def test_it_is_saved_loaded_and_opened_from_its_file(tmp_path: Path) -> None:
    saved, fresh, tokens = model().float(), model().float(), torch.randint(V, (2, 9))
    saved.save(tmp_path / "model.safetensors")
    assert not torch.equal(fresh(tokens)[0], saved(tokens)[0])
    assert torch.equal(fresh.load(tmp_path / "model.safetensors")(tokens)[0], saved(tokens)[0])
    opened = open_model(tmp_path / "model.safetensors")
    assert isinstance(opened, RecurrentMemoryTransformer) and opened.config == saved.config
    assert torch.equal(opened(tokens)[0], saved(tokens)[0])


def test_memory_stays_bounded_in_a_long_stream() -> None:
    language_model = model()
    for _, state in stream(language_model, torch.randint(V, (1, 200 * L)), 50 * L):  # noqa: B007
        pass
    largest = language_model.norm.weight.abs().max() * D**0.5  # of a row of norm(x)
    assert all(leaf.isfinite().all() for leaf in leaves(state).values())
    assert state.memory.abs().max() <= largest


def test_the_gradient_of_the_last_segment_reaches_the_first() -> None:
    """Through H_mem alone, since attention does not leave a segment."""
    language_model = model()
    tokens = torch.cat([torch.full((1, L), 10), torch.randint(8, (1, 2 * L))], dim=1)  # the first segment's own token
    logits, _ = language_model(tokens)
    gradient = torch.autograd.grad(logits[:, -1, :8].square().sum(), language_model.embedding.weight)[0]
    assert gradient[10].abs().max() > 1e-6 and gradient[9].abs().max() == 0


def test_a_knn_lm_stands_on_it() -> None:
    language_model = model().float()
    tokens = torch.randint(V, (1, 60))
    knn = KNNLM(language_model, Datastore(D), k=4, temperature=1.0, weight=0.9)
    knn.memorize(tokens)
    alone = language_model(tokens[:, :-1])[0].log_softmax(-1).gather(2, tokens[:, 1:, None]).mean()
    assert len(knn.datastore) == 59
    assert knn.score(tokens).mean() > alone + 1
