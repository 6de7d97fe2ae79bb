"""What every model of this library shares, whatever remembers inside it: from tokens to logits, and to a file.

x_t = e_t + W e_{t-1}      embedding and one-token shift
logits = norm(y) E^T       y: what the model's layers make of x; E: the embedding, used again
"""

import json
import os
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import memcourse
from memcourse.memory import SequenceMemory, differences, require, stream, write_safetensors

Model = TypeVar("Model", bound=SequenceMemory)


class TokenModel(SequenceMemory):
    """A memory of level "model": (tokens, state=None) -> (logits, state), (B, T) -> (B, T, vocab_size).

    A subclass sets `norm` and `config`, and defines `initial_state` and `advance_with_hidden`; its state has a field
    `previous`, (B, D): the last token's embedding.  The shift lets a memory bind a token to the one before it, without
    which a key and its value cannot be written together.
    """

    level: ClassVar[str] = "model"
    norm: nn.Module

    def __init__(self, vocab_size: int, d_model: int, n_layers: int) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("d_model", d_model), ("n_layers", n_layers)):
            require(size >= 1, name, size, "at least 1")
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.shift = nn.Linear(d_model, d_model, bias=False)

    @classmethod
    def from_config(cls: type[Model], config: dict[str, Any]) -> Model:
        """A new model with the arguments that `config` holds."""
        return cls(**config)

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        """T >= 1 tokens through all layers: (B, T, D), state -> y (B, T, D), state, `hidden` (B, T, D)."""
        raise NotImplementedError

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: Any = None
    ) -> tuple[Float[Tensor, "batch time vocab"], Any]:
        features, state, _ = self.features(tokens, state)
        return self.logits(features), state

    def logits(self, features: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
        """Scores of every next token, from what `features` gives: (..., D) -> (..., V)."""
        return F.linear(features, self.embedding.weight)

    def hidden(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        """The input of the last feed-forward, after its norm: one row per token, (B, T) -> (B, T, D)."""
        return self.features(tokens)[2]

    def features(
        self, tokens: Int[Tensor, "batch time"], state: Any = None
    ) -> tuple[Float[Tensor, "batch time d_model"], Any, Float[Tensor, "batch time d_model"]]:
        """What the logits are made of, the state, and `hidden`, in one pass: a caller may want few of the logits."""
        self._check_tokens(tokens)
        embedded = self.embedding(tokens)  # (B, T, D)
        state = self.accept(state, len(tokens), embedded.device, embedded.dtype)
        if tokens.shape[1] == 0:
            return embedded, state, embedded
        before = torch.cat([state.previous[:, None].to(embedded), embedded[:, :-1]], dim=1)  # (B, T, D)
        y, after, hidden = self.advance_with_hidden(embedded + self.shift(before), state)
        previous = embedded[:, -1].to(state.previous, copy=True)  # a view would keep the whole chunk alive
        return self.norm(y), after._replace(previous=previous), hidden

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
        weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        write_safetensors(weights, path, {"class": type(self).__name__} | self.config)

    def load(self: Model, path: str | os.PathLike[str]) -> Model:
        """Fill this model with saved weights.  Raises ValueError, naming what differs, for another configuration."""
        config = saved_config(path, type(self).__name__)
        differing = differences({"class": type(self).__name__} | self.config, config)
        require(not differing, "path", path, f"a model of this configuration; {'; '.join(differing)}")
        with safe_open(path, framework="pt") as file:
            self.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
        return self


def saved_config(path: str | os.PathLike[str], model: str = "MemoryTransformer") -> dict[str, Any]:
    """The configuration in a file that `save` wrote, with the model's class.  Raises ValueError for another file."""
    what = f"a file written by {model}.save"
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
    except SafetensorError as error:
        raise ValueError(f"path must be {what}, got {path}: {error}") from None
    require(isinstance(config, dict) and {"vocab_size", "d_model"} <= config.keys(), "path", path, what)
    return {"class": "MemoryTransformer"} | config  # files of version 0.1.0 may not name their class


def class_in_file(config: dict[str, Any], of: type[SequenceMemory]) -> Any:
    """The class that a configuration names, a subclass of `of`.  Raises ValueError where this version has none."""
    kind: Any = getattr(memcourse, config.get("class", ""), None)
    known = isinstance(kind, type) and issubclass(kind, of)
    require(known, "class in the file", config.get("class"), f"a memory of memcourse {memcourse.__version__}")
    return kind
