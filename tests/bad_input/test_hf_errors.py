"""What a model of Hugging Face is refused for: a ValueError that says what would do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from memcourse import CausalAttention, MemoryTransformer, hf
from memcourse.datastore import Datastore

transformers = pytest.importorskip("transformers", reason="the Hugging Face models need: pip install transformers")

IDS = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
TOKENS = torch.arange(12).reshape(2, 6)


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, **IDS))


def refused(*words: str) -> Any:
    return pytest.raises(ValueError, match="(?s)" + "".join(f"(?=.*{word})" for word in words))


def test_what_is_no_causal_language_model() -> None:
    t5 = transformers.T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=2, num_heads=2, vocab_size=50)
    for model in (
        nn.Linear(2, 2),
        "gpt2",
        MemoryTransformer(5, 8, 1, lambda: CausalAttention(8, 2)),
        transformers.T5ForConditionalGeneration(t5),
        gpt2().transformer,  # without its head
    ):
        with refused("model must be a causal language model of transformers", type(model).__name__):
            hf.knn_lm(model, Datastore(8))


def test_a_feed_forward_that_cannot_be_found() -> None:
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=8, num_hidden_layers=2, state_size=4, **IDS)
    )
    with refused("no feed-forward", "MambaForCausalLM", 'feed_forward="transformer.h.11.mlp"'):
        hf.knn_lm(mamba, Datastore(8))


def test_several_feed_forwards_that_could_be_meant() -> None:
    model = gpt2()
    model.second = nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(8, 8)}) for _ in range(2))
    with refused("several", "transformer.h.1.mlp", "second.1.mlp", "feed_forward="):
        hf.knn_lm(model, Datastore(8))
    assert hf.knn_lm(model, Datastore(8), feed_forward="transformer.h.1.mlp").score(TOKENS).shape == (2, 5)
    with refused("feed_forward", "second.1.mlp", "reads each token once"):  # it is never called
        hf.knn_lm(model, Datastore(8), feed_forward="second.1.mlp")


def test_a_module_that_is_not_there() -> None:
    with refused("feed_forward must be the name of one of the model's modules", "'transformer.h.9.mlp'", "lm_head"):
        hf.knn_lm(gpt2(), Datastore(8), feed_forward="transformer.h.9.mlp")


def test_a_store_of_another_width_or_model() -> None:
    with refused("datastore.dim", "8", "12"):
        hf.knn_lm(gpt2(), Datastore(12))
    store = Datastore(8)
    hf.knn_lm(gpt2(), store).memorize(TOKENS)
    with refused("made_by", "GPT2LMHeadModel"):
        hf.knn_lm(gpt2(), store)  # other random weights


def test_tokens_outside_the_vocabulary() -> None:
    lm = hf.knn_lm(gpt2(), Datastore(8))
    for call in (lm.memorize, lm.score, lambda tokens: lm.generate(tokens, 2)):
        with refused("0 to 50|from 0 to 49"):
            call(torch.tensor([[0, 50]]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": -1}, ["n must be", "-1"]),
        ({"n": 2, "temperature": 0.0}, ["temperature", "0.0"]),
        ({"n": 2, "guidance_scale": 2.0}, ["guidance_scale", "left out with a datastore", "2.0"]),
        ({"n": 2, "prompt_lookup_num_tokens": 3}, ["prompt_lookup_num_tokens", "3"]),
        ({"n": 2, "assistant_model": "another"}, ["assistant_model", "another"]),
    ],
)
def test_what_generate_refuses(arguments: dict[str, Any], words: list[str]) -> None:
    lm = hf.knn_lm(gpt2(), Datastore(8))
    lm.memorize(TOKENS)
    with refused(*words):
        lm.generate(TOKENS, **arguments)


def test_a_folder_that_holds_no_model(tmp_path: Any) -> None:
    with refused("path must be a folder written by save_pretrained", str(tmp_path)):
        hf.open_model(str(tmp_path))
