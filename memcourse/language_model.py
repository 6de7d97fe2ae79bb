"""What `KNNLM` needs of a language model, and MemoryTransformer seen that way."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memcourse.memory import require
from memcourse.token_model import TokenModel


class Reading(NamedTuple):
    """What a language model makes of T tokens: one row per token, and the state to go on from."""

    features: Float[Tensor, "batch time width"]  # logits(features) scores the next token
    hidden: Float[Tensor, "batch time dim"]  # the key of the context that ends with this token
    state: Any


@runtime_checkable
class LanguageModel(Protocol):
    """Implement this to give any model a datastore.

    module       the nn.Module with the weights: KNNLM finds its device, and puts it into eval mode while it reads
    dim          width of `hidden`
    vocab_size   number of logits
    read(tokens (B, T), state=None) -> Reading
        T >= 1 more tokens after those that `state` has seen; None: the first ones.  Reading a text in pieces must give
        what reading it whole gives, and a text may be of any length: a model whose context is limited decides here what
        it drops.  KNNLM does not look into the state; it hands it back once, with as many rows, under torch.no_grad,
        and never has more than `knn_lm.TOKENS_AT_ONCE` tokens read in one call.
    logits(features (..., width)) -> (..., V)
        Scores of every next token; KNNLM asks for few rows at a time.
    fingerprint() -> str
        The same for the same weights and configuration, on any device: see the function `fingerprint`.
    """

    module: nn.Module
    dim: int
    vocab_size: int

    def read(self, tokens: Tensor, state: Any = None) -> Reading: ...

    def logits(self, features: Tensor) -> Tensor: ...

    def fingerprint(self) -> str: ...


class TransformerReader:
    """MemoryTransformer as a `LanguageModel`.

    key="hidden": the last feed-forward's input after its norm, the paper's choice; "features": the model's output.
    """

    def __init__(self, module: TokenModel, *, key: str = "hidden") -> None:
        require(key in ("hidden", "features"), "key", repr(key), '"hidden" or "features"')
        self.module: nn.Module = module
        self.dim, self.vocab_size, self.key = module.config["d_model"], module.config["vocab_size"], key
        self._model = module

    def read(self, tokens: Int[Tensor, "batch time"], state: Any = None) -> Reading:
        features, state, hidden = self._model.features(tokens, state)
        return Reading(features, hidden if self.key == "hidden" else features, state)

    def logits(self, features: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocab"]:
        return self._model.logits(features)

    def fingerprint(self) -> str:
        return fingerprint(self.module, self._model.config | {"key": self.key})


_known: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def fingerprint(module: nn.Module, config: Any = None) -> str:
    """A short name for weights and configuration: "MemoryTransformer 0f3a91c2d4e5".  The same on any device.

    Hashed anew only where a weight has changed: torch counts the changes made to each tensor in place (those made
    through `.data` it does not see).
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    config_text = json.dumps(config, sort_keys=True, default=str)
    now = (config_text, [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in state.values()])
    before, text = _known.get(module, (None, ""))
    if now != before:
        digest = hashlib.sha256(config_text.encode())
        for name, tensor in state.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
        text = f"{type(module).__name__} {digest.hexdigest()[:12]}"
        _known[module] = (now, text)
    return text


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every part of the module is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
