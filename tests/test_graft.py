"""A memory beside the attention of small random models of the real classes; whole forwards are the oracle."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memcourse import (
    Batch,
    CausalAttention,
    GatedMemory,
    InfiniAttention,
    KeyValueMemory,
    MemorizingAttention,
    fit,
    hf,
)

transformers = pytest.importorskip("transformers", reason="the Hugging Face models need: pip install transformers")

VOCAB, WIDTH, PROMPT = 43, 12, 7
IDS = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
FAMILIES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SMALL | {"num_key_value_heads": 1}, "model.layers.{}.self_attn"),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": WIDTH, "n_layer": 3, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "transformer.h.{}.attn",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL, "gpt_neox.layers.{}.attention"),
    "mistral": (  # a cache that slides
        "MistralForCausalLM",
        "MistralConfig",
        SMALL | {"num_key_value_heads": 1, "sliding_window": 5},
        "model.layers.{}.self_attn",
    ),
}
MEMORIES: dict[str, Any] = {
    "infini": lambda: InfiniAttention(WIDTH, 2, segment_len=4),
    "memorizing": lambda: MemorizingAttention(WIDTH, 2, segment_len=4, capacity=8, k=2),
    "gated": lambda: GatedMemory(WIDTH),
    "key-value": lambda: KeyValueMemory(WIDTH, 5),
    "window": lambda: CausalAttention(WIDTH, 2, window=3),
}


def make(family: str = "llama") -> Any:
    name, config, settings, _ = FAMILIES[family]
    torch.manual_seed(5)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings, **IDS))
    with torch.no_grad():
        for parameter in model.parameters():  # random models say nearly the same after every context
            parameter.mul_(6.0) if parameter.ndim == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def grafted(family: str = "llama", memory: str = "infini", layers: Any = (0, 2), alpha: float = 0.7) -> tuple[Any, Any]:
    """A model whose grafts speak up."""
    model = make(family)
    torch.manual_seed(6)
    grafts = hf.graft(model, MEMORIES[memory], layers)
    with torch.no_grad():
        for part in grafts:
            part.alpha.fill_(alpha)
    return model, grafts


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(model: Any, text: Tensor) -> Tensor:
    return model(text, use_cache=False).logits


def by_whole_forwards(model: Any, prompt: Tensor, n: int) -> Tensor:
    for _ in range(n):
        prompt = torch.cat([prompt, whole(model, prompt)[:, -1:].argmax(-1)], dim=1)
    return prompt


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_unchanged_with_a_gradient_and_streams(family: str, memory: str) -> None:
    model, text = make(family), tokens(2, 11)
    expected = whole(model, text)
    grafts = hf.graft(model, MEMORIES[memory], [0, -1])
    assert [part.name for part in grafts] == [FAMILIES[family][3].format(layer) for layer in (0, 2)]
    assert torch.equal(whole(model, text), expected)  # to the last bit
    model(text, labels=text).loss.backward()
    assert all(part.alpha.grad.abs() > 1e-7 for part in grafts)
    with torch.no_grad():
        for part in grafts:
            part.alpha.fill_(0.7)
    assert (whole(model, text) - expected).abs().max() > 1e-3
    found = model.generate(text[:, :PROMPT], max_new_tokens=8, do_sample=False)
    assert torch.equal(found, by_whole_forwards(model, text[:, :PROMPT], 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_adds_what_its_equation_says(family: str) -> None:
    model, grafts = grafted(family, layers=[1])
    attention, text, calls = model.get_submodule(FAMILIES[family][3].format(1)), tokens(2, 11), []
    after = attention.register_forward_hook(
        lambda _, args, named, out: calls.append((args, named, out)), with_kwargs=True
    )
    whole(model, text)
    after.remove()
    args, named, out = calls[0]
    x = (*args, *named.values())[0]
    grafts.remove()
    whole_attention = []
    hook = attention.register_forward_hook(lambda _, __, out: whole_attention.append(out[0]))
    with torch.no_grad():
        whole(model, text)
        hook.remove()
        # layers before this one have no graft, so its attention reads the same
        expected = whole_attention[0] + torch.tanh(torch.tensor(0.7)) * grafts[0].memory(x)[0]
    torch.testing.assert_close(out[0], expected)


def test_a_cache_fed_in_chunks_gives_the_whole_forward() -> None:
    model, _ = grafted()
    text, cache, logits = tokens(2, 13), transformers.DynamicCache(), []
    with torch.no_grad():
        for piece in text.split([1, 4, 6, 2], dim=1):
            logits.append(model(piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole(model, text), atol=1e-4, rtol=1e-4)


def test_two_texts_never_meet_and_a_forward_without_cache_starts_afresh() -> None:
    model, _ = grafted()
    first, second = tokens(1, 9), tokens(1, 9, seed=2)
    alone = whole(model, second)
    whole(model, first)
    assert torch.equal(whole(model, second), alone)
    caches = transformers.DynamicCache(), transformers.DynamicCache()
    found = []
    with torch.no_grad():
        for t in range(9):  # in turns
            model(first[:, t : t + 1], past_key_values=caches[0])
            found.append(model(second[:, t : t + 1], past_key_values=caches[1]).logits)
    torch.testing.assert_close(torch.cat(found, dim=1), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copied_cache_goes_its_own_way(copied: Any) -> None:
    model, _ = grafted()
    prompt, cache = tokens(1, 6), transformers.DynamicCache()
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        for seed in (3, 4):
            more = tokens(1, 5, seed)
            found = model(more, past_key_values=copied(cache)).logits
            torch.testing.assert_close(found, whole(model, torch.cat([prompt, more], 1))[:, 6:], atol=1e-4, rtol=1e-4)


def test_what_a_cache_holds_goes_with_it() -> None:
    model, _ = grafted()
    cache = transformers.DynamicCache()
    model(tokens(1, 6), past_key_values=cache)
    state = weakref.ref(cache.grafted_memories["model.layers.0.self_attn"].state.memory)
    gone = weakref.ref(cache)
    assert isinstance(cache, transformers.DynamicCache) and state() is not None
    gc.disable()  # nothing waits for the collector of cycles
    try:
        del cache
        assert gone() is None and state() is None
    finally:
        gc.enable()


def test_a_cache_that_is_reset_starts_afresh() -> None:
    model, _ = grafted()
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(tokens(1, 6), past_key_values=cache)
        cache.reset()
        assert cache.grafted_memories == {}
        other = tokens(1, 5, seed=2)
        found = model(other, past_key_values=cache).logits
    torch.testing.assert_close(found, whole(model, other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_beams_keep_their_memories(family: str) -> None:
    model, _ = grafted(family)
    prompt, width, n = tokens(1, 6), 3, 6
    found = model.generate(prompt, max_new_tokens=n, num_beams=width, do_sample=False, length_penalty=0.0)
    beams = [(0.0, prompt)]
    for _ in range(n):  # beam search as its definition says, each beam read whole
        longer = []
        for score, text in beams:
            log_probs = whole(model, text)[0, -1].log_softmax(-1)
            for value, token in zip(*log_probs.topk(width), strict=True):
                longer.append((score + value.item(), torch.cat([text, token.view(1, 1)], dim=1)))
        beams = sorted(longer, key=lambda beam: -beam[0])[:width]
    assert torch.equal(found, beams[0][1])


def test_rows_of_a_cache_can_be_chosen_and_repeated() -> None:
    model, _ = grafted()
    prompt, more, cache = tokens(3, 6), tokens(2, 3, seed=2), transformers.DynamicCache()
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        rows, more = prompt[[2, 2, 0, 0]], more.repeat_interleave(2, dim=0)
        found = model(more, past_key_values=cache).logits
    torch.testing.assert_close(found, whole(model, torch.cat([rows, more], 1))[:, 6:], atol=1e-4, rtol=1e-4)


def test_padding_on_the_right_changes_nothing_before_it() -> None:
    model, _ = grafted()
    text = tokens(2, 11)
    mask = torch.ones_like(text)
    mask[1, 8:] = 0
    with torch.no_grad():
        found = model(text, attention_mask=mask).logits
    torch.testing.assert_close(found[1:, :8], whole(model, text[1:, :8]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    found = []
    for checkpointing in (False, True):
        model, grafts = grafted(family)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable() if hasattr(model, "activation_checkpointing_enable") else (
                model.gradient_checkpointing_enable()
            )
        model(tokens(2, 11), labels=tokens(2, 11), use_cache=False).loss.backward()
        found.append([parameter.grad for parameter in grafts.parameters()])
    assert all((grad != 0).any() for grad in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_grafts_alone_are_trained(family: str) -> None:
    text = tokens(4, 16)
    drop: dict[str, float] = {}
    for trained in ("alpha", ""):  # what alpha makes of memories that stay random, then everything that is new
        model = make(family)
        model.requires_grad_(False)
        grafts = hf.graft(model, MEMORIES["infini"], [0, 1])
        for name, parameter in grafts.named_parameters():
            parameter.requires_grad_(name.endswith(trained))
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        losses = fit(model, lambda _: Batch(text[:, :-1], text[:, 1:]), steps=40, learning_rate=3e-2, progress=False)
        drop[trained] = losses["loss"][0] - losses["loss"][-1]
        new = {f"{part.name}.graft.{name}" for part in grafts for name in part.state_dict() if name.endswith(trained)}
        assert {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])} == new
    assert drop[""] > 0.4 > 0.2 > drop["alpha"] > 0  # nats: 1.0 against 0.14 in Llama, 0.7 against 0.03 in GPT-2


def test_alpha_has_a_group_of_its_own() -> None:
    from memcourse.training import parameter_groups

    model, grafts = grafted()
    groups = [group for group in parameter_groups(model, 0.1) if any(p is grafts[0].alpha for p in group["params"])]
    assert [(group["rate"], group["weight_decay"]) for group in groups] == [(10.0, 0.0)]


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, grafts = grafted()
    expected = whole(model, tokens(2, 11))
    model.save_pretrained(tmp_path)
    again = hf.open_model(str(tmp_path))  # without the graft: its weights wait in the file
    hf.graft(again, MEMORIES["infini"], [0, 2])
    again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert torch.equal(whole(again, tokens(2, 11)), expected)
    other = make()
    hf.graft(other, MEMORIES["infini"], [0, 2]).load_state_dict(grafts.state_dict())  # the new weights alone
    assert torch.equal(whole(other, tokens(2, 11)), expected)


def test_taken_off_the_model_is_what_it_was() -> None:
    model = make()
    names, expected = list(model.state_dict()), whole(model, tokens(2, 11))
    _, grafts = model, hf.graft(model, MEMORIES["infini"], [0, 2])
    with torch.no_grad():
        grafts[0].alpha.fill_(1.0)
    assert list(model.state_dict()) != names
    grafts.remove()
    assert list(model.state_dict()) == names
    assert torch.equal(whole(model, tokens(2, 11)), expected)
    hf.graft(model, MEMORIES["gated"], [0])  # and has room for another


def test_a_copied_model_has_its_own_graft() -> None:
    model, grafts = grafted()
    expected, other = whole(model, tokens(2, 11)), copy.deepcopy(model)
    with torch.no_grad():
        grafts[0].alpha.fill_(-2.0)
    assert torch.equal(whole(other, tokens(2, 11)), expected)


def test_a_layer_by_name_and_a_list_of_memories() -> None:
    by_name, _ = grafted(layers=["model.layers.1.self_attn"])
    by_number, _ = grafted(layers=[1])
    assert torch.equal(whole(by_name, tokens(2, 11)), whole(by_number, tokens(2, 11)))
    model = make()
    parts = hf.graft(model, [GatedMemory(WIDTH), MEMORIES["window"]], [0, 2])
    assert [type(part.memory) for part in parts] == [GatedMemory, CausalAttention]
    hf.graft(model, GatedMemory(WIDTH), [1])


def test_a_model_in_bfloat16() -> None:
    model = make().to(torch.bfloat16)
    expected = whole(model, tokens(2, 11))
    grafts = hf.graft(model, MEMORIES["infini"], [0, 2])
    assert torch.equal(whole(model, tokens(2, 11)), expected)
    with torch.no_grad():
        grafts[0].alpha.fill_(0.7)
    found = whole(model, tokens(2, 11))
    assert found.dtype == torch.bfloat16 and found.isfinite().all()
    assert model.generate(tokens(2, 5), max_new_tokens=6, do_sample=False).shape == (2, 11)
