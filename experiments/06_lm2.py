"""Chapter 06's claims: a gated bank carries a fact across segments, and what its parts are good for.

    python experiments/06_lm2.py      about ten minutes on one core; a killed run goes on where it was

Two tasks in segments of 16 tokens, between which attention does not look, both trained on 2 to 4 segments.  A needle:
one value, asked for at the end; tested on up to 16 times as many segments.  Recall: every segment brings a new key and
its value, and asks for values of the keys so far; tested on up to 4 times as many.

1. Memories.  A window alone, LM2 with its four kinds of writing, and a Recurrent Memory Transformer, with as many
   parameters, the same steps and the same data.
2. Parts of LM2.  The bank's first value, the forget gates' bias, vectors or one matrix, all slots or the best of them,
   a write that is the stronger the more the segment surprised the model.

In every model the value and output projections of attention start as orthogonal matrices.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from memcourse import Batch, LM2Block, MemoryTransformer, RecurrentMemoryTransformer, evaluate, fit, lm2, tasks
from memcourse.attention import Heads, attend, rotate
from memcourse.course import results
from memcourse.segments import attend_in_segments, positions_in_segment

SLUG = "06_lm2"
SEEDS = [0, 1, 2]
SEGMENT = 16
MODEL: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_slots": 8}  # one LM2 block, or two plain ones as large as it
TRAINING: dict[str, Any] = {"learning_rate": 5e-3}
TEST: dict[str, Any] = {"batch_size": 128, "seed": 7}
NEEDLE: dict[str, Any] = {"train": [2, 3, 4], "test": [4, 8, 16, 32, 64], "batch_size": 64, "steps": 160}  # in segments
RECALL: dict[str, Any] = {"train": [2, 3, 4], "test": [2, 4, 8, 16], "batch_size": 32, "steps": 300}
PAIRS: dict[str, Any] = {"n_keys": 16, "n_values": 8, "n_asked": 4}
MEMORIES = ["window", "LM2, input", "LM2, thought", "LM2, both", "LM2, joint", "RMT"]
PARTS: dict[str, dict[str, Any]] = {
    "as it is": {"bank": "identity"},
    "not learned": {"bank": "identity, fixed"},
    "small random": {"bank": "small random"},
    "all equal": {"bank": "all equal"},
    "forget bias 1": {"forget_bias": 1.0},
    "forget bias -2": {"forget_bias": -2.0},
    "best slot": {"top_k": 1},
    "best two slots": {"top_k": 2},
    "one slot": {"n_slots": 1},
    "32 vectors": {"n_slots": 32},
    "one 32 x 32 matrix": {"n_slots": 32, "matrix": True},
    "surprise": {"surprise": "own"},
    "surprise of another text": {"surprise": "another's"},
}


class Window(LM2Block):
    """A plain block whose attention stays inside a segment: LM2's, without its bank."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads, 1, segment_len=SEGMENT)
        for part in ("read", "write", "output_gate", "input_gate", "forget_gate", "write_norm"):
            delattr(self, part)
        self.initial_memory.requires_grad_(False)

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        x = x + local_attention(self.attention, self.norm(x))
        hidden = self.feed_forward.norm(x)
        return self.feed_forward.residual(x, hidden), state, hidden


class Changed(LM2Block):
    """LM2Block (writes="input") in its plain form, one segment after another, with parts that can be exchanged.

    It reads whole segments; what is left over at the end is read and never written.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_slots: int,
        *,
        bank: str = "identity",
        forget_bias: float = 4.0,
        top_k: int | None = None,
        matrix: bool = False,
    ) -> None:
        super().__init__(d_model, n_heads, n_slots, segment_len=SEGMENT)
        self.top_k, self.matrix = top_k, matrix
        nn.init.constant_(self.forget_gate.bias, forget_bias)
        with torch.no_grad():
            if bank == "small random":
                self.initial_memory.normal_(std=0.02)
            elif bank == "all equal":
                self.initial_memory.copy_(self.initial_memory[:1].expand_as(self.initial_memory))
        self.initial_memory.requires_grad_(bank != "identity, fixed")

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        embedded = self.norm(x)  # (B, T, D)
        x1 = x + local_attention(self.attention, embedded)
        memory, outputs, hiddens = state.memory, [], []
        for piece, own, attended in zip(*(part.split(SEGMENT, dim=1) for part in (x, embedded, x1)), strict=True):
            read = self.look_up(own, memory)
            with_read = attended + self.output_gate(read).sigmoid() * read
            hiddens.append(self.feed_forward.norm(with_read))
            outputs.append(self.feed_forward.residual(with_read, hiddens[-1]))
            if piece.shape[1] == SEGMENT:
                candidate = self.gather(memory, self.write_norm(piece))
                memory = lm2.update(memory, candidate, *self.gates(memory, candidate))
        return torch.cat(outputs, dim=1), state._replace(memory=memory), torch.cat(hiddens, dim=1)

    def gates(self, memory: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        return self.forget_gate(memory).sigmoid(), self.input_gate(candidate).sigmoid()

    def look_up(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """What the tokens of a segment read: (B, L, D), (B, N, D) -> (B, L, D)."""
        if self.matrix:  # the bank is one matrix, through which every token goes
            return self.read.output(self.read.query(tokens) @ memory)
        query, key, value = self.read.split(tokens, memory)
        if self.top_k is None:
            return self.read.merge(attend(query, key, value)[0])
        scores = query @ key.mT  # (B, H, L, N)
        best = scores >= scores.topk(self.top_k, dim=-1).values[..., -1:]
        return self.read.merge(attend(query, key, value, mask=best)[0])

    def gather(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """What the bank takes from a segment: (B, N, D), (B, L, D) -> (B, N, D)."""
        if self.matrix:  # a sum of outer products, one for each token
            return self.write.key(tokens).mT @ self.write.value(tokens) / math.sqrt(SEGMENT)
        return self.write.merge(attend(*self.write.split(memory, tokens))[0])


def local_attention(heads: Heads, x: Tensor) -> Tensor:
    query, key, value = heads.split(x, x)
    position = positions_in_segment(0, x.shape[1], SEGMENT, x.device)
    return heads.merge(attend_in_segments(rotate(query, position), rotate(key, position), value, SEGMENT))


class Surprised(nn.Module):
    """A model of one block whose input gate is scaled by how much the segment surprised the model.

    surprise = the largest loss, in nats, that a token of the segment had; strength = sigmoid(slope (surprise - level)),
    slope and level learned.  The losses are those of a small head beside the answer's, which learns to say the next
    token from features that it cannot change.  Every loss is known when the segment ends: nothing looks ahead.
    With `whose="another's"` the surprise is that of the next text in the batch: the same gate, told nothing.
    """

    def __init__(self, model: MemoryTransformer, whose: str) -> None:
        super().__init__()
        vocab_size, d_model = model.embedding.weight.shape
        self.model, self.whose = model, whose
        self.next_token = nn.Linear(d_model, vocab_size)
        self.slope, self.level = nn.Parameter(torch.ones(())), nn.Parameter(torch.tensor(math.log(vocab_size)))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        state, logits = self.model.initial_state(len(tokens), device=tokens.device), []
        block: Any = self.model.layers[0]
        for piece in tokens.split(SEGMENT, dim=1):
            before = state.layers[0].memory
            features, state, _ = self.model.features(piece, state)
            guesses = self.next_token(features.detach())
            losses = F.cross_entropy(guesses[:, :-1].transpose(1, 2), piece[:, 1:], reduction="none")  # (B, L - 1)
            surprise = losses.detach().amax(dim=1)[:, None, None]  # (B, 1, 1)
            if self.whose == "another's":
                surprise = surprise.roll(1, dims=0)
            strength = (self.slope * (surprise - self.level)).sigmoid()
            kept = block.forget_gate(before).sigmoid() * before
            written = kept + strength * (state.layers[0].memory - kept)  # the input gate, times the strength
            state = state._replace(layers=(state.layers[0]._replace(memory=written),))
            answer = self.model.logits(features[:, -1:])
            logits.append(torch.cat([guesses[:, :-1], answer], dim=1))
        return torch.cat(logits, dim=1), state


def new_model(memory: str, changes: dict[str, Any], vocab_size: int) -> nn.Module:
    """The model of a name in MEMORIES, or an LM2 with changes from PARTS."""
    d_model, n_heads, n_slots = MODEL.values()
    surprise = changes.get("surprise")
    changes = {"n_slots": n_slots} | {name: value for name, value in changes.items() if name != "surprise"}
    model: nn.Module
    if memory == "window":
        model = MemoryTransformer(vocab_size, d_model, 2, lambda: Window(d_model, n_heads))
    elif memory == "RMT":
        model = RecurrentMemoryTransformer(vocab_size, d_model, 2, n_heads, n_memory=n_slots, segment_len=SEGMENT)
    elif memory == "changed":
        model = MemoryTransformer(vocab_size, d_model, 1, lambda: Changed(d_model, n_heads, **changes))
    else:
        writes = memory.removeprefix("LM2, ")
        model = MemoryTransformer(
            vocab_size, d_model, 1, lambda: LM2Block(d_model, n_heads, n_slots, segment_len=SEGMENT, writes=writes)
        )
    for module in model.modules():
        if isinstance(module, Heads):
            nn.init.orthogonal_(module.value.weight)
            nn.init.orthogonal_(module.output.weight)
    return Surprised(model, surprise) if surprise else model


def text(task: str, n_segments: int, batch_size: int, seed: int, *, ask_often: bool = False) -> Batch:
    """One batch; with `ask_often` the needle is asked for at the end of every segment, not of the last alone."""
    if task == "needle":
        tokens, targets = tasks.passkey(batch_size=batch_size, n_segments=n_segments, segment_len=SEGMENT, seed=seed)
        if ask_often:
            ends = slice(SEGMENT - 1, None, SEGMENT)
            tokens[:, ends], targets[:, ends] = tokens[:, -1:], targets[:, -1:]
        return Batch(tokens, targets)
    return registers(batch_size, n_segments, seed, ask_often)


def registers(batch_size: int, n_segments: int, seed: int, ask_often: bool) -> Batch:
    """A new key and its value somewhere in every segment, and four keys known by then at its end: say their values.

    Scored are the questions of the last segment, or, with `ask_often`, of all.
    """
    generator = torch.Generator().manual_seed(seed)
    n_keys, n_values, n_asked = PAIRS["n_keys"], PAIRS["n_values"], PAIRS["n_asked"]
    shape = (batch_size, n_segments)
    keys = torch.rand(batch_size, n_keys, generator=generator).argsort(dim=1)[:, :n_segments]  # (B, S)
    values = n_keys + torch.randint(n_values, shape, generator=generator)
    tokens = torch.full((*shape, SEGMENT), n_keys + n_values)  # (B, S, L)
    place = torch.randint(SEGMENT - n_asked - 1, (*shape, 1), generator=generator)
    tokens.scatter_(2, place, keys[..., None]).scatter_(2, place + 1, values[..., None])
    known = torch.arange(1, n_segments + 1)[:, None]  # (S, 1)
    asked = (torch.rand(*shape, n_asked, generator=generator) * known).long()  # (B, S, n_asked), below `known`
    tokens[..., -n_asked:] = keys[:, None].expand(-1, n_segments, -1).gather(2, asked)
    targets = torch.full_like(tokens, -100)
    scored = slice(None) if ask_often else slice(-1, None)
    targets[:, scored, -n_asked:] = values[:, None].expand(-1, n_segments, -1).gather(2, asked)[:, scored]
    return Batch(tokens.flatten(1), targets.flatten(1))


def with_next_tokens(batch: Batch) -> Batch:
    """The same texts, in which every next token of a segment is to be said too; its last token has the answer."""
    next_tokens = batch.tokens.roll(-1, dims=1)
    next_tokens[:, SEGMENT - 1 :: SEGMENT] = -100
    return Batch(batch.tokens, torch.where(batch.targets == -100, next_tokens, batch.targets))


def spread(bank: Tensor) -> float:
    """Largest distance between two slots of a bank (N, D), as a share of the longest slot."""
    bank = bank.detach().double()
    apart = (bank[:, None] - bank).norm(dim=-1)  # (N, N)
    return (apart.max() / bank.norm(dim=-1).max()).item()


def run(task: str, memory: str, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one model; its share of right answers at every length of the test, and what the slots look like."""
    torch.manual_seed(seed)
    words = (
        tasks.passkey_words()
        if task == "needle"
        else tasks.associative_recall_words(n_keys=PAIRS["n_keys"], n_values=PAIRS["n_values"])
    )
    setting = NEEDLE if task == "needle" else RECALL
    model = new_model(memory, changes, len(words))
    surprised = isinstance(model, Surprised)

    def batch(step: int) -> Batch:
        n_segments = setting["train"][(step * 7919 + seed) % len(setting["train"])]
        one = text(task, n_segments, setting["batch_size"], 1_000_003 * (seed + 1) + step, ask_often=True)
        return with_next_tokens(one) if surprised else one

    fit(model, batch, steps=setting["steps"], **TRAINING, progress=False)
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "right": [evaluate(model, [text(task, n, **TEST)])["accuracy"] for n in setting["test"]],
    }
    if "bank" in changes:
        with torch.no_grad():
            _, state = model(text(task, 4, **TEST).tokens)
        found["slots"] = {"first bank, learned": spread(model.layers[0].initial_memory)}
        found["slots"]["after 4 segments"] = spread(state.layers[0].memory[0])
    return found


def check_plain_form() -> None:
    """`Changed` with nothing changed is the library's block."""
    torch.manual_seed(0)
    d_model, n_heads, n_slots = MODEL.values()
    ours, theirs = Changed(**MODEL), LM2Block(**MODEL, segment_len=SEGMENT)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3 * SEGMENT + 5, d_model)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])


SETTINGS = {
    "segment": SEGMENT,
    "model": MODEL,
    "training": TRAINING,
    "needle": NEEDLE,
    "recall": RECALL,
    "pairs": PAIRS,
}
POINTS: list[tuple[str, str, str, dict[str, Any]]] = [  # task, name, memory, changes
    *(("needle", memory, memory, {}) for memory in MEMORIES),
    *(("needle", name, "changed", changes) for name, changes in PARTS.items()),
    *(("recall", memory, memory, {}) for memory in MEMORIES),
]


def once(task: str, name: str, memory: str, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    key = SETTINGS | {"test": TEST, "run": [task, name, memory, changes], "seed": seed}
    return results.cached_run(SLUG, key, lambda: run(task, memory, changes, seed), experiment_file=__file__)


def main() -> None:
    torch.set_num_threads(1)
    check_plain_form()
    bar = tqdm(total=len(POINTS) * len(SEEDS), desc="models trained", unit="model")
    found: dict[str, Any] = {"needle": {}, "recall": {}}
    for point in POINTS:
        runs = []
        for seed in SEEDS:
            runs.append(once(*point, seed))
            bar.update()
        task, name, _, _ = point
        found[task][name] = results.summary([one["right"] for one in runs]) | {"parameters": runs[0]["parameters"]}
        if "slots" in runs[0]:
            found[task][name]["slots"] = {when: [one["slots"][when] for one in runs] for when in runs[0]["slots"]}
    bar.close()
    config = SETTINGS | {"test": TEST, "memories": MEMORIES, "parts": PARTS}
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


if __name__ == "__main__":
    main()
