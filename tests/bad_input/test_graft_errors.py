"""What a graft is refused for: a ValueError that says what would do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from memcourse import CausalAttention, FeedbackBlock, GatedMemory, MemoryTransformer, hf

transformers = pytest.importorskip("transformers", reason="the Hugging Face models need: pip install transformers")

IDS = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
TOKENS = torch.arange(12).reshape(2, 6)


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=64, **IDS))


def llama() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **IDS)).eval()


def gated() -> GatedMemory:
    return GatedMemory(8)


def refused(*words: str) -> Any:
    return pytest.raises(ValueError, match="(?s)" + "".join(f"(?=.*{word})" for word in words))


def test_what_is_no_causal_language_model() -> None:
    for model in (
        nn.Linear(2, 2),
        "gpt2",
        MemoryTransformer(5, 8, 1, lambda: CausalAttention(8, 2)),
        gpt2().transformer,
    ):
        with refused("model must be a causal language model of transformers", type(model).__name__):
            hf.graft(model, gated, [0])


def test_layers_that_are_not_there() -> None:
    with refused("layers must be numbers of the model's 2 layers, from 0 to 1, got 2"):
        hf.graft(gpt2(), gated, [2])
    with refused("layers must be numbers", "got -3"):
        hf.graft(gpt2(), gated, [-3])
    with refused("layers must be the name of one of the model's modules", "'transformer.h.9.attn'"):
        hf.graft(gpt2(), gated, ["transformer.h.9.attn"])
    for layers in ([], [0, 0], [1, -1], [0, "transformer.h.0.attn"]):
        with refused("layers must be at least one layer, each of them once"):
            hf.graft(gpt2(), gated, layers)


def test_an_attention_that_cannot_be_found() -> None:
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=8, num_hidden_layers=2, state_size=4, **IDS)
    )
    with refused("no attention was found in layer 1 of MambaForCausalLM", r'layers=\["transformer.h.3.attn"\]'):
        hf.graft(mamba, gated, [1])
    model = gpt2()
    model.second = nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(8, 8)}) for _ in range(2))
    with refused("several", "transformer.h.1.attn", "second.1.attn"):
        hf.graft(model, gated, [1])


def test_a_module_whose_output_is_of_another_width() -> None:
    model = gpt2()
    hf.graft(model, gated, ["transformer.h.0.mlp.c_fc"])
    with refused("layers must be modules with outputs as wide as their inputs", "transformer.h.0.mlp.c_fc"):
        model(TOKENS)


def test_memories_that_do_not_fit() -> None:
    for memory, words in (
        (lambda: GatedMemory(6), ["d_model", "8", "got 6"]),
        (lambda: FeedbackBlock(8, 2, block_len=4, n_feedback=2), ["memory must be a mixer", "FeedbackBlock"]),
        (lambda: nn.Linear(8, 8), ["memory must be a mixer", "Linear"]),
        ([gated], ["memory must be", "2 layers", "1 memories"]),
        (gated(), ["memory must be", "2 layers", "1 memories"]),
        ([gated()] * 2, ["memory must be a mixer for each layer", "one mixer twice"]),
    ):
        with refused(*words):
            hf.graft(gpt2(), memory, [0, 1])


def test_a_second_graft_and_a_failed_one_leaves_nothing() -> None:
    model = gpt2()
    grafts = hf.graft(model, gated, [0])
    with refused("layers must be without a graft", "remove()", "transformer.h.0.attn"):
        hf.graft(model, gated, [1, 0])
    hf.graft(model, gated, [1])
    grafts.remove()
    hf.graft(model, gated, [0])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_padding_on_the_left(make: Any) -> None:
    model = make()
    hf.graft(model, gated, [0])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    for call in (
        lambda: model(TOKENS, attention_mask=mask),
        lambda: model.generate(TOKENS, attention_mask=mask, max_new_tokens=2),
    ):
        with refused("attention_mask must be without padding on the left"):
            call()


def test_going_on_after_padding_on_the_right() -> None:
    model, cache = llama(), transformers.DynamicCache()
    hf.graft(model, gated, [0])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    model(TOKENS, attention_mask=mask, past_key_values=cache)
    with refused("past_key_values must be as the last forward left it", "padding on the right"):
        model(TOKENS[:, :1], past_key_values=cache)


def test_a_mask_of_four_dimensions() -> None:
    model = llama()
    hf.graft(model, gated, [0])
    with refused("attention_mask must be", r"\(2, 1, 6, 6\)"):
        model(TOKENS, attention_mask=torch.ones(2, 1, 6, 6, dtype=torch.bool).tril())


def test_a_cache_that_the_memory_has_not_read() -> None:
    model, cache = llama(), transformers.DynamicCache()
    model(TOKENS, past_key_values=cache)
    hf.graft(model, gated, [0])
    with refused("past_key_values must be begun with the graft, got a cache of 6 tokens"):
        model(TOKENS, past_key_values=cache)


def test_a_cache_that_was_cut() -> None:
    model, cache = llama(), transformers.DynamicCache()
    hf.graft(model, gated, [0])
    model(TOKENS, past_key_values=cache)
    for layer in cache.layers:  # as speculative decoding does
        layer.keys, layer.values = layer.keys[:, :, :4], layer.values[:, :, :4]
    with refused("past_key_values must be as the last forward left it", "4 tokens of 6", "takes nothing back"):
        model(TOKENS, past_key_values=cache)


def test_a_state_of_another_batch_size() -> None:
    model, cache = llama(), transformers.DynamicCache()
    hf.graft(model, gated, [0])
    model(TOKENS, past_key_values=cache)
    for layer in cache.layers:  # rows chosen behind the memory's back
        layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    with refused("state.memory batch size must be that of x, 1, got 2"):
        model(TOKENS[:1], past_key_values=cache)
