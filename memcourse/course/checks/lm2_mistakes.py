"""The known wrong answers of chapter 06, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse import lm2
from memcourse.course.checks.attention_mistakes import instead
from memcourse.course.checks.attention_oracles import Parameters
from memcourse.course.checks.lm2_oracles import Read, Write, token_loop
from memcourse.course.exercise import Mistake

# 6.2 update_bank

Gate = Callable[[Tensor, Tensor, Parameters, Tensor], Tensor]


def right_input(M: Tensor, C: Tensor, W: Parameters, b_f: Tensor) -> Tensor:
    return (C @ W["in"]).sigmoid()


def right_forget(M: Tensor, C: Tensor, W: Parameters, b_f: Tensor) -> Tensor:
    return (M @ W["f"] + b_f).sigmoid()


def right_sum(M: Tensor, C: Tensor, g_f: Tensor, g_in: Tensor) -> Any:
    return g_f * M + g_in * C.tanh()


def update(
    input_gate: Gate = right_input, forget_gate: Gate = right_forget, put: Callable[..., Any] = right_sum
) -> Callable[..., Any]:
    """update_bank, with a part replaced."""

    def bank(memory: Tensor, candidate: Tensor, W: Parameters, b_f: Tensor) -> Any:
        gates = (gate(memory, candidate, W, b_f) for gate in (forget_gate, input_gate))
        return put(memory, candidate, *gates)

    return bank


def update_in_place(memory: Tensor, candidate: Tensor, W: Parameters, b_f: Tensor) -> Tensor:
    g_f, g_in = right_forget(memory, candidate, W, b_f), right_input(memory, candidate, W, b_f)
    memory *= g_f
    memory += g_in * candidate.tanh()
    return memory


FORGOTTEN = "the forget gate is the wrong way round: g_f is the share of M that is kept, and this keeps 1 - g_f"
SWAPPED = "the gates are swapped: the forget gate belongs to M, the input gate to tanh(C)"
TRANSPOSED = "the product is with the transposed weight: items are rows here, so it is C @ W"

UPDATE_BANK = (
    Mistake(FORGOTTEN, update(put=lambda M, C, g_f, g_in: (1 - g_f) * M + g_in * C.tanh())),
    Mistake(SWAPPED, update(put=lambda M, C, g_f, g_in: g_in * M + g_f * C.tanh())),
    Mistake(
        "the candidate lacks its tanh: without it the bank has no bound", update(put=lambda M, C, f, i: f * M + i * C)
    ),
    Mistake(
        "tanh goes around the sum: it belongs to the candidate alone, M is kept as it is",
        update(put=lambda M, C, f, i: (f * M + i * C).tanh()),
    ),
    Mistake(
        "tanh goes around gate and candidate: the gate multiplies tanh(C)",
        update(put=lambda M, C, f, i: f * M + (i * C).tanh()),
    ),
    Mistake("the input gate is not used: all of tanh(C) is let in", update(put=lambda M, C, f, i: f * M + C.tanh())),
    Mistake("the forget gate is not used: all of M is kept", update(put=lambda M, C, f, i: M + i * C.tanh())),
    Mistake(
        "the candidate gets what the forget gate leaves, 1 - g_f: here the two gates are independent",
        update(put=lambda M, C, f, i: f * M + (1 - f) * C.tanh()),
    ),
    Mistake("M itself is missing: this is what is added to it", update(put=lambda M, C, f, i: i * C.tanh())),
    Mistake(
        "both gates look at the wrong thing: the input gate sees what is new, C, and the forget gate what is there, M",
        update(lambda M, C, W, b: (M @ W["in"]).sigmoid(), lambda M, C, W, b: (C @ W["f"] + b).sigmoid()),
    ),
    Mistake("the input gate looks at M: it sees what is new, C", update(lambda M, C, W, b: (M @ W["in"]).sigmoid())),
    Mistake(
        "the forget gate looks at C: it sees what is there, M",
        update(forget_gate=lambda M, C, W, b: (C @ W["f"] + b).sigmoid()),
    ),
    Mistake(
        "the input gate looks at tanh(C): it sees C as it is",
        update(lambda M, C, W, b: (C.tanh() @ W["in"]).sigmoid()),
    ),
    Mistake(
        "the forget gate looks at tanh(M), as the public code has it: here it sees M as it is",
        update(forget_gate=lambda M, C, W, b: (M.tanh() @ W["f"] + b).sigmoid()),
    ),
    Mistake(
        "the two weights are exchanged: W_in belongs to the input gate, W_f to the forget gate",
        update(lambda M, C, W, b: (C @ W["f"]).sigmoid(), lambda M, C, W, b: (M @ W["in"] + b).sigmoid()),
    ),
    Mistake(
        "the bias is missing: g_f = sigmoid(M W_f + b_f)",
        update(forget_gate=lambda M, C, W, b: (M @ W["f"]).sigmoid()),
    ),
    Mistake(
        "the bias stands on the input gate too: only the forget gate has one",
        update(lambda M, C, W, b: (C @ W["in"] + b).sigmoid()),
    ),
    Mistake(
        "the bias stands on the input gate: it belongs to the forget gate",
        update(lambda M, C, W, b: (C @ W["in"] + b).sigmoid(), lambda M, C, W, b: (M @ W["f"]).sigmoid()),
    ),
    Mistake(
        "the bias is added after the sigmoid: a gate is between 0 and 1, this is not",
        update(forget_gate=lambda M, C, W, b: (M @ W["f"]).sigmoid() + b),
    ),
    Mistake(
        TRANSPOSED,
        update(
            lambda M, C, W, b: (C @ W["in"].T).sigmoid(),
            lambda M, C, W, b: (M @ W["f"].T + b).sigmoid(),
        ),
    ),
    Mistake(
        "the gates lack their sigmoid: a gate is between 0 and 1",
        update(lambda M, C, W, b: C @ W["in"], lambda M, C, W, b: M @ W["f"] + b),
    ),
    Mistake(
        "the gates go through a softmax: each number has a gate of its own, and they need not sum to 1",
        update(lambda M, C, W, b: (C @ W["in"]).softmax(-1), lambda M, C, W, b: (M @ W["f"] + b).softmax(-1)),
    ),
    Mistake(
        "the input gate is pooled over the slots: each slot has gates of its own",
        update(lambda M, C, W, b: (C.mean(dim=1, keepdim=True) @ W["in"]).sigmoid()),
    ),
    Mistake(
        "this returns gates beside the bank: the new bank alone is asked",
        update(put=lambda M, C, f, i: (right_sum(M, C, f, i), f, i)),
    ),
    Mistake("the caller's bank is overwritten: `*=` and `+=` change it in place", update_in_place),
    Mistake(
        "the bank is cut off from the graph, so that no gradient reaches what was written before",
        update(put=lambda M, C, f, i: right_sum(M.detach(), C, f, i)),
    ),
)

# 6.3 read_bank

Split = Callable[[Tensor, int], Tensor]
Weigh = Callable[[Tensor, int, int], Tensor]


def right_split(rows: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, d)."""
    return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)


def right_merge(read: Tensor) -> Tensor:
    """(B, H, T, d) -> (B, T, D)."""
    return read.transpose(1, 2).flatten(2)


def right_weigh(scores: Tensor, d: int, D: int) -> Tensor:
    """(B, H, T, S) -> the same, rows sum to 1."""
    return (scores / d**0.5).softmax(dim=-1)


def interleaved(rows: Tensor, n_heads: int) -> Tensor:
    return rows.unflatten(2, (-1, n_heads)).movedim(3, 1)


def viewed(rows: Tensor, n_heads: int) -> Tensor:
    B, T, D = rows.shape
    return rows.reshape(B, n_heads, T, D // n_heads)


def without_gate(E: Tensor, M: Tensor, R: Tensor, W: Parameters) -> Any:
    return R


def gated(E: Tensor, M: Tensor, R: Tensor, W: Parameters) -> Any:
    return (R @ W["out"]).sigmoid() * R


def heads(
    finish: Callable[[Tensor, Tensor, Tensor, Parameters], Any],
    split: Split = right_split,
    weigh: Weigh = right_weigh,
    merge: Callable[[Tensor], Tensor] = right_merge,
    project: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    value: Callable[[Tensor, Parameters], Tensor] = lambda rows, W: rows @ W["v"],
    exchanged: bool = False,
) -> Callable[..., Any]:
    """read_bank, or slots_query_segment, with a part replaced.  `asking` sends the queries, `asked` the rest."""

    def read(asking: Tensor, asked: Tensor, W: Parameters, n_heads: int) -> Any:
        if exchanged:
            asking, asked = asked, asking
        d = asking.shape[2] // n_heads
        q, k = split(project(asking, W["q"]), n_heads), split(project(asked, W["k"]), n_heads)
        v = split(value(asked, W) if project is torch.matmul else project(asked, W["v"]), n_heads)
        R = merge(weigh(q @ k.transpose(-1, -2), d, asking.shape[2]) @ v)
        return finish(asking, asked, R, W)

    return read


def one_head(read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda asking, asked, W, n_heads: read(asking, asked, W, 1)


def over_the_batch_as_heads(asking: Tensor, asked: Tensor, W: Parameters, n_heads: int) -> Tensor:
    """One head's scores, its scale that of n_heads."""
    scores = (asking @ W["q"]) @ (asked @ W["k"]).transpose(1, 2)
    return (scores / (asking.shape[2] // n_heads) ** 0.5).softmax(dim=-1) @ (asked @ W["v"])


def transposed(rows: Tensor, weight: Tensor) -> Tensor:
    return rows @ weight.T


def mixed_back(read: Tensor) -> Tensor:
    B, H, T, d = read.shape
    return read.reshape(B, T, H * d)


def shared_errors(
    finish: Callable[[Tensor, Tensor, Tensor, Parameters], Any], asking: str, asked: str
) -> tuple[Mistake, ...]:
    """What can go wrong in the attention of both exercises."""
    return (
        Mistake(
            f"this looks like a softmax over the {asking}: each column of the weights sums to 1, and each row should",
            heads(finish, weigh=lambda scores, d, D: (scores / d**0.5).softmax(dim=-2)),
        ),
        Mistake(
            "the softmax goes over the heads: each head has one of its own, over what it looks at",
            heads(finish, weigh=lambda scores, d, D: (scores / d**0.5).softmax(dim=1)),
        ),
        Mistake(
            "the scores lack their scale 1/sqrt(d)", heads(finish, weigh=lambda scores, d, D: scores.softmax(dim=-1))
        ),
        Mistake(
            "the scale is that of one large head, 1/sqrt(D): a head's scores are sums over d = D / H columns",
            heads(finish, weigh=lambda scores, d, D: (scores / D**0.5).softmax(dim=-1)),
        ),
        Mistake(
            "the scores are divided by d: the scale is 1/sqrt(d)",
            heads(finish, weigh=lambda scores, d, D: (scores / d).softmax(dim=-1)),
        ),
        Mistake(
            "there is no softmax: weights are positive, and a row sums to 1", heads(finish, weigh=lambda s, d, D: s)
        ),
        Mistake("this is one head, whatever n_heads says", one_head(heads(finish))),
        Mistake(
            "there is one softmax for all heads, with the scale of a small one: each head weighs by itself",
            lambda *case: finish(case[0], case[1], over_the_batch_as_heads(*case), case[2]),
        ),
        Mistake(
            "a direct view as (B, H, T, d) mixes rows with heads: cut the columns first, (B, T, H, d), then transpose",
            heads(finish, split=viewed),
        ),
        Mistake(
            "a direct view as (B, H, T, d) mixes rows with heads, on the way there and back: it does not cancel",
            heads(finish, split=viewed, merge=mixed_back),
        ),
        Mistake(
            "on the way back a view mixes rows with heads: transpose to (B, T, H, d) before the heads are put side by "
            "side",
            heads(finish, merge=mixed_back),
        ),
        Mistake(
            "the heads are cut the other way: head 0 has the first d columns, here it has every H-th one",
            heads(finish, split=interleaved),
        ),
        Mistake(
            "the heads are cut as every H-th column, and put together the same way: head 0 has the first d columns",
            heads(finish, split=interleaved, merge=lambda read: read.movedim(1, 3).flatten(2)),
        ),
        Mistake(
            "the heads are averaged: what they read is put side by side, (B, T, D)",
            heads(finish, merge=lambda read: read.mean(dim=1)),
        ),
        Mistake(TRANSPOSED, heads(finish, project=transposed)),
        Mistake(
            f"the {asked} themselves are read: their values are a projection of them, by the weight called v",
            heads(finish, value=lambda rows, W: rows),
        ),
        Mistake(
            "what is read is the keys: the values have a weight of their own, v",
            heads(finish, value=lambda rows, W: rows @ W["k"]),
        ),
    )


def printed(E: Tensor, M: Tensor, R: Tensor, W: Parameters) -> Tensor:
    return (R @ W["out"]).sigmoid() * M


GATED_READ = (
    Mistake(
        "this is the equation as printed, g_out * M: (B, T, D) times (B, N, D) runs for T = N alone. The gate "
        "multiplies what was read, R",
        heads(printed),
    ),
    Mistake(
        "the queries are the slots' and the keys the tokens': in the read it is the tokens that ask",
        heads(gated, exchanged=True),
    ),
    Mistake("the output gate is missing: this is R", heads(without_gate)),
    Mistake(
        "the output gate looks at the tokens: it should look at what was read, sigmoid(R W_out)",
        heads(lambda E, M, R, W: (E @ W["out"]).sigmoid() * R),
    ),
    Mistake("this is the gate alone: multiply R with it", heads(lambda E, M, R, W: (R @ W["out"]).sigmoid())),
    Mistake(
        "this is R W_out without a sigmoid, an output projection: g_out is a gate between 0 and 1 that multiplies R",
        heads(lambda E, M, R, W: R @ W["out"]),
    ),
    Mistake("the gate lacks its sigmoid: it should be between 0 and 1", heads(lambda E, M, R, W: (R @ W["out"]) * R)),
    Mistake(
        "the gate goes through tanh: it should go through sigmoid, between 0 and 1",
        heads(lambda E, M, R, W: (R @ W["out"]).tanh() * R),
    ),
    Mistake(
        "the gate goes through a softmax: each number has a gate of its own, and they need not sum to 1",
        heads(lambda E, M, R, W: (R @ W["out"]).softmax(dim=-1) * R),
    ),
    Mistake(
        "the gate multiplies the tokens: it should multiply what was read, R",
        heads(lambda E, M, R, W: (R @ W["out"]).sigmoid() * E),
    ),
    Mistake(
        "the tokens are added already: what the bank adds to them is asked, g_out * R",
        heads(lambda E, M, R, W: E + gated(E, M, R, W)),
    ),
    Mistake(
        "the gate mixes R with the tokens: g_out * R is asked, without a share for E",
        heads(lambda E, M, R, W: gated(E, M, R, W) + (1 - (R @ W["out"]).sigmoid()) * E),
    ),
    Mistake(
        "only the gate's weight is transposed: it is R @ W_out",
        heads(lambda E, M, R, W: (R @ W["out"].T).sigmoid() * R),
    ),
    *shared_errors(gated, "tokens", "slots"),
    Mistake(
        "the bank is cut off from the graph, so that no gradient reaches what was written before",
        lambda tokens, memory, W, n_heads: heads(gated)(tokens, memory.detach(), W, n_heads),
    ),
)

# 6.4 slots_query_segment


def causal(scores: Tensor, d: int, D: int) -> Tensor:
    may_look = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return (scores / d**0.5).masked_fill(~may_look, -torch.inf).softmax(dim=-1)


SLOTS_QUERY_SEGMENT = (
    Mistake(
        "in your answer the tokens ask, as in the read: here the slots ask, one row for each slot is wanted, and the "
        "queries are M U_q",
        heads(without_gate, exchanged=True),
    ),
    Mistake(
        "this is tanh(C): the update applies the tanh, and the input gate sees C as it is",
        heads(lambda M, Z, R, U: R.tanh()),
    ),
    Mistake("M is added already: the candidate is what the slots gather, C", heads(lambda M, Z, R, U: M + R)),
    Mistake(
        "the weights are causal, as if slot n were token n: the segment has ended, and every slot may look at all of "
        "it",
        heads(without_gate, weigh=causal),
    ),
    Mistake(
        "every slot gets the mean of the segment: the weights should come from the slots' queries",
        heads(without_gate, weigh=lambda scores, d, D: torch.full_like(scores, 1 / scores.shape[-1])),
    ),
    Mistake(
        "each slot takes the one token that fits best: a softmax mixes all of them, and has a gradient",
        heads(without_gate, weigh=lambda s, d, D: F.one_hot(s.argmax(-1), s.shape[-1]).to(s.dtype)),
    ),
    *shared_errors(without_gate, "slots", "tokens"),
    Mistake(
        "the bank is cut off from the graph: the slots' queries have to learn what is worth asking for",
        lambda memory, segment, U, n_heads: heads(without_gate)(memory.detach(), segment, U, n_heads),
    ),
)

# 6.5 BankLayer


class Layer(nn.Module):
    """The right layer, in parts that a mistake replaces."""

    W_q: nn.Linear
    W_k: nn.Linear
    W_v: nn.Linear
    W_out: nn.Linear
    U_q: nn.Linear
    U_k: nn.Linear
    U_v: nn.Linear
    W_in: nn.Linear

    def __init__(self, d_model: int, segment_len: int) -> None:
        super().__init__()
        self.segment_len = segment_len
        for name in ("W_q", "W_k", "W_v", "W_out", "U_q", "U_k", "U_v", "W_in"):
            self.add_module(name, nn.Linear(d_model, d_model, bias=False))
        self.W_f = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        ys = []
        for E in x.split(self.segment_len, dim=1):
            before = self.carry(memory)
            after = self.write(before, E, x) if self.is_written(E) else before
            R = self.attend(self.W_q(E), *self.seen(before, after))
            ys.append(self.add(E, self.gate(R) * R))
            memory = after
        return self.result(torch.cat(ys, dim=1), memory)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=-1) @ value

    def seen(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        bank = self.read_from(before, after)
        return self.W_k(bank), self.W_v(bank)

    def write(self, M: Tensor, E: Tensor, x: Tensor) -> Tensor:
        C = self.attend(self.U_q(M), self.U_k(E), self.U_v(E))
        return self.kept(M) * M + self.let_in(C, E, x) * C.tanh()

    def carry(self, memory: Tensor) -> Tensor:
        return memory

    def is_written(self, E: Tensor) -> bool:
        return E.shape[1] == self.segment_len

    def read_from(self, before: Tensor, after: Tensor) -> Tensor:
        return before

    def let_in(self, C: Tensor, E: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(self.W_in(C))

    def kept(self, M: Tensor) -> Tensor:
        return torch.sigmoid(self.W_f(M))

    def gate(self, R: Tensor) -> Tensor:
        return torch.sigmoid(self.W_out(R))

    def add(self, E: Tensor, read: Tensor) -> Tensor:
        return E + read

    def result(self, y: Tensor, memory: Tensor) -> Any:
        return y, memory


POOLED_X = (
    "the input gate is a mean over all of x: change the last token, and the bank of the first segment, which "
    "everything after it reads, is another. A gate may see what the slots have gathered, C"
)
OWN_WRITE = (
    "each segment reads a bank in which it has just been written: its last token reaches its first one. Read first, "
    "then write"
)
SHORT_WRITE = (
    "tokens that do not fill a segment are written: a segment is written once its last token is there, and not before"
)
STUB = (
    "these are the numbers of the stub's broken layer. Change x[:, -1] alone: y[:, 0] moves, and it should not. Two "
    "lines bring the last token there"
)
POOLED_E = (
    "the input gate is a mean over its segment, no leak as long as the next segment is the first to read it, but "
    "another gate than asked: sigmoid(W_in(C)), one for each slot"
)
Fault = tuple[str, dict[str, Callable[..., Any]]]
OTHER_FAULTS: tuple[Fault, ...] = (
    (OWN_WRITE, {"read_from": lambda self, before, after: after}),
    (SHORT_WRITE, {"is_written": lambda self, E: True}),
)
POOLED: tuple[Fault, ...] = (
    (POOLED_X, {"let_in": lambda self, C, E, x: torch.sigmoid(self.W_in(x.mean(dim=1, keepdim=True)))}),
    (POOLED_E, {"let_in": lambda self, C, E, x: torch.sigmoid(self.W_in(E.mean(dim=1, keepdim=True)))}),
)


def faults() -> Iterator[Mistake]:
    """The stub's faults alone, by two and all three; the fourth changes no number.

    Of several the first is named.  Of the stub as it stands none is: to find them is what is asked.
    """
    for how_many in (1, 2, 3):
        for some in combinations((*POOLED, *OTHER_FAULTS), how_many):
            parts = {name: part for _, replaced in some for name, part in replaced.items()}
            if len(parts) < how_many:
                continue  # two ways to pool
            says = some[0][0] + ". There is more, and it will be named next" * (how_many > 1)
            yield Mistake(STUB if how_many == 3 and some[0] is POOLED[0] else says, instead(Layer, **parts))


BANK_LAYER = (
    *faults(),
    Mistake(
        "tokens that do not fill a segment are dropped: they read the bank, and are not written",
        instead(
            Layer,
            forward=lambda self, x, memory: (
                Layer.forward(self, x[:, : x.shape[1] // self.segment_len * self.segment_len], memory)
                if x.shape[1] >= self.segment_len
                else (x[:, :0], memory)
            ),
        ),
    ),
    Mistake(
        "nothing is ever written: every segment reads the bank that was given",
        instead(Layer, is_written=lambda self, E: False),
    ),
    Mistake(
        "the output gate is missing: y = E + sigmoid(W_out(R)) * R",
        instead(Layer, gate=lambda self, R: torch.ones_like(R)),
    ),
    Mistake(
        "the tokens themselves are missing: y = E + sigmoid(W_out(R)) * R",
        instead(Layer, add=lambda self, E, read: read),
    ),
    Mistake(
        "the input gate looks at M: it should see what is new, sigmoid(W_in(C))",
        instead(
            Layer,
            write=lambda self, M, E, x: (
                self.kept(M) * M
                + torch.sigmoid(self.W_in(M)) * self.attend(self.U_q(M), self.U_k(E), self.U_v(E)).tanh()
            ),
        ),
    ),
    Mistake(
        "the input gate looks at tanh(C): it should see C as it is",
        instead(Layer, let_in=lambda self, C, E, x: torch.sigmoid(self.W_in(C.tanh()))),
    ),
    Mistake(FORGOTTEN, instead(Layer, kept=lambda self, M: 1 - torch.sigmoid(self.W_f(M)))),
    Mistake("this returns y alone: return (y, memory)", instead(Layer, result=lambda self, y, memory: y)),
    Mistake(
        "the two results are the wrong way round: return (y, memory)",
        instead(Layer, result=lambda self, y, memory: (memory, y)),
    ),
    *(
        Mistake(
            "the numbers are right, and the bank is cut off from the graph between the segments: no loss of a later "
            "segment can teach an earlier one what to write. Without detach, it can",
            cut,
        )
        for cut in (
            instead(Layer, carry=lambda self, memory: memory.detach()),
            instead(Layer, write=lambda self, M, E, x: Layer.write(self, M, E, x).detach()),
        )
    ),
    Mistake(
        "the bank that is handed back is cut off from the graph: a caller that goes on from it can detach it, and "
        "nobody can join it again",
        instead(Layer, result=lambda self, y, memory: (y, memory.detach())),
    ),
)

# 6.6 write_segment


def one_pass(
    M: Tensor, Z: Tensor, U: Parameters, W: Parameters, b_f: Tensor, *, squash: Callable[[Tensor], Tensor] = lambda C: C
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M, and C and the gates of a pass."""
    C = ((M @ U["q"]) @ (Z @ U["k"]).transpose(1, 2) / M.shape[2] ** 0.5).softmax(dim=-1) @ (Z @ U["v"])
    return M, squash(C), (M @ W["f"] + b_f).sigmoid(), (C @ W["in"]).sigmoid()


def right_rows(inputs: Tensor, thoughts: Tensor, writes: str) -> list[Tensor]:
    joint = torch.cat([inputs, thoughts], dim=1)
    return {"input": [inputs], "thought": [thoughts], "both": [inputs, thoughts], "joint": [joint]}[writes]


def in_passes(
    rows: Callable[[Tensor, Tensor, str], list[Tensor]] = right_rows,
    put: Callable[..., Tensor] = lm2.update,
    squash: Callable[[Tensor], Tensor] = lambda C: C,
) -> Callable[..., Tensor]:
    """write_segment, with a part replaced."""

    def write(memory: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
        for Z in rows(inputs, thoughts, writes):
            memory = put(*one_pass(memory, Z, U, W, b_f, squash=squash))
        return memory

    return write


def for_both(both: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """write_segment that does something else for "both"."""

    def write(memory: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
        right = both if writes == "both" else in_passes()
        return right(memory, inputs, thoughts, U, W, b_f, writes)

    return write


def stale_bank(M: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
    """The second pass asks and forgets by the old bank."""
    new = lm2.update(*one_pass(M, inputs, U, W, b_f))
    return lm2.update(new, *one_pass(M, thoughts, U, W, b_f)[1:])


def stale_forget(M: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
    _, _, g_f, _ = first = one_pass(M, inputs, U, W, b_f)
    new, C, _, g_in = one_pass(lm2.update(*first), thoughts, U, W, b_f)
    return lm2.update(new, C, g_f, g_in)


def stale_gates(M: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
    _, _, g_f, g_in = first = one_pass(M, inputs, U, W, b_f)
    new, C, _, _ = one_pass(lm2.update(*first), thoughts, U, W, b_f)
    return lm2.update(new, C, g_f, g_in)


def from_the_old_bank(M: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
    return lm2.update(*one_pass(M, thoughts, U, W, b_f))


def summed(M: Tensor, inputs: Tensor, thoughts: Tensor, U: Any, W: Any, b_f: Tensor, writes: str) -> Tensor:
    both = (lm2.update(*one_pass(M, Z, U, W, b_f)) - M for Z in (inputs, thoughts))
    return M + sum(both)


def other_rows(name: str, rows: Callable[[Tensor, Tensor], list[Tensor]]) -> Callable[..., Tensor]:
    return in_passes(lambda x, y, writes: rows(x, y) if writes == name else right_rows(x, y, writes))


WRITE_SEGMENT = (
    Mistake(
        "the second pass starts from the old bank, so that what the first has written is lost",
        for_both(from_the_old_bank),
    ),
    Mistake(
        "the second pass asks and forgets by the old bank: its queries and its forget gate should see the M that the "
        "first pass has left",
        for_both(stale_bank),
    ),
    Mistake(
        "the second pass has the first one's forget gate: it should see the M that the first pass has left",
        for_both(stale_forget),
    ),
    Mistake(
        "the second pass has the gates of the first: the gates run again, on the new M and the new C",
        for_both(stale_gates),
    ),
    Mistake(
        "the two passes run side by side from the old bank, and are added: the second should start from what the first "
        "has left",
        for_both(summed),
    ),
    Mistake(
        '"both" writes the thoughts first: inputs come first, then thoughts', other_rows("both", lambda x, y: [y, x])
    ),
    Mistake(
        '"both" is one pass over inputs and thoughts together, which is "joint": two passes are asked',
        other_rows("both", lambda x, y: [torch.cat([x, y], dim=1)]),
    ),
    Mistake(
        '"both" writes the inputs alone: a second pass, with the thoughts, is missing',
        other_rows("both", lambda x, y: [x]),
    ),
    Mistake(
        '"joint" runs two passes, which is "both": one softmax over all 2L rows is asked',
        other_rows("joint", lambda x, y: [x, y]),
    ),
    Mistake(
        '"joint" adds thoughts to inputs: they are put one after the other, 2L rows',
        other_rows("joint", lambda x, y: [x + y]),
    ),
    Mistake(
        '"joint" takes the mean of thoughts and inputs: they are put one after the other, 2L rows',
        other_rows("joint", lambda x, y: [(x + y) / 2]),
    ),
    Mistake(
        '"joint" puts thoughts beside inputs, (B, L, 2D): they are put one after the other, (B, 2L, D), with dim=1',
        other_rows("joint", lambda x, y: [torch.cat([x, y], dim=2)]),
    ),
    Mistake(
        '"thought" writes the inputs: Z is thoughts, the outputs of the segment',
        other_rows("thought", lambda x, y: [x]),
    ),
    Mistake("tanh is applied twice: lm2.update applies it itself, and takes C as it is", in_passes(squash=torch.tanh)),
    Mistake(
        "the gates are swapped: lm2.update takes the forget gate before the input gate",
        in_passes(put=lambda M, C, g_f, g_in: lm2.update(M, C, g_in, g_f)),
    ),
    Mistake(
        "bank and candidate are exchanged: lm2.update takes the bank first",
        in_passes(put=lambda M, C, g_f, g_in: lm2.update(C, M, g_f, g_in)),
    ),
    Mistake("`writes` is not looked at: this always writes the inputs alone", in_passes(lambda x, y, writes: [x])),
    Mistake(
        "the bank is cut off from the graph between the passes: the second pass should teach the first",
        for_both(
            lambda M, x, y, U, W, b_f, writes: lm2.update(
                *one_pass(lm2.update(*one_pass(M, x, U, W, b_f)).detach(), y, U, W, b_f)
            )
        ),
    ),
    Mistake(
        "the thoughts are cut off from the graph: what the block thinks is to be trained by what is remembered of it",
        lambda M, x, y, U, W, b_f, writes: in_passes()(M, x, y.detach(), U, W, b_f, writes),
    ),
)

# 6.7 read_segments


def banks_of(x: Tensor, memory: Tensor, write: Write, segment_len: int, last: bool = False) -> list[Tensor]:
    """The bank that is given, and one after each whole segment; last: an unfinished segment is written too."""
    banks = [memory]
    for segment in x.split(segment_len, dim=1):
        if segment.shape[1] == segment_len or last:
            banks.append(write(banks[-1], segment))
    return banks


def folded(
    bank_of: Callable[[list[Tensor], int], Tensor] = lambda banks, s: banks[s],
    order: Callable[[Tensor], Tensor] = lambda banks: banks.flatten(0, 1),
    rest: Callable[[list[Tensor]], Tensor | None] = lambda banks: banks[-1],
    result: Callable[[Tensor, list[Tensor]], Any] = lambda reads, banks: (reads, banks[-1]),
    last: bool = False,
    guarded: bool = True,
) -> Callable[..., Any]:
    """read_segments, with a part replaced."""

    def segments(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> Any:
        B, T, D = x.shape
        banks, S = banks_of(x, memory, write, segment_len, last), T // segment_len
        reads = []
        if S or not guarded:
            whole = x[:, : S * segment_len]
            read_by = order(torch.stack([bank_of(banks, s) for s in range(S)], dim=1))
            reads.append(read(whole.reshape(B * S, segment_len, D), read_by).reshape(B, S * segment_len, D))
        from_bank = rest(banks)
        if T > S * segment_len and from_bank is not None:
            reads.append(read(x[:, S * segment_len :], from_bank))
        return result(torch.cat(reads, dim=1) if reads else x[:, :0], banks)

    return segments


def joined_by_segment(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    """Segments before rows in the batch, and not a thought for a text without a whole segment."""
    banks, S = banks_of(x, memory, write, segment_len), x.shape[1] // segment_len
    whole, rest = x[:, : S * segment_len], x[:, S * segment_len :]
    read_by = torch.cat(banks[:S])  # (S B, N, D)
    reads = read(torch.cat(whole.split(segment_len, dim=1)), read_by).split(len(x))
    return torch.cat([*reads, read(rest, banks[-1])], dim=1), banks[-1]


def by_segment(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    banks = banks_of(x, memory, write, segment_len)
    reads = [read(segment, bank) for segment, bank in zip(x.split(segment_len, dim=1), banks, strict=False)]
    return torch.cat(reads, dim=1), banks[-1]


def one_call_a_row(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    banks = banks_of(x, memory, write, segment_len)
    by_token = torch.stack([banks[t // segment_len] for t in range(x.shape[1])], dim=1)  # (B, T, N, D)
    reads = [read(tokens[:, None], own)[:, 0] for tokens, own in zip(x, by_token, strict=True)]
    return torch.stack(reads), banks[-1]


def padded_and_written(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    T = x.shape[1]
    padded = F.pad(x, (0, 0, 0, -T % segment_len))
    reads, after = folded()(padded, memory, read, write, segment_len)
    return reads[:, :T], after


def first_write_again(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    """All writes at once, from the bank that is given."""
    banks = [memory, *(write(memory, s) for s in x.split(segment_len, dim=1) if s.shape[1] == segment_len)]
    reads = [read(segment, bank) for segment, bank in zip(x.split(segment_len, dim=1), banks, strict=False)]
    return torch.cat(reads, dim=1), banks[-1]


def made_again(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    """All banks anew for every segment: the writes grow with the square of their number."""
    S, banks = x.shape[1] // segment_len, [memory]
    for s in range(1, S + 1):
        banks.append(banks_of(x[:, : s * segment_len], memory, write, segment_len)[-1])
    after = iter(banks[1:])
    return folded()(x, memory, read, lambda M, E: next(after), segment_len)


def no_gradient(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        banks = banks_of(x, memory, write, segment_len)
    return folded()(x, banks[0], read, lambda M, E: banks[banks_at(banks, M) + 1], segment_len)


def banks_at(banks: list[Tensor], memory: Tensor) -> int:
    return next(s for s, bank in enumerate(banks) if bank is memory)


NONE_ENDED = (
    "this stops where no segment has ended, T < segment_len: there are no whole segments to read for then, and all "
    "tokens read the bank that was given"
)

ALL_SEGMENTS = (
    Mistake(
        "each segment reads the bank that it has written itself, a leak: segment s reads what the segments before it "
        "left",
        folded(bank_of=lambda banks, s: banks[s + 1]),
    ),
    Mistake(
        "all segments read the last bank, which has seen them all, a leak: segment s reads what the segments before it "
        "left",
        folded(bank_of=lambda banks, s: banks[-1]),
    ),
    Mistake(
        "all segments read the bank that was given: segment s reads what the segments before it left",
        folded(bank_of=lambda banks, s: banks[0], rest=lambda banks: banks[0]),
    ),
    Mistake(
        "whole segments read the bank that was given: segment s reads what the segments before it left",
        folded(bank_of=lambda banks, s: banks[0]),
    ),
    Mistake(
        "the banks are one segment late: segment s reads the bank that segment s - 1 has left",
        folded(bank_of=lambda banks, s: banks[max(s - 1, 0)], rest=lambda banks: banks[max(len(banks) - 2, 0)]),
    ),
    Mistake(
        "segments and banks stand in the batch in different orders: x.reshape(B * S, L, D) goes through the segments "
        "of row 0 first, and so must the banks, torch.stack(..., dim=1).flatten(0, 1)",
        folded(order=lambda banks: banks.transpose(0, 1).flatten(0, 1)),
    ),
    Mistake(
        "the tokens after the last whole segment are dropped: they read the last bank", folded(rest=lambda banks: None)
    ),
    Mistake(
        "the tokens after the last whole segment read the bank that was given: they read the last bank",
        folded(rest=lambda banks: banks[0]),
    ),
    Mistake(
        "an unfinished segment is written: the last tokens are read for, and not written yet",
        folded(last=True, rest=lambda banks: banks[-2]),
    ),
    Mistake(
        "an unfinished segment is written, and reads itself: the last tokens read the bank of the last whole segment, "
        "and are not written yet",
        folded(last=True),
    ),
    Mistake(
        "the unfinished segment is filled up with zeros and written: to fill it up is fine for the read, but it has "
        "not ended",
        padded_and_written,
    ),
    Mistake(
        "every write starts from the bank that was given, so that each bank knows one segment: writes go on from each "
        "other",
        first_write_again,
    ),
    Mistake(NONE_ENDED, folded(guarded=False)),
    Mistake(NONE_ENDED, joined_by_segment),
    Mistake("this returns the reads alone: return (reads, memory)", folded(result=lambda reads, banks: reads)),
    Mistake(
        "the two results are the wrong way round: return (reads, memory)",
        folded(result=lambda reads, banks: (banks[-1], reads)),
    ),
    Mistake(
        "this returns the bank that was given: the one after the last whole segment is asked",
        folded(result=lambda reads, banks: (reads, banks[0])),
    ),
    Mistake(
        "this returns all banks: the last one is asked",
        folded(result=lambda reads, banks: (reads, torch.stack(banks, dim=1))),
    ),
    Mistake(
        "the banks are made without a gradient: it is through them that a later loss teaches what to write", no_gradient
    ),
    Mistake("this still reads once for each token", token_loop),
    Mistake("this reads once for each segment: all whole segments fit into one call", by_segment),
    Mistake("every bank is made again from the first segment on: it goes on from the one before it", made_again),
)
