"""The one language model that hosts any memory.

x_t = e_t + W e_{t-1}                         embedding and one-token shift
x <- x + mixer(norm(x));  x <- x + ff(norm(x))    in every layer, or whatever a block-level memory does
logits = norm(x) E^T                          E: the embedding, used again
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import memcourse
from memcourse.memory import BlockMemory, SequenceMemory, differences, require, state_dtype, stream, write_safetensors

Maker = Callable[[], SequenceMemory]


class FeedForward(nn.Module):
    """x + W2 gelu(W1 norm(x)), four times as wide inside: (B, T, D) -> (B, T, D)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model)
        self.expand = nn.Linear(d_model, 4 * d_model, bias=False)
        self.contract = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, self.norm(x))

    def residual(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The same from `hidden` = norm(x), for a caller that keeps it."""
        return x + self.contract(F.gelu(self.expand(hidden)))


class MixerBlock(BlockMemory):
    """A mixer where attention stands in a pre-norm transformer block: x + mixer(norm(x)), then the feed-forward."""

    def __init__(self, mixer: SequenceMemory) -> None:
        super().__init__()
        self.config = {"class": type(mixer).__name__} | mixer.config
        self.differentiable_write = mixer.differentiable_write
        self.norm = nn.RMSNorm(mixer.config["d_model"])
        self.mixer = mixer
        self.feed_forward = FeedForward(mixer.config["d_model"])

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        return self.mixer.initial_state(batch_size, device=device, dtype=dtype)

    def tokens_to_segment_end(self, state: Any) -> int:
        return self.mixer.tokens_to_segment_end(state)

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        read, state = self.mixer(self.norm(x), state)
        x = x + read
        hidden = self.feed_forward.norm(x)  # (B, T, D)
        return self.feed_forward.residual(x, hidden), state, hidden


class TransformerState(NamedTuple):
    """The last token's embedding, for the shift, and the state of every layer."""

    previous: Float[Tensor, "batch d_model"]
    layers: tuple[Any, ...]


class MemoryTransformer(SequenceMemory):
    """A language model whose layers remember: (tokens, state=None) -> (logits, state).

    tokens (B, T) of integers below vocab_size -> logits (B, T, vocab_size).  `memory` makes one layer's memory each
    time it is called: `lambda: CausalAttention(64, 4)`, a mixer or a block; a list of n_layers makers gives a hybrid.
    The shift lets a memory bind a token to the one before it, without which a key and its value cannot be written
    together.  Raises ValueError for a list of another length, a maker of something else, a width that differs.
    """

    level: ClassVar[str] = "model"

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, memory: Maker | Sequence[Maker]) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("d_model", d_model), ("n_layers", n_layers)):
            require(size >= 1, name, size, "at least 1")
        makers = [memory] * n_layers if callable(memory) else list(memory)
        require(
            len(makers) == n_layers,
            "memory",
            f"{len(makers)} makers",
            f"one maker, or n_layers={n_layers} of them",
        )
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.shift = nn.Linear(d_model, d_model, bias=False)
        self.layers = nn.ModuleList(_as_block(make(), d_model) for make in makers)
        self.norm = nn.RMSNorm(d_model)
        self.config = {
            "vocab_size": vocab_size,
            "d_model": d_model,
            "n_layers": n_layers,
            "memory": [{"class": type(layer).__name__} | layer.config for layer in self.blocks],
        }
        self.differentiable_write = all(layer.differentiable_write for layer in self.blocks)

    @property
    def blocks(self) -> list[BlockMemory]:
        return [cast(BlockMemory, layer) for layer in self.layers]

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TransformerState:
        previous = torch.zeros(batch_size, self.config["d_model"], device=device, dtype=state_dtype(dtype))
        layers = (layer.initial_state(batch_size, device=device, dtype=dtype) for layer in self.blocks)
        return TransformerState(previous, tuple(layers))

    def tokens_to_segment_end(self, state: TransformerState) -> int:
        parts = zip(self.blocks, state.layers, strict=True)
        return max(layer.tokens_to_segment_end(part) for layer, part in parts)

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: TransformerState | None = None
    ) -> tuple[Float[Tensor, "batch time vocab"], TransformerState]:
        features, state, _ = self.features(tokens, state)
        return self.logits(features), state

    def logits(self, features: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
        """Scores of every next token, from what `features` gives: (..., D) -> (..., V)."""
        return F.linear(features, self.embedding.weight)

    def hidden(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        """The input of the last feed-forward, after its norm: one row per token, (B, T) -> (B, T, D)."""
        return self.features(tokens)[2]

    def features(
        self, tokens: Int[Tensor, "batch time"], state: TransformerState | None = None
    ) -> tuple[Float[Tensor, "batch time d_model"], TransformerState, Float[Tensor, "batch time d_model"]]:
        """What the logits are made of, the state, and `hidden`, in one pass: a caller may want few of the logits."""
        self._check_tokens(tokens)
        embedded = self.embedding(tokens)  # (B, T, D)
        state = self.accept(state, len(tokens), embedded.device, embedded.dtype)
        if tokens.shape[1] == 0:
            return embedded, state, embedded
        before = torch.cat([state.previous[:, None].to(embedded), embedded[:, :-1]], dim=1)  # (B, T, D)
        x = embedded + self.shift(before)
        layers = []
        for layer, layer_state in zip(self.blocks, state.layers, strict=True):
            x, layer_state, hidden = layer.advance_with_hidden(x, layer_state)
            layers.append(layer_state)
        return self.norm(x), TransformerState(embedded[:, -1].to(state.previous), tuple(layers)), hidden

    def _check_tokens(self, tokens: Tensor) -> None:
        integers = tokens.ndim == 2 and not tokens.is_floating_point() and tokens.dtype != torch.bool
        require(integers, "tokens", f"{tokens.dtype} {tuple(tokens.shape)}", "integers of shape (batch, time)")
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = int(tokens.min()), int(tokens.max())
            vocab_size = self.config["vocab_size"]
            require(0 <= low and high < vocab_size, "tokens", f"{low} to {high}", f"from 0 to {vocab_size - 1}")

    @torch.no_grad()
    def generate(
        self, prompt: Int[Tensor, "batch time"], n: int, *, temperature: float | None = None
    ) -> Int[Tensor, "batch longer"]:
        """The prompt and n more tokens, (B, T) -> (B, T + n): greedy, or sampled where a temperature is given.

        The prompt may be of any length; it streams through the state in chunks, and no token of it is dropped.
        """
        self._check_tokens(prompt)
        require(prompt.shape[1] >= 1, "prompt", tuple(prompt.shape), "at least one token long")
        require(n >= 0, "n", n, "0 tokens or more")
        require(temperature is None or temperature > 0, "temperature", temperature, "None or greater than 0")
        for logits, state in stream(self, prompt, chunk=1024):  # noqa: B007 (the last of each is what we need)
            pass
        tokens = [prompt]
        for _ in range(n):
            newest = logits[:, -1]  # (B, V)
            if temperature is None:
                token = newest.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                token = torch.multinomial((newest / temperature).softmax(dim=-1), 1)
            tokens.append(token)
            logits, state = self(token, state)
        return torch.cat(tokens, dim=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and configuration as safetensors; an interrupted save leaves the old file as it was."""
        write_safetensors({name: weight.contiguous() for name, weight in self.state_dict().items()}, path, self.config)

    def load(self, path: str | os.PathLike[str]) -> "MemoryTransformer":
        """Fill this model with saved weights.  Raises ValueError, naming what differs, for another configuration."""
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
            require(config is not None, "path", path, "a file written by MemoryTransformer.save")
            differing = differences(self.config, config)
            require(not differing, "path", path, f"a model of this configuration; {'; '.join(differing)}")
            self.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
        return self


def open_model(path: str | os.PathLike[str]) -> MemoryTransformer:
    """The model that `MemoryTransformer.save` wrote, built anew from the configuration in its file.

    Raises ValueError where the file holds something else, or a memory that this version does not have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
    except SafetensorError as error:
        raise ValueError(f"path must be a file written by MemoryTransformer.save, got {path}: {error}") from None
    saved = isinstance(config, dict) and {"vocab_size", "d_model", "n_layers", "memory"} <= config.keys()
    require(saved, "path", path, "a file written by MemoryTransformer.save")
    return MemoryTransformer(**config | {"memory": [_maker(memory) for memory in config["memory"]]}).load(path)


def _maker(config: dict[str, Any]) -> Maker:
    """What makes the memory that a configuration describes: its class, by name, and its arguments."""
    kind: Any = getattr(memcourse, config.get("class", ""), None)
    known = isinstance(kind, type) and issubclass(kind, SequenceMemory)
    require(known, "class in the file", config.get("class"), f"a memory of memcourse {memcourse.__version__}")
    return lambda: kind(**{name: value for name, value in config.items() if name != "class"})


def _as_block(memory: SequenceMemory, d_model: int) -> BlockMemory:
    level = getattr(memory, "level", None)
    require(level in ("mixer", "block"), "memory", type(memory).__name__, "a maker of mixers or blocks")
    width = memory.config["d_model"]
    require(width == d_model, "d_model", d_model, f"that of the memory, {width}")
    return MixerBlock(memory) if level == "mixer" else cast(BlockMemory, memory)
