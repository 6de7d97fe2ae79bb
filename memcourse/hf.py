"""A datastore for any causal language model of Hugging Face's transformers; `graft` (memcourse/graft.py) a memory.

    lm = hf.knn_lm(model, Datastore(model.config.hidden_size))     # GPT-2, Llama, Mistral, Qwen2, GPT-NeoX, OPT, ...
    lm.memorize(tokens)
    lm.generate(prompt, 20, attention_mask=mask, num_beams=4)      # by the model's own generate()

Nothing is patched and the model stays as it is: what its last feed-forward reads, which is the key of kNN-LM
(Khandelwal et al., 2020), is overheard by a forward hook that lives only as long as each of our calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memcourse.datastore import Neighbors
from memcourse.graft import graft as graft
from memcourse.knn_lm import KNNLM
from memcourse.language_model import Reading, fingerprint, frozen
from memcourse.memory import require
from memcourse.optional import needs

FEED_FORWARDS = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "fc1")  # as the families call it
NOT_WEIGHTS = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")  # of a configuration
# Ways to generate in which scores are not those of the newest token of each row, or the model is called in between.
REFUSED = ("assistant_model", "prompt_lookup_num_tokens", "guidance_scale", "custom_generate")


def knn_lm(
    model: Any,
    datastore: Any,
    *,
    k: int = 64,
    temperature: float = 1.0,
    weight: float | Callable[[Neighbors], Tensor] = 0.25,
    feed_forward: str | None = None,
) -> "HuggingFaceKNNLM":
    """A `KNNLM` over a causal language model of transformers; `datastore` has the width of its hidden states.

    feed_forward: the module whose input is the key, by its name in the model; None: that of the last decoder block.
    Raises ValueError for a model that is none of these, a feed-forward that cannot be found, and as `KNNLM` does.
    """
    reader = HuggingFaceReader(model, feed_forward=feed_forward)
    return HuggingFaceKNNLM(reader, datastore, k=k, temperature=temperature, weight=weight)


class Window(NamedTuple):
    """Where a text stands: the model's key-value cache, and the tokens in it."""

    cache: Any
    tokens: Int[Tensor, "batch seen"]


class HuggingFaceReader:
    """A causal language model of transformers as a `memcourse.language_model.LanguageModel`.

    A text longer than the model's positions is read in windows: when one is full, the newer half of it is read again
    as the start of the next, so that every token but the first ones has at least half a window before it.
    """

    def __init__(self, model: Any, *, feed_forward: str | None = None) -> None:
        causal = isinstance(model, nn.Module) and hasattr(model, "generate") and hasattr(model, "get_output_embeddings")
        causal = causal and model.get_output_embeddings() is not None and not model.config.is_encoder_decoder
        require(causal, "model", type(model).__name__, "a causal language model of transformers, without an encoder")
        self.module: Any = model
        self.feed_forward = feed_forward or find_feed_forward(model)
        modules = dict(model.named_modules())
        names = f'the name of one of the model\'s modules, such as "{next(reversed(modules))}"'
        require(self.feed_forward in modules, "feed_forward", repr(feed_forward), names)
        self._tapped = modules[self.feed_forward]
        config = model.config.get_text_config(decoder=True)
        self.positions: int = getattr(config, "max_position_embeddings", None) or 2**62
        self._head_alone = False
        with frozen(model):
            probe = torch.linspace(0, config.vocab_size - 1, 8, device=model.device).long()[None]
            logits, _, hidden = self._forward(probe, None)
            self.dim, self.vocab_size = hidden.shape[-1], logits.shape[-1]
            self._head_alone = True  # unless the model does more to its logits than its last layer does
            features, _, _ = self._forward(probe, None)
            self._head_alone = torch.equal(self.logits(features), logits)

    def read(self, tokens: Int[Tensor, "batch time"], state: Window | None = None) -> Reading:
        """T more tokens: what scores the next token, the feed-forward's input, and the window to go on from."""
        rest, state = tokens.long(), state or Window(None, tokens[:, :0].long())
        features, hidden = [], []
        while rest.shape[1]:
            if state.tokens.shape[1] >= self.positions:
                newer = state.tokens[:, -(self.positions // 2) :]
                state = Window(self._forward(newer, None)[1], newer)
            now, rest = rest.tensor_split([self.positions - state.tokens.shape[1]], dim=1)
            scored, cache, keys = self._forward(now, state.cache)
            state = Window(cache, torch.cat([state.tokens, now], dim=1))
            features.append(scored)
            hidden.append(keys)
        return Reading(torch.cat(features, dim=1), torch.cat(hidden, dim=1), state)

    def logits(self, features: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocab"]:
        """Scores of every next token.  Where a model scales or caps its logits, they are the features themselves."""
        return self.module.get_output_embeddings()(features) if self._head_alone else features

    def fingerprint(self) -> str:
        config = {key: value for key, value in self.module.config.to_dict().items() if key not in NOT_WEIGHTS}
        return fingerprint(self.module, config | {"feed_forward": self.feed_forward})

    def _forward(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any, Tensor]:
        """(B, T) -> features (B, T, width), the cache that holds these tokens too, hidden (B, T, D)."""
        model = self.module.base_model if self._head_alone else self.module
        with self.overhearing() as heard:
            out = model(input_ids=tokens, past_key_values=cache, use_cache=True, return_dict=True)
        features = out.last_hidden_state if self._head_alone else out.logits
        require(len(heard) == 1, "feed_forward", repr(self.feed_forward), "a module that reads each token once")
        return features, out.past_key_values, heard[0].reshape(*tokens.shape, -1)

    @contextmanager
    def overhearing(self) -> Iterator[list[Tensor]]:
        """Inside, the list holds what the feed-forward reads in each forward pass."""
        heard: list[Tensor] = []

        def note(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            heard.append(next(given for given in (*positional, *named.values()) if isinstance(given, Tensor)))

        hook = self._tapped.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield heard
        finally:
            hook.remove()


def find_feed_forward(model: nn.Module) -> str:
    """The name of the last decoder block's feed-forward, "transformer.h.11.mlp".

    The blocks are the list of modules that is as long as the configuration says the model is deep.
    Raises ValueError, naming the argument that says where it is, unless there is exactly one.
    """
    config: Any = model.config
    depth = config.get_text_config(decoder=True).num_hidden_layers
    found = []
    for name, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) == depth:
            children = dict(blocks[-1].named_children())
            found += [f"{name}.{depth - 1}.{child}" for child in FEED_FORWARDS if child in children][:1]
    if len(found) != 1:
        what = f"several feed-forwards could be meant: {', '.join(found)}" if found else "no feed-forward was found"
        advice = 'name the module whose input is to be the key, as in feed_forward="transformer.h.11.mlp"'
        raise ValueError(f"{what} in the last block of {type(model).__name__}; {advice}")
    return found[0]


class HuggingFaceKNNLM(KNNLM):
    """A `KNNLM` whose text is generated by the model's own `generate`."""

    model: HuggingFaceReader

    def generate(
        self, prompt: Int[Tensor, "batch time"], n: int, *, temperature: float | None = None, **options: Any
    ) -> Any:
        """What `model.generate` returns: the prompt and up to n more tokens, each row padded after its end token.

        The likeliest, or sampled where a temperature is given.  `options` go to `model.generate`: attention_mask
        (for prompts padded on the left), num_beams, do_sample, top_k, eos_token_id, ...
        The neighbours are mixed in after penalties and before temperature, top-k and the like; a token that a rule
        has forbidden stays forbidden.  Raises ValueError for speculative decoding and classifier-free guidance.
        """
        self._check_tokens(prompt, least=1, name="prompt")
        require(n >= 0, "n", n, "0 tokens or more")
        require(temperature is None or temperature > 0, "temperature", temperature, "None or greater than 0")
        self._check_store()
        model = self.model.module
        settings = options.get("generation_config") or model.generation_config
        for name in REFUSED:
            value = options.get(name, getattr(settings, name, None))
            require(value is None or (name, value) == ("guidance_scale", 1), name, value, "left out with a datastore")
        if n == 0:
            return prompt
        if temperature is not None:
            options |= {"do_sample": True, "temperature": temperature}
        with frozen(model), self.model.overhearing() as heard:
            processors = [_Mix(self, heard), *options.pop("logits_processor", [])]
            options = {"disable_compile": True} | options  # a compiled model is not overheard
            found = model.generate(
                prompt.long().to(self._device), max_new_tokens=n, logits_processor=processors, **options
            )
        return found.to(prompt) if isinstance(found, Tensor) else found


class _Mix:
    """A logits processor, called after each forward pass of `generate` with the scores of the newest tokens."""

    def __init__(self, lm: HuggingFaceKNNLM, heard: list[Tensor]) -> None:
        self.lm, self.heard = lm, heard

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        newest = self.heard[-1].reshape(len(scores), -1, self.lm.model.dim)[:, -1]  # (B, D); padding is on the left
        self.heard.clear()
        if not callable(self.lm.weight) and self.lm.weight == 0:
            return scores
        mixed = self.lm.next_log_probs(newest, scores)  # (B, V)
        return mixed.masked_fill(scores == -torch.inf, -torch.inf)


def open_model(folder: str) -> Any:
    """A causal language model from a folder that `save_pretrained` wrote, in evaluation mode; nothing is downloaded."""
    auto = needs("transformers", "transformers").AutoModelForCausalLM
    try:
        return auto.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"path must be a folder written by save_pretrained, got {folder}: {error}") from None
