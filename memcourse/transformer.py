"""The one language model that hosts any memory.

x <- x + mixer(norm(x));  x <- x + ff(norm(x))    in every layer, or whatever a block-level memory does

What comes before and after the layers (embedding, shift, logits, files) is `token_model`'s.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memcourse.memory import BlockMemory, SequenceMemory, require, state_dtype
from memcourse.token_model import Model, TokenModel, class_in_file, saved_config

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


class MemoryTransformer(TokenModel):
    """A language model whose layers remember: (tokens, state=None) -> (logits, state).

    tokens (B, T) of integers below vocab_size -> logits (B, T, vocab_size).  `memory` makes one layer's memory each
    time it is called: `lambda: CausalAttention(64, 4)`, a mixer or a block; a list of n_layers makers gives a hybrid.
    Raises ValueError for a list of another length, a maker of something else, a width that differs.
    """

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, memory: Maker | Sequence[Maker]) -> None:
        super().__init__(vocab_size, d_model, n_layers)
        makers = [memory] * n_layers if callable(memory) else list(memory)
        require(
            len(makers) == n_layers,
            "memory",
            f"{len(makers)} makers",
            f"one maker, or n_layers={n_layers} of them",
        )
        self.layers = nn.ModuleList(_as_block(make(), d_model) for make in makers)
        self.norm = nn.RMSNorm(d_model)
        self.config = {
            "vocab_size": vocab_size,
            "d_model": d_model,
            "n_layers": n_layers,
            "memory": [{"class": type(layer).__name__} | layer.config for layer in self.blocks],
        }
        self.differentiable_write = all(layer.differentiable_write for layer in self.blocks)

    @classmethod
    def from_config(cls: type[Model], config: dict[str, Any]) -> Model:
        """A new model with the memories that `config` names, by their classes, and their arguments."""
        return cls(**config | {"memory": [_maker(memory) for memory in config["memory"]]})

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

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, TransformerState, Tensor]:
        layers = []
        for layer, layer_state in zip(self.blocks, state.layers, strict=True):
            x, layer_state, hidden = layer.advance_with_hidden(x, layer_state)
            layers.append(layer_state)
        return x, TransformerState(state.previous, tuple(layers)), hidden


def open_model(path: str | os.PathLike[str]) -> TokenModel:
    """The model that its `save` wrote into a file, built anew from the class and the configuration found there.

    Raises ValueError where the file holds something else, or a memory that this version does not have.
    """
    config = saved_config(path)
    model: type[TokenModel] = class_in_file(config, TokenModel)
    return model.from_config({name: value for name, value in config.items() if name != "class"}).load(path)


def _maker(config: dict[str, Any]) -> Maker:
    """What makes the memory that a configuration describes: its class, by name, and its arguments."""
    kind = class_in_file(config, SequenceMemory)
    return lambda: kind(**{name: value for name, value in config.items() if name != "class"})


def _as_block(memory: SequenceMemory, d_model: int) -> BlockMemory:
    level = getattr(memory, "level", None)
    require(level in ("mixer", "block"), "memory", type(memory).__name__, "a maker of mixers or blocks")
    width = memory.config["d_model"]
    require(width == d_model, "d_model", d_model, f"that of the memory, {width}")
    return MixerBlock(memory) if level == "mixer" else cast(BlockMemory, memory)
