"""Hugging Face models with a datastore, against loops written here, on small random models of the real classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse import hf
from memcourse.datastore import Datastore
from memcourse.language_model import LanguageModel, frozen

transformers = pytest.importorskip("transformers", reason="the Hugging Face models need: pip install transformers")

VOCAB, WIDTH = 97, 16
SMALL = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
IDS = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SHARED = {**SMALL, **IDS, "num_key_value_heads": 1}

# name: (model class, configuration, the norm before the last feed-forward, the feed-forward)
FAMILIES: dict[str, tuple[str, Callable[[], Any], str, str]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(n_embd=WIDTH, n_layer=3, n_head=2, n_positions=64, **IDS),
        "transformer.h.2.ln_2",
        "transformer.h.2.mlp",
    ),
    "llama": (
        "LlamaForCausalLM",
        lambda: transformers.LlamaConfig(**SHARED),
        "model.layers.2.post_attention_layernorm",
        "model.layers.2.mlp",
    ),
    "mistral": (
        "MistralForCausalLM",
        lambda: transformers.MistralConfig(**SHARED, sliding_window=5),
        "model.layers.2.post_attention_layernorm",
        "model.layers.2.mlp",
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        lambda: transformers.Qwen2Config(**SHARED),
        "model.layers.2.post_attention_layernorm",
        "model.layers.2.mlp",
    ),
    "gpt_neox": (  # attention and feed-forward side by side
        "GPTNeoXForCausalLM",
        lambda: transformers.GPTNeoXConfig(**SMALL, **IDS),
        "gpt_neox.layers.2.post_attention_layernorm",
        "gpt_neox.layers.2.mlp",
    ),
    "opt": (  # a feed-forward that is no module of its own
        "OPTForCausalLM",
        lambda: transformers.OPTConfig(
            hidden_size=WIDTH, ffn_dim=24, num_hidden_layers=3, num_attention_heads=2, word_embed_proj_dim=WIDTH, **IDS
        ),
        "model.decoder.layers.2.final_layer_norm",
        "model.decoder.layers.2.fc1",
    ),
    "gemma2": (  # logits that are capped after the last layer
        "Gemma2ForCausalLM",
        lambda: transformers.Gemma2Config(**SHARED, head_dim=8, final_logit_softcapping=0.5),
        "model.layers.2.pre_feedforward_layernorm",
        "model.layers.2.mlp",
    ),
}
MAIN = ("gpt2", "llama")


def make(family: str, device: str = "cpu", **changes: Any) -> Any:
    name, config, _, _ = FAMILIES[family]
    settings = config()
    for key, value in changes.items():
        setattr(settings, key, value)
    torch.manual_seed(5)
    model = getattr(transformers, name)(settings)
    with torch.no_grad():
        for parameter in model.parameters():  # random models say nearly the same after every context
            parameter.mul_(6.0) if parameter.ndim == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(device).eval()


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def keys_and_logits(model: Any, family: str, text: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each row alone, whole, no cache: what the norm before the last feed-forward gives, and the logits."""
    heard: list[Tensor] = []
    hook = model.get_submodule(FAMILIES[family][2]).register_forward_hook(lambda *call: heard.append(call[2]))
    logits = []
    with frozen(model):
        for row in text:
            logits.append(model(row[None].to(model.device), use_cache=False).logits[0].double().cpu().numpy())
    hook.remove()
    keys = [part.reshape(-1, WIDTH).double().cpu().numpy() for part in heard]
    return np.stack(keys), np.stack(logits)


class Plain:
    """kNN-LM by loops in float64 over the text it has memorized."""

    def __init__(self, model: Any, family: str, memory: Tensor, k: int, temperature: float, weight: float) -> None:
        self.model, self.family = model, family
        self.k, self.temperature, self.weight = k, temperature, weight
        keys, _ = keys_and_logits(model, family, memory)
        self.keys = [key for row in keys for key in row[:-1]]
        self.values = [int(token) for row in memory for token in row[1:]]

    def next_probs(self, key: np.ndarray, logits: np.ndarray) -> np.ndarray:
        p_model = np.exp(logits - logits.max())
        p_model /= p_model.sum()
        distances = [((key - other) ** 2).sum() for other in self.keys]
        nearest = sorted(range(len(distances)), key=lambda i: distances[i])[: self.k]
        p_knn = np.zeros(VOCAB)
        for i in nearest:
            p_knn[self.values[i]] += np.exp(-(distances[i] - distances[nearest[0]]) / self.temperature)
        return self.weight * p_knn / p_knn.sum() + (1 - self.weight) * p_model

    def score(self, text: Tensor) -> np.ndarray:
        keys, logits = keys_and_logits(self.model, self.family, text)
        return np.array(
            [
                [np.log(self.next_probs(keys[b, t], logits[b, t])[text[b, t + 1]]) for t in range(text.shape[1] - 1)]
                for b in range(len(text))
            ]
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As a logits processor: reads every row from its beginning again."""
        keys, logits = keys_and_logits(self.model, self.family, input_ids)
        rows = [self.next_probs(keys[b, -1], logits[b, -1]) for b in range(len(input_ids))]
        return torch.tensor(np.log(np.stack(rows))).to(scores)


SETTINGS = {"k": 5, "temperature": 7.0, "weight": 0.4}


def pair(family: str, device: str = "cpu") -> tuple[Any, hf.HuggingFaceKNNLM, Plain]:
    model, memory = make(family, device), tokens(3, 14)
    lm = hf.knn_lm(model, Datastore(WIDTH, device=device), **SETTINGS)
    lm.memorize(memory.to(device))
    return model, lm, Plain(model, family, memory, **SETTINGS)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_what_the_last_feed_forward_reads_after_its_norm(family: str, device: str) -> None:
    model = make(family, device)
    reader = hf.HuggingFaceReader(model)
    assert isinstance(reader, LanguageModel)
    assert (reader.feed_forward, reader.dim, reader.vocab_size) == (FAMILIES[family][3], WIDTH, VOCAB)
    text = tokens(2, 11)
    with torch.no_grad():
        reading = reader.read(text.to(device))
    keys, logits = keys_and_logits(model, family, text)
    np.testing.assert_allclose(reading.hidden.cpu(), keys, rtol=2e-4, atol=2e-4)
    with torch.no_grad():
        np.testing.assert_allclose(reader.logits(reading.features).cpu(), logits, rtol=2e-4, atol=2e-4)


def test_a_gpt2_key_by_hand() -> None:
    model, text = make("gpt2"), tokens(1, 9)
    block = model.transformer.h[2]
    with torch.no_grad():
        x = model(text, output_hidden_states=True).hidden_states[2]  # what the last of three blocks reads
        mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
        x = x + block.attn(block.ln_1(x), attention_mask=mask)[0]
        expected = block.ln_2(x)
        torch.testing.assert_close(hf.HuggingFaceReader(model).read(text).hidden, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_loops(family: str, device: str) -> None:
    _, lm, plain = pair(family, device)
    text = tokens(2, 12, seed=2)
    text[:, 4:9] = tokens(3, 14)[:2, 3:8]  # some of what is in the datastore
    found = lm.score(text.to(device)).cpu()
    np.testing.assert_allclose(found, plain.score(text), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}, {"do_sample": True, "num_beams": 2}],
    ids=["greedy", "beams", "sampling", "sampled beams"],
)
def test_generation_is_that_of_the_model_with_the_mixture_computed_anew_at_every_step(
    family: str, weight: float, options: dict[str, Any]
) -> None:
    model, lm, plain = pair(family)
    lm.weight = weight
    prompt = tokens(2, 4, seed=3)
    torch.manual_seed(7)
    found = lm.generate(prompt, 8, **options, return_dict_in_generate=True, output_scores=True)
    torch.manual_seed(7)
    expected = model.generate(
        prompt,
        max_new_tokens=8,
        logits_processor=[plain] if weight else [],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        if weight:  # sums of 1 in both, unless a warper has taken some away
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
        else:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", MAIN)
def test_the_mixture_changes_what_is_generated(family: str) -> None:
    model, lm, _ = pair(family)
    lm.weight = 0.9
    prompt = tokens(2, 4, seed=3)
    assert not torch.equal(lm.generate(prompt, 8), model.generate(prompt, max_new_tokens=8))


def test_a_weight_for_each_context() -> None:
    _, lm, _ = pair("gpt2")
    prompt = tokens(3, 4, seed=3)
    constant = lm.generate(prompt, 6)
    lm.weight = lambda found: torch.full(found.distances.shape[:-1], SETTINGS["weight"])
    assert torch.equal(lm.generate(prompt, 6), constant)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_weight_1_it_recites_the_datastore(family: str, device: str) -> None:
    model, text = make(family, device), tokens(1, 24, seed=4).to(device)
    lm = hf.knn_lm(model, Datastore(WIDTH, device=device), k=1, weight=1.0)
    lm.memorize(text)
    assert torch.equal(lm.generate(text[:, :5], 19), text)
    assert torch.equal(lm.generate(text[:, :5].int(), 19), text.int())
    assert torch.equal(lm.generate(text[:, :5], 0), text[:, :5])
    lm.temperature = 1e-3
    assert torch.equal(lm.generate(text[:, :5], 19, temperature=1.0), text)  # a sample of one candidate
    assert torch.equal(lm.generate(text[:, :5], 19, num_beams=2), text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_padded_on_the_left_goes_on_as_it_does_alone(family: str) -> None:
    _, lm, _ = pair(family)
    long, short = tokens(1, 7, seed=5), tokens(1, 3, seed=6)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    found = lm.generate(batch, 6, attention_mask=mask)
    assert torch.equal(found[:1], lm.generate(long, 6))
    assert torch.equal(found[1:, 4:], lm.generate(short, 6))


def test_an_end_token_ends_a_row_and_a_forbidden_token_stays_forbidden() -> None:
    model, text = make("gpt2"), tokens(1, 24, seed=4)
    lm = hf.knn_lm(model, Datastore(WIDTH), k=1, weight=1.0)
    lm.memorize(text)
    end = int(text[0, 9])
    assert torch.equal(lm.generate(text[:, :5], 19, eos_token_id=end, pad_token_id=0), text[:, :10])
    lm.weight = 0.9
    said = lm.generate(text[:, :5], 19, suppress_tokens=[end])[0, 5:]
    assert end not in said.tolist()
    assert torch.equal(said[:4], text[0, 5:9])


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_a_text_longer_than_the_models_positions(family: str) -> None:
    """Windows of 10 positions; after the first, each begins with the newest 5 tokens of the one before."""
    model, text = make(family, max_position_embeddings=10), tokens(2, 33)
    reader = hf.HuggingFaceReader(model)
    expected = []
    for start in range(0, 30, 5):
        keys, _ = keys_and_logits(model, family, text[:, start : start + 10])
        expected.append(keys if start == 0 else keys[:, 5:])
    with torch.no_grad():
        whole = reader.read(text)
        np.testing.assert_allclose(whole.hidden, np.concatenate(expected, axis=1)[:, :33], rtol=2e-4, atol=2e-4)
        for sizes in ([1] * 33, [10, 23], [7, 3, 16, 7]):
            parts, state = [], None
            for part in text.split(sizes, dim=1):
                reading = reader.read(part, state)
                parts.append(reading)
                state = reading.state
            for name in ("hidden", "features"):
                joined = torch.cat([getattr(part, name) for part in parts], dim=1)
                torch.testing.assert_close(joined, getattr(whole, name), rtol=2e-4, atol=2e-4)


def test_dropout_is_off_while_it_generates() -> None:
    model, text = make("gpt2"), tokens(1, 24, seed=4)
    lm = hf.knn_lm(model, Datastore(WIDTH), k=1, weight=1.0)
    lm.memorize(text)
    model.train()
    assert torch.equal(lm.generate(text[:, :5], 19), text)


def hooks(model: Any) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())


@pytest.mark.parametrize("family", MAIN)
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = make(family)
    model.train()
    model.get_submodule(FAMILIES[family][3]).eval()  # a part that its owner has set apart
    modes = [part.training for part in model.modules()]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = hooks(model)
    lm = hf.knn_lm(model, Datastore(WIDTH), k=3)
    text = tokens(2, 9)
    lm.memorize(text), lm.score(text), lm.generate(text, 3)
    with pytest.raises(ValueError, match="logits_processor"):
        lm.generate(text, 3, logits_processor=[complain])
    assert hooks(model) == before
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def complain(input_ids: Tensor, scores: Tensor) -> Tensor:
    raise ValueError("of a logits_processor of the caller's own")


@pytest.fixture
def saved(tmp_path: Any) -> Iterator[tuple[Any, str]]:
    model = make("llama")
    model.save_pretrained(tmp_path / "llama")
    yield model, str(tmp_path / "llama")


def test_the_fingerprint_is_of_weights_and_configuration(saved: tuple[Any, str]) -> None:
    model, folder = saved
    ours = hf.HuggingFaceReader(model).fingerprint()
    assert ours.startswith("LlamaForCausalLM ")
    again = hf.open_model(folder)
    assert not again.training
    assert hf.HuggingFaceReader(again).fingerprint() == ours
    assert hf.HuggingFaceReader(model, feed_forward="model.layers.1.mlp").fingerprint() != ours
    with torch.no_grad():
        again.lm_head.weight[0, 0] += 1
    assert hf.HuggingFaceReader(again).fingerprint() != ours
    other_base = make("llama", rope_theta=123.0)
    assert hf.HuggingFaceReader(other_base).fingerprint() != ours  # the same weights, read otherwise


def test_a_feed_forward_named_by_hand() -> None:
    model, text = make("gpt2"), tokens(1, 6)
    named = hf.HuggingFaceReader(model, feed_forward="transformer.h.0.mlp")
    heard: list[Tensor] = []
    model.transformer.h[0].ln_2.register_forward_hook(lambda *call: heard.append(call[2]))
    with torch.no_grad():
        hidden = named.read(text).hidden
    assert torch.equal(hidden, heard[0])


def test_half_precision() -> None:
    model, text = make("llama").bfloat16(), tokens(1, 24, seed=4)
    lm = hf.knn_lm(model, Datastore(WIDTH), k=1, weight=1.0)
    lm.memorize(text)
    assert torch.equal(lm.generate(text[:, :5], 19), text)
    assert torch.isfinite(lm.score(text)).all()


def test_importing_hf_imports_no_transformers() -> None:
    import subprocess
    import sys

    code = "import sys, memcourse.hf; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
