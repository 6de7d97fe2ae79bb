"""A memory grafted onto a causal language model of Hugging Face's transformers, beside the attention of some layers.

    y = attention(x) + tanh(alpha) memory(x)          x: what the attention reads; alpha: one number a layer, 0 at first

At the start the model says what it said before, to the last bit, while alpha's gradient is not zero.
Source of the gate: Alayrac et al., Flamingo: a Visual Language Model for Few-Shot Learning, 2022, arXiv:2204.14198,
section 2.2.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memcourse.memory import SequenceMemory, map_state, require

ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")  # of a decoder block, as the families call it
Maker = Callable[[], SequenceMemory]


def graft(
    model: Any, memory: Maker | SequenceMemory | Sequence[Maker | SequenceMemory], layers: Sequence[int | str]
) -> "Grafts":
    """Put a memory beside the attention of the named layers; the model is changed in place.

        grafts = hf.graft(model, lambda: InfiniAttention(768, 12, segment_len=64), layers=[3, 7])

    memory: a maker of mixers, called once for each layer, or a list with a maker or a mixer for each; a mixer itself
    for one layer.  layers: numbers of decoder blocks (-1 is the last), or names of attention modules for a family whose
    attention is not found by the names in ATTENTIONS: "transformer.h.3.attn".

    A forward without a cache starts the memories afresh.  With one, their state lives in it: it goes on where the cache
    goes on, is copied with it and follows its beams; `model.generate` needs nothing else.  The new weights are part of
    model.state_dict(), and grafts.state_dict() has them alone: to load them, graft the same memories first.  Padding on
    the right is allowed where nothing is generated from it.  A batch in which several documents stand in one row is
    one document to a memory.

    Raises ValueError for a model that is no causal language model, layers that do not exist, have no attention that
    can be found or have a graft already, memories that are no mixers of the model's width.  A forward raises it for
    padding on the left, which the memories would read, for masks of more than two dimensions (a static cache makes
    some), and for a cache that was begun without the graft or cut since (by speculative decoding).
    """
    causal = isinstance(model, nn.Module) and hasattr(model, "generate") and hasattr(model, "get_output_embeddings")
    causal = causal and model.get_output_embeddings() is not None and not model.config.is_encoder_decoder
    require(causal, "model", type(model).__name__, "a causal language model of transformers, without an encoder")
    found = [find_attention(model, layer) for layer in layers]
    names = [name for name, _ in found]
    require(0 < len(set(names)) == len(names), "layers", list(layers), "at least one layer, each of them once")
    for name in names:
        free = not hasattr(model.get_submodule(name), "graft")
        require(free, "layers", name, "without a graft; take the one that is there off first, by its remove()")
    mixers = _mixers(memory, len(names), model.config.get_text_config(decoder=True).hidden_size)
    return Grafts(model, [Graft(*place, mixer) for place, mixer in zip(found, mixers, strict=True)])


def find_attention(model: Any, layer: int | str) -> tuple[str, int]:
    """The name of a layer's attention and the number of the layer: 3 -> "transformer.h.3.attn", 3."""
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        like = f'the name of one of the model\'s modules, such as "{list(modules)[len(modules) // 2]}"'
        require(layer in modules, "layers", repr(layer), like)
        return layer, getattr(modules[layer], "layer_idx", 0)
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    require(-depth <= layer < depth, "layers", layer, f"numbers of the model's {depth} layers, from 0 to {depth - 1}")
    number = layer % depth
    found = []
    for name, blocks in modules.items():
        if isinstance(blocks, nn.ModuleList) and len(blocks) == depth:
            children = dict(blocks[number].named_children())
            found += [f"{name}.{number}.{child}" for child in ATTENTIONS if child in children][:1]
    if len(found) != 1:
        what = f"several attentions could be meant: {', '.join(found)}" if found else "no attention was found"
        advice = 'name the module, as in layers=["transformer.h.3.attn"]'
        raise ValueError(f"{what} in layer {number} of {type(model).__name__}; {advice}")
    return found[0], number


def _mixers(memory: Any, n_layers: int, d_model: int) -> list[SequenceMemory]:
    """One mixer for each layer from what `graft` is given."""
    if isinstance(memory, SequenceMemory):
        memory = [memory]
    elif callable(memory):
        memory = [memory] * n_layers
    require(
        len(memory) == n_layers, "memory", f"{len(memory)} memories", f"a maker, or one for each of {n_layers} layers"
    )
    mixers = [part if isinstance(part, SequenceMemory) else part() for part in memory]
    for mixer in mixers:
        fits = getattr(mixer, "level", None) == "mixer"
        require(
            fits, "memory", type(mixer).__name__, "a mixer, which stands where attention stands, or a maker of them"
        )
        width = mixer.config["d_model"]
        require(width == d_model, "d_model", width, f"the width of the model's hidden states, {d_model}")
    require(len({id(mixer) for mixer in mixers}) == n_layers, "memory", "one mixer twice", "a mixer for each layer")
    return mixers


class Graft(nn.Module):
    """One layer's memory and its gate, a child of the attention beside which it stands."""

    optimizer_options = {"alpha": {"rate": 10.0, "weight_decay": 0.0}}

    def __init__(self, name: str, number: int, memory: SequenceMemory) -> None:
        super().__init__()
        self.name, self.number = name, number
        self.memory = memory
        self.alpha = nn.Parameter(torch.zeros(1))
        self.padded = False  # whether the batch that the model is reading has padding on the right

    def forward(self, attended: Tensor, x: Tensor, cache: Any) -> Tensor:
        """attention's output + tanh(alpha) memory(x): (B, T, D), (B, T, D) -> (B, T, D)."""
        fits = attended.shape == x.shape
        require(fits, "layers", self.name, f"modules with outputs as wide as their inputs, {tuple(x.shape)}")
        state = None if cache is None else self._state(cache, x.shape[1])
        read, state = self.memory(x, state)
        if cache is not None:
            seen = -1 if self.padded else int(cache.get_seq_length(self.number))
            _states(cache)[self.name] = Held(seen, state)
        return attended + (self.alpha.tanh() * read).to(attended.dtype)

    def _state(self, cache: Any, time: int) -> Any:
        """Where the cache was before the newest tokens, which the attention has put into it already."""
        before = int(cache.get_seq_length(self.number)) - time
        if before == 0:
            return None
        held = _states(cache).get(self.name)
        if held is None:
            raise ValueError(f"past_key_values must be begun with the graft, got a cache of {before} tokens without it")
        seen = "padding on the right" if held.seen < 0 else f"{before} tokens of {held.seen} that the memory has read"
        require(
            held.seen == before, "past_key_values", seen, "as the last forward left it: a memory takes nothing back"
        )
        return held.state


class Held(NamedTuple):
    """A memory's state, and how many tokens are in it."""

    seen: int
    state: Any


class _Follows:
    """What a cache learns that holds states of grafts: they follow when it reorders, chooses or repeats its rows.

    It is a base class put before the cache's own, and no object beside the cache: the two would hold each other, and
    what a cache holds should go when the cache goes.
    """

    grafted_memories: dict[str, Held]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._follow(lambda leaf: leaf.index_select(0, beam_idx.to(leaf.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._follow(lambda leaf: leaf[indices.to(leaf.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._follow(lambda leaf: leaf.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.grafted_memories = {}

    def __reduce__(self) -> Any:
        """For copies and pickles: the class itself has no place where it could be found by its name."""
        return _begin, (type(self).__bases__[1],), self.__dict__

    def _follow(self, function: Callable[[Tensor], Tensor]) -> None:
        held = self.grafted_memories.items()
        self.grafted_memories = {name: Held(seen, map_state(function, state)) for name, (seen, state) in held}


@functools.cache
def _following(kind: type) -> type:
    return type(kind.__name__, (_Follows, kind), {})


def _begin(kind: Any) -> Any:
    following: Any = _following(kind)
    return following.__new__(following)


def _states(of: Any) -> dict[str, Held]:
    """The states that a cache holds, by the names of the attentions."""
    if not isinstance(of, _Follows):
        kind: Any = type(of)
        of.__class__ = _following(kind)
        of.grafted_memories = {}
    return of.grafted_memories


class Grafts(nn.ModuleList):
    """What `graft` put into a model: a `Graft` for each layer, in the order of `layers`.

    grafts.parameters() are the new weights: requires_grad_(False) on the model before the graft trains them alone.
    grafts.remove() takes them off, and the model is what it was.
    """

    def __init__(self, model: Any, parts: Iterable[Graft]) -> None:
        super().__init__()
        self._model = [model]  # in a list: it is no part of the grafts
        parts = self._parts = list(parts)
        self._hooks = [model.base_model.register_forward_pre_hook(self._look_at_the_mask, with_kwargs=True)]
        for part in parts:
            attention = model.get_submodule(part.name)
            like = next(p for p in attention.parameters() if p.is_floating_point())
            self.append(part.to(like.device, like.dtype))
            self._hooks.append(attention.register_forward_hook(_beside, with_kwargs=True))
            attention.add_module("graft", part)

    def remove(self) -> None:
        """Take the memories off the model; they keep their weights."""
        for hook in self._hooks:
            hook.remove()
        for part in self._parts:
            attention = self._model[0].get_submodule(part.name)
            if getattr(attention, "graft", None) is part:
                del attention.graft

    def _look_at_the_mask(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        padded = False
        if mask is not None and not torch.compiler.is_compiling():
            flat = isinstance(mask, Tensor) and mask.ndim == 2
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            require(flat, "attention_mask", got, "(batch, time), as for a cache that grows, beside a grafted memory")
            on_the_left = bool((mask[:, 1:] > mask[:, :-1]).any())
            advice = "without padding on the left, which a grafted memory would read; pass rows of one length together"
            require(not on_the_left, "attention_mask", "zeros before ones", advice)
            padded = not bool((mask != 0).all())
        for part in self._parts:
            part.padded = padded


def _beside(attention: Any, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """A forward hook of the attention: the memory reads what it read, and adds to what it says."""
    from transformers.cache_utils import Cache

    given = (*args, *named.values())
    x = next(value for value in given if isinstance(value, Tensor))
    cache = next((value for value in given if isinstance(value, Cache)), None)
    if isinstance(output, Tensor):
        return attention.graft(output, x, cache)
    return (attention.graft(output[0], x, cache), *output[1:])
