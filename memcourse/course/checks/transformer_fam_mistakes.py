"""The known wrong answers of chapter 08, each with the sentence that names it.

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

from memcourse.course.checks.attention_mistakes import instead
from memcourse.course.checks.attention_oracles import Parameters
from memcourse.course.checks.lm2_mistakes import interleaved, mixed_back, right_merge, right_split, transposed, viewed
from memcourse.course.checks.transformer_fam_oracles import ILL, INNER, SUSPECTS, Update, token_loop
from memcourse.course.exercise import Mistake
from memcourse.memory import SequenceMemory

# 8.2 who_may_look


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def right_past(block: int, L: int, m: int) -> Tensor:
    past = ones(L, m * L)
    past[:, : max(0, m - block) * L] = False
    return past


def right_own(L: int) -> Tensor:
    return ones(L, L).tril()


def masks(
    past: Callable[[int, int, int], Tensor] = right_past,
    own: Callable[[int], Tensor] = right_own,
    join: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda past, fed, own: torch.cat([past, fed, own], dim=1),
    fed: Callable[[int, int, int], Tensor] = lambda block, L, n: ones(L, n),
    feedback: Callable[[int, int, int], Tensor] = lambda L, n, m: ones(n, n + L),
    result: Callable[[Tensor, Tensor], Any] = lambda tokens, feedback: (tokens, feedback),
) -> Callable[..., Any]:
    """who_may_look, with a part replaced."""

    def look(block: int, block_len: int, n_feedback: int, n_past_blocks: int) -> Any:
        parts = past(block, block_len, n_past_blocks), fed(block, block_len, n_feedback), own(block_len)
        return result(join(*parts), feedback(block_len, n_feedback, n_past_blocks))

    return look


def missing_last(block: int, L: int, m: int) -> Tensor:
    past = ones(L, m * L)
    past[:, min(block, m) * L :] = False
    return past


def below_zero(block: int, L: int, m: int) -> Tensor:
    past = ones(L, m * L)
    past[:, : (m - block) * L] = False
    return past


def shorter_at_the_start(block: int, L: int, m: int) -> Tensor:
    return ones(L, min(block, m) * L)


def sliding(block: int, L: int, m: int) -> Tensor:
    return right_past(block, L, m) & ones(L, m * L).triu()


def scores(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


WHO_MAY_LOOK = (
    Mistake(
        "the own block is not causal: a token sees those after it, which is a leak", masks(own=lambda L: ones(L, L))
    ),
    Mistake(
        "the own block is upside down: a token sees those after it and none before",
        masks(own=lambda L: ones(L, L).triu()),
    ),
    Mistake("a token does not see itself: the diagonal belongs to it", masks(own=lambda L: ones(L, L).tril(-1))),
    Mistake("a token sees itself alone, and not its block up to itself", masks(own=lambda L: torch.eye(L) > 0)),
    Mistake(
        "blocks before block 0 are seen: their columns are there, empty, and a softmax would spend weight on them",
        masks(past=lambda block, L, m: ones(L, m * L)),
    ),
    Mistake(
        "where past blocks are missing it is the newest ones that are hidden: the oldest stand first, and those are "
        "the "
        "ones that do not exist",
        masks(past=missing_last),
    ),
    Mistake(
        "one past block too few is seen: before block number `block` there are `block` blocks",
        masks(past=lambda block, L, m: right_past(max(0, block - 1), L, m)),
    ),
    Mistake(
        "one past block too many is seen: block number 0 has none before it",
        masks(past=lambda block, L, m: right_past(block + 1, L, m)),
    ),
    Mistake(
        "with more blocks behind than are kept, some are hidden: a slice whose end is below 0 counts from the far side",
        masks(past=below_zero),
    ),
    Mistake("no past block is seen, though there are some", masks(past=lambda block, L, m: ~ones(L, m * L))),
    Mistake(
        "the columns of blocks that do not exist are left out: they are there all the same, and False",
        masks(past=shorter_at_the_start),
    ),
    Mistake(
        "the past slides with the token: all tokens of a block see the same past blocks, whole", masks(past=sliding)
    ),
    Mistake(
        "the feedback stands first: the columns are past blocks, feedback, own block",
        masks(join=lambda past, fed, own: torch.cat([fed, past, own], dim=1)),
    ),
    Mistake(
        "the feedback stands last: the columns are past blocks, feedback, own block",
        masks(join=lambda past, fed, own: torch.cat([past, own, fed], dim=1)),
    ),
    Mistake(
        "the own block stands first: the columns are past blocks, feedback, own block",
        masks(join=lambda past, fed, own: torch.cat([own, fed, past], dim=1)),
    ),
    Mistake(
        "the first block does not see the feedback: what it starts with is a parameter, and is read",
        masks(fed=lambda block, L, n: ones(L, n) & (block > 0)),
    ),
    Mistake(
        "tokens do not see the feedback: it is by this that they remember", masks(fed=lambda block, L, n: ~ones(L, n))
    ),
    Mistake(
        "the feedback's mask is causal: it looks when the block has ended, at all of itself and of the block",
        masks(feedback=lambda L, n, m: ones(n, n + L).tril()),
    ),
    Mistake(
        "the feedback's mask is causal among the feedback: each vector looks at all of them",
        masks(feedback=lambda L, n, m: torch.cat([ones(n, n).tril(), ones(n, L)], dim=1)),
    ),
    Mistake(
        "the feedback does not see itself: without that it could not carry anything on",
        masks(feedback=lambda L, n, m: torch.cat([~ones(n, n), ones(n, L)], dim=1)),
    ),
    Mistake(
        "a feedback vector sees of the feedback itself alone: each looks at all of them",
        masks(feedback=lambda L, n, m: torch.cat([torch.eye(n) > 0, ones(n, L)], dim=1)),
    ),
    Mistake(
        "the feedback does not see the block that it sums up",
        masks(feedback=lambda L, n, m: torch.cat([ones(n, n), ~ones(n, L)], dim=1)),
    ),
    Mistake(
        "the feedback's mask has columns for past blocks: it looks at [feedback; own block] alone",
        masks(feedback=lambda L, n, m: ones(n, m * L + n + L)),
    ),
    Mistake(
        "the feedback's mask lacks the columns of the feedback: it looks at [feedback; own block]",
        masks(feedback=lambda L, n, m: ones(n, L)),
    ),
    Mistake(
        "the masks are the wrong way round: True where a query may look",
        masks(result=lambda tokens, feedback: (~tokens, ~feedback)),
    ),
    Mistake(
        "the masks are transposed: a row for each query, a column for each key",
        masks(result=lambda tokens, feedback: (tokens.T, feedback.T)),
    ),
    Mistake(
        "these are numbers to be added to scores: boolean masks are asked",
        masks(result=lambda tokens, feedback: (scores(tokens), scores(feedback))),
    ),
    Mistake("these are ones and zeros: boolean masks are asked", masks(result=lambda t, f: (t.float(), f.float()))),
    Mistake("these are ones and zeros: boolean masks are asked", masks(result=lambda t, f: (t.long(), f.long()))),
    Mistake("this is the tokens' mask alone: return (tokens, feedback)", masks(result=lambda tokens, feedback: tokens)),
    Mistake(
        "the two masks are the wrong way round: return (tokens, feedback)",
        masks(result=lambda tokens, feedback: (feedback, tokens)),
    ),
    Mistake(
        "this is one mask for both, the feedback's rows below those of the tokens: return two",
        masks(
            result=lambda tokens, feedback: torch.cat(
                [tokens, F.pad(feedback, (tokens.shape[1] - feedback.shape[1], 0))]
            )
        ),
    ),
)

# 8.3 update_feedback

Norm = Callable[[Tensor], Tensor]


def update(
    asking: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda feedback, G, E: G,
    seen: Callable[[Tensor, Tensor, Tensor, Norm], Tensor] = lambda feedback, G, E, norm: torch.cat([G, E], dim=1),
    weigh: Callable[[Tensor, int, int], Tensor] = lambda s, d, D: (s / d**0.5).softmax(dim=-1),
    split: Callable[[Tensor, int], Tensor] = right_split,
    merge: Callable[[Tensor], Tensor] = right_merge,
    project: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    value: str = "v",
    output: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    residual: Callable[[Tensor, Tensor, Tensor], Any] = lambda feedback, G, carries: feedback * carries,
    finish: Callable[..., Any] = lambda A, F, norm, ff: A + ff(norm(A)),
    carries: Callable[[Tensor], Tensor] = lambda blocks: blocks > 0,
) -> Callable[..., Any]:
    """update_feedback, with a part replaced."""

    def new(feedback: Tensor, E: Tensor, blocks: Tensor, W: Parameters, n_heads: int, norm: Norm, ff: Norm) -> Any:
        G = norm(feedback)
        keys, d = seen(feedback, G, E, norm), feedback.shape[2] // n_heads
        q, k, v = (
            split(project(rows, W[name]), n_heads)
            for rows, name in ((asking(feedback, G, E), "q"), (keys, "k"), (keys, value))
        )
        read = output(merge(weigh(q @ k.mT, d, feedback.shape[2]) @ v), W["o"] if project is torch.matmul else W["o"].T)
        A = read + residual(feedback, G, carries(blocks)[:, None, None])
        return finish(A, feedback, norm, ff)

    return new


def in_one_head(feedback: Tensor, E: Tensor, blocks: Tensor, W: Parameters, n_heads: int, norm: Norm, ff: Norm) -> Any:
    return update()(feedback, E, blocks, W, 1, norm, ff)


def cut_off(feedback: Tensor, E: Tensor, blocks: Tensor, W: Parameters, n_heads: int, norm: Norm, ff: Norm) -> Any:
    return update()(feedback.detach(), E, blocks, W, n_heads, norm, ff)


def cut_residual(feedback: Tensor, G: Tensor, carries: Tensor) -> Tensor:
    return feedback.detach() * carries


def update_in_place(
    feedback: Tensor, E: Tensor, blocks: Tensor, W: Parameters, n_heads: int, norm: Norm, ff: Norm
) -> Any:
    new = update()(feedback, E, blocks, W, n_heads, norm, ff)
    feedback *= 0
    return new


def causal(s: Tensor, d: int, D: int) -> Tensor:
    may_look = ones(*s.shape[-2:]).tril()
    return (s / d**0.5).masked_fill(~may_look, -torch.inf).softmax(dim=-1)


UPDATE_FEEDBACK = (
    Mistake(
        "the residual is there in every row: in a row's first update, blocks = 0, it is zero",
        update(carries=lambda blocks: blocks >= 0),
    ),
    Mistake(
        "the residual copy is missing: F_{tau-1} is added to what the feedback has read. Without it nothing is carried "
        "on, "
        "and the method fails",
        update(residual=lambda feedback, G, carries: 0),
    ),
    Mistake(
        "the residual is the wrong way round: it is zero where blocks = 0, and there it is added",
        update(carries=lambda blocks: blocks == 0),
    ),
    Mistake(
        "the residual begins one block too late: a row with one finished block has feedback to carry on",
        update(carries=lambda blocks: blocks > 1),
    ),
    Mistake(
        "all rows get a residual, or none: `blocks` has a number for each row",
        update(carries=lambda blocks: (blocks > 0).all().expand(len(blocks))),
    ),
    Mistake(
        "all rows go by the first one: `blocks` has a number for each row",
        update(carries=lambda blocks: (blocks[:1] > 0).expand(len(blocks))),
    ),
    Mistake(
        "the residual is multiplied with the number of blocks: it is there or not",
        update(carries=lambda blocks: blocks),
    ),
    Mistake(
        "the residual is the norm of the feedback, G: F_{tau-1} itself is carried on",
        update(residual=lambda feedback, G, carries: G * carries),
    ),
    Mistake(
        "the feed-forward is missing: the feedback goes through it as tokens do. Without it the method fails",
        update(finish=lambda A, F, norm, ff: A),
    ),
    Mistake("the feed-forward lacks its residual: A + ff(norm(A))", update(finish=lambda A, F, norm, ff: ff(norm(A)))),
    Mistake("the feed-forward lacks its norm: A + ff(norm(A))", update(finish=lambda A, F, norm, ff: A + ff(A))),
    Mistake(
        "the feed-forward's residual is F_{tau-1}: it is A^F, which has seen the block",
        update(finish=lambda A, F, norm, ff: F + ff(norm(A))),
    ),
    Mistake(
        "the feed-forward sees F_{tau-1}: it sees A^F, which has seen the block",
        update(finish=lambda A, F, norm, ff: A + ff(norm(F))),
    ),
    Mistake(
        "the residual of the feed-forward is the norm of A: A + ff(norm(A))",
        update(finish=lambda A, F, norm, ff: norm(A) + ff(norm(A))),
    ),
    Mistake("a norm stands at the end: F is handed on as it is", update(finish=lambda A, F, n, ff: n(A + ff(n(A))))),
    Mistake("the feedback does not look at itself: its keys are [G; E]", update(seen=lambda feedback, G, E, norm: E)),
    Mistake(
        "the feedback does not look at the block: its keys are [G; E]", update(seen=lambda feedback, G, E, norm: G)
    ),
    Mistake(
        "keys and values of the feedback are made without the norm: [G; E], and G = norm(F)",
        update(seen=lambda feedback, G, E, norm: torch.cat([feedback, E], dim=1)),
    ),
    Mistake(
        "queries, keys and values of the feedback are made without the norm: G = norm(F)",
        update(
            asking=lambda feedback, G, E: feedback,
            seen=lambda feedback, G, E, norm: torch.cat([feedback, E], dim=1),
        ),
    ),
    Mistake("the queries are made without the norm: G = norm(F)", update(asking=lambda feedback, G, E: feedback)),
    Mistake(
        "the tokens go through the norm a second time: E has been through it already",
        update(seen=lambda feedback, G, E, norm: torch.cat([G, norm(E)], dim=1)),
    ),
    Mistake("the attention is causal: the block has ended, and feedback sees all of it", update(weigh=causal)),
    Mistake("the output projection W_o is missing", update(output=lambda read, o: read)),
    Mistake(
        "what is read is the keys: values have a weight of their own, v",
        update(value="k"),
    ),
    Mistake(
        "the products are with the transposed weights: rows are items here, so it is G @ W", update(project=transposed)
    ),
    Mistake(
        "this looks like a softmax over the feedback: each column of the weights sums to 1, and each row should",
        update(weigh=lambda s, d, D: (s / d**0.5).softmax(dim=-2)),
    ),
    Mistake("the scores lack their scale 1/sqrt(d)", update(weigh=lambda s, d, D: s.softmax(dim=-1))),
    Mistake(
        "the scale is that of one large head, 1/sqrt(D): a head's scores are sums over d = D / H columns",
        update(weigh=lambda s, d, D: (s / D**0.5).softmax(dim=-1)),
    ),
    Mistake("the scores are divided by d: the scale is 1/sqrt(d)", update(weigh=lambda s, d, D: (s / d).softmax(-1))),
    Mistake("there is no softmax: weights are positive, and a row sums to 1", update(weigh=lambda s, d, D: s)),
    Mistake("this is one head, whatever n_heads says", in_one_head),
    Mistake(
        "a direct view as (B, H, n, d) mixes rows with heads: cut the columns first, (B, n, H, d), then transpose",
        update(split=viewed),
    ),
    Mistake(
        "on the way back a view mixes rows with heads: transpose to (B, n, H, d) before the heads are put side by side",
        update(merge=mixed_back),
    ),
    Mistake(
        "a direct view mixes rows with heads, on the way there and back: it does not cancel",
        update(split=viewed, merge=mixed_back),
    ),
    Mistake(
        "the heads are cut the other way: head 0 has the first d columns, here it has every H-th one",
        update(split=interleaved),
    ),
    Mistake(
        "this is [G; E] attended by itself, tokens and all: only the feedback asks, F rows",
        update(
            asking=lambda feedback, G, E: torch.cat([G, E], dim=1),
            residual=lambda feedback, G, carries: 0,
        ),
    ),
    Mistake("the caller's feedback is overwritten: make new numbers", update_in_place),
    Mistake(
        "the feedback is cut off from the graph: no later loss can teach an earlier block what to hand on", cut_off
    ),
    Mistake(
        "the residual is cut off from the graph: it is the straightest way back to earlier blocks",
        update(residual=cut_residual),
    ),
)

# 8.4 FeedbackLayer


class Layer(nn.Module):
    """The right layer, in parts that a mistake replaces."""

    W_q: nn.Linear
    W_k: nn.Linear
    W_v: nn.Linear
    W_o: nn.Linear

    def __init__(self, d_model: int, block_len: int) -> None:
        super().__init__()
        self.block_len = block_len
        self.norm, self.ff_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        for name in ("W_q", "W_k", "W_v", "W_o"):
            self.add_module(name, nn.Linear(d_model, d_model, bias=False))
        self.expand = nn.Linear(d_model, INNER * d_model, bias=False)
        self.contract = nn.Linear(INNER * d_model, d_model, bias=False)

    def attend(self, asking: Tensor, asked: Tensor, may_look: Tensor | None = None) -> Tensor:
        scores = self.W_q(asking) @ self.W_k(asked).mT / asking.shape[2] ** 0.5
        if may_look is not None:
            scores = scores.masked_fill(~may_look, -torch.inf)
        return self.W_o(scores.softmax(dim=-1) @ self.W_v(asked))

    def feed_forward(self, A: Tensor) -> Tensor:
        return A + self.contract(F.gelu(self.expand(self.ff_norm(A))))

    def forward(self, x: Tensor, feedback: Tensor) -> Any:
        ys, past, first = [], x[:, :0], True
        for X in x.split(self.block_len, dim=1):
            E, before = self.norm(X), self.carry(feedback)
            after = before
            if self.ends(X):
                G = self.norm(before)
                read = self.attend(G, self.asked(past, G, E))
                after = self.passed(read + self.residual(before, first))
            G = self.norm(self.read_from(before, after))
            width = past.shape[1] + G.shape[1]
            A = X + self.attend(E, torch.cat([past, G, E], dim=1), self.may_look(X.shape[1], width))
            ys.append(self.feed_forward(A))
            feedback, past, first = after, self.kept(past, E), False
        return self.result(torch.cat(ys, dim=1), feedback)

    def carry(self, feedback: Tensor) -> Tensor:
        return feedback

    def ends(self, X: Tensor) -> bool:
        return X.shape[1] == self.block_len

    def asked(self, past: Tensor, G: Tensor, E: Tensor) -> Tensor:
        return torch.cat([G, E], dim=1)

    def residual(self, before: Tensor, first: bool) -> Any:
        return 0 if first else before

    def passed(self, A: Tensor) -> Tensor:
        return self.feed_forward(A)

    def read_from(self, before: Tensor, after: Tensor) -> Tensor:
        return before

    def may_look(self, length: int, before: int) -> Tensor:
        return ones(length, before + length).tril(before)

    def kept(self, past: Tensor, E: Tensor) -> Tensor:
        return E

    def result(self, y: Tensor, feedback: Tensor) -> Any:
        return y, feedback


Fault = tuple[str, dict[str, Callable[..., Any]]]
FAULTS: tuple[Fault, ...] = (
    (
        "tokens read the feedback of their own block, which has seen all of the block: its last token reaches its "
        "first "
        "one, a leak. Tokens read first, then the feedback is made new",
        {"read_from": lambda self, before, after: after},
    ),
    (
        "the feedback looks at the past block too: it looks at itself and at the block that has ended; what was before "
        "has reached it already",
        {"asked": lambda self, past, G, E: torch.cat([past, G, E], dim=1)},
    ),
    (
        "the residual copy is missing: A_F = F + attend(...), in all blocks but the first. Without it a layer has to "
        "read the whole past anew from its own keys, and fails",
        {"residual": lambda self, before, first: 0},
    ),
    (
        "the feedback does not go through the feed-forward: F = feed_forward(A_F). The paper found this pass essential",
        {"passed": lambda self, A: A},
    ),
)
OTHER_FAULTS: tuple[Fault, ...] = (
    (
        "the residual is there in the first block too: what a layer starts with is read, and not carried on",
        {"residual": lambda self, before, first: before},
    ),
)
STUB = (
    "these are the numbers of the stub's broken layer. Change the last token of the first block alone: the first "
    "token's y moves, and it should not"
)


def faults() -> Iterator[Mistake]:
    """The stub's faults alone, and any of them together; of several the first is named, of all four none."""
    every = (*FAULTS, *OTHER_FAULTS)
    for how_many in range(1, len(FAULTS) + 1):
        for some in combinations(every, how_many):
            parts = {name: part for _, replaced in some for name, part in replaced.items()}
            if len(parts) < how_many:
                continue  # two residuals
            says = some[0][0] + ". There is more, and it will be named next" * (how_many > 1)
            yield Mistake(STUB if some == FAULTS else says, instead(Layer, **parts))


FEEDBACK_LAYER = (
    *faults(),
    Mistake(
        "tokens that do not fill a block change the feedback: it is made when a block's last token is there",
        instead(Layer, ends=lambda self, X: True),
    ),
    Mistake("the feedback is never made new", instead(Layer, ends=lambda self, X: False)),
    Mistake(
        "tokens that do not fill a block are dropped: they are answered as all others",
        instead(
            Layer,
            forward=lambda self, x, feedback: (
                Layer.forward(self, x[:, : x.shape[1] // self.block_len * self.block_len], feedback)
                if x.shape[1] >= self.block_len
                else (x[:, :0], feedback)
            ),
        ),
    ),
    Mistake(
        "all past blocks are kept: a token looks at the block before its own, and no further",
        instead(Layer, kept=lambda self, past, E: torch.cat([past, E], dim=1)),
    ),
    Mistake("the past block is not kept: tokens look at it", instead(Layer, kept=lambda self, past, E: past)),
    Mistake(
        "the mask is gone: in its own block a token looks up to itself",
        instead(Layer, may_look=lambda self, length, before: ones(length, before + length)),
    ),
    Mistake(
        "the mask hides too much: past block and feedback are seen by all tokens of the block",
        instead(Layer, may_look=lambda self, length, before: ones(length, before + length).tril()),
    ),
    Mistake(
        "the feed-forward's residual is missing for the feedback, or there twice: F = feed_forward(A_F), which adds "
        "A_F "
        "itself",
        instead(Layer, passed=lambda self, A: A + self.feed_forward(A)),
    ),
    Mistake(
        "the feedback is kept after the norm: F itself is handed on, and the norm is applied when it is used",
        instead(Layer, residual=lambda self, before, first: 0 if first else self.norm(before)),
    ),
    Mistake("this returns y alone: return (y, feedback)", instead(Layer, result=lambda self, y, feedback: y)),
    Mistake(
        "the two results are the wrong way round: return (y, feedback)",
        instead(Layer, result=lambda self, y, feedback: (feedback, y)),
    ),
    Mistake(
        "the numbers are right, and the feedback is cut off from the graph between the blocks: no loss of a later "
        "block "
        "can teach an earlier one what to hand on",
        instead(Layer, carry=lambda self, feedback: feedback.detach()),
    ),
    Mistake(
        "the feedback that is handed back is cut off from the graph: a caller that goes on from it can detach it, and "
        "nobody can join it again",
        instead(Layer, result=lambda self, y, feedback: (y, feedback.detach())),
    ),
)

# 8.5 read_blocks


def feedbacks(E: Tensor, feedback: Tensor, update: Update, L: int) -> list[Tensor]:
    """The one that is given, and one after each block."""
    found = [feedback]
    for block in E.split(L, dim=1):
        found.append(update(found[-1], block))
    return found


def right_blocks_mask(S: int, L: int, n_feedback: int) -> Tensor:
    mask = ones(L, 2 * L + n_feedback).tril(L + n_feedback).repeat(S, 1, 1)
    mask[0, :, :L] = False
    return mask


def at_once(
    read_by: Callable[[list[Tensor]], list[Tensor]] = lambda found: found[:-1],
    made: Callable[[Tensor, Tensor, Update, int], list[Tensor]] = feedbacks,
    past: Callable[[Tensor], Tensor] = lambda blocks: F.pad(blocks, (0, 0, 0, 0, 1, 0))[:, :-1],
    mask: Callable[[int, int, int], Tensor] = right_blocks_mask,
    scale: Callable[[Tensor, int], Tensor] = lambda scores, D: scores / D**0.5,
    axis: int = -1,
    result: Callable[[Tensor, list[Tensor]], Any] = lambda reads, found: (reads, found[-1]),
    stacked: Callable[[list[Tensor]], Tensor] = lambda found: torch.stack(found, dim=1),
) -> Callable[..., Any]:
    """read_blocks, with a part replaced."""

    def read(E: Tensor, feedback: Tensor, W: Parameters, update: Update, block_len: int) -> Any:
        blocks = E.unflatten(1, (-1, block_len))  # (B, S, L, D)
        found = made(E, feedback, update, block_len)
        seen = torch.cat([past(blocks), stacked(read_by(found)), blocks], dim=2)
        scores = scale((blocks @ W["q"]) @ (seen @ W["k"]).mT, E.shape[2])
        scores = scores.masked_fill(~mask(blocks.shape[1], block_len, feedback.shape[1]), -torch.inf)
        return result((scores.softmax(dim=axis) @ (seen @ W["v"])).flatten(1, 2), found)

    return read


def block_by_block(E: Tensor, feedback: Tensor, W: Parameters, update: Update, block_len: int) -> Any:
    reads, past = [], E[:, :0]
    for block in E.split(block_len, dim=1):
        seen = torch.cat([past, feedback, block], dim=1)
        scores = (block @ W["q"]) @ (seen @ W["k"]).mT / E.shape[2] ** 0.5
        may_look = ones(*scores.shape[1:]).tril(seen.shape[1] - block_len)
        reads.append(scores.masked_fill(~may_look, -torch.inf).softmax(dim=-1) @ (seen @ W["v"]))
        feedback, past = update(feedback, block), block
    return torch.cat(reads, dim=1), feedback


def made_again(E: Tensor, feedback: Tensor, update: Update, L: int) -> list[Tensor]:
    """Every feedback from the first block on."""
    return [feedback, *(feedbacks(E[:, : n * L], feedback, update, L)[-1] for n in range(1, E.shape[1] // L + 1))]


def from_the_given(E: Tensor, feedback: Tensor, update: Update, L: int) -> list[Tensor]:
    return [feedback, *(update(feedback, block) for block in E.split(L, dim=1))]


def no_gradient(E: Tensor, feedback: Tensor, update: Update, L: int) -> list[Tensor]:
    with torch.no_grad():
        return [feedback, *feedbacks(E, feedback, update, L)[1:]]


def without_the_first(S: int, L: int, n_feedback: int) -> Tensor:
    return ones(L, 2 * L + n_feedback).tril(L + n_feedback).repeat(S, 1, 1)


def not_causal(S: int, L: int, n_feedback: int) -> Tensor:
    mask = ones(S, L, 2 * L + n_feedback)
    mask[0, :, :L] = False
    return mask


def causal_from_the_left(S: int, L: int, n_feedback: int) -> Tensor:
    mask = ones(L, 2 * L + n_feedback).tril().repeat(S, 1, 1)
    mask[0, :, :L] = ones(L, L).tril()
    return mask


def no_past(S: int, L: int, n_feedback: int) -> Tensor:
    mask = right_blocks_mask(S, L, n_feedback)
    mask[:, :, :L] = False
    return mask


def sliding_past(S: int, L: int, n_feedback: int) -> Tensor:
    mask = right_blocks_mask(S, L, n_feedback)
    mask[:, :, :L] &= ones(L, L).triu()
    return mask


def no_first_feedback(S: int, L: int, n_feedback: int) -> Tensor:
    mask = right_blocks_mask(S, L, n_feedback)
    mask[0, :, L : L + n_feedback] = False
    return mask


READ_BLOCKS = (
    Mistake(
        "each block reads the feedback that it has made itself, a leak: block s reads what block s - 1 has left",
        at_once(read_by=lambda found: found[1:]),
    ),
    Mistake(
        "all blocks read the last feedback, which has seen them all, a leak",
        at_once(read_by=lambda found: found[-1:] * (len(found) - 1)),
    ),
    Mistake(
        "all blocks read the feedback that was given: block s reads what block s - 1 has left",
        at_once(read_by=lambda found: found[:1] * (len(found) - 1)),
    ),
    Mistake(
        "every feedback is made from the one that was given: each goes on from the one before it",
        at_once(made=from_the_given),
    ),
    Mistake(
        "the first block looks at a past block of zeros: a zero key has the score 0, and takes weight away. Mask it",
        at_once(mask=without_the_first),
    ),
    Mistake(
        "the first block looks at the last block as its past: roll goes around. Its past columns are to be masked",
        at_once(past=lambda blocks: blocks.roll(1, dims=1), mask=without_the_first),
    ),
    Mistake(
        "the past block is the next one, a leak", at_once(past=lambda blocks: F.pad(blocks, (0, 0, 0, 0, 0, 1))[:, 1:])
    ),
    Mistake("the past block is the own one: it is the one before", at_once(past=lambda blocks: blocks)),
    Mistake("tokens do not look at the past block", at_once(mask=no_past)),
    Mistake(
        "the past slides with the token: all tokens of a block look at the whole block before",
        at_once(mask=sliding_past),
    ),
    Mistake("the own block is not causal: a token looks up to itself, and this is a leak", at_once(mask=not_causal)),
    Mistake(
        "the causal mask lies over past and feedback too: only the own block's columns are causal, so the diagonal "
        "begins "
        "at L + F",
        at_once(mask=causal_from_the_left),
    ),
    Mistake(
        "the first block does not look at the feedback: it reads the one that was given",
        at_once(mask=no_first_feedback),
    ),
    Mistake("the scores lack their scale 1/sqrt(D)", at_once(scale=lambda scores, D: scores)),
    Mistake(
        "the scores are divided by D: the scale is 1/sqrt(D)",
        at_once(scale=lambda scores, D: scores / D),
    ),
    Mistake("this returns the reads alone: return (reads, feedback)", at_once(result=lambda reads, found: reads)),
    Mistake(
        "the two results are the wrong way round: return (reads, feedback)",
        at_once(result=lambda reads, found: (found[-1], reads)),
    ),
    Mistake(
        "this returns the feedback that was given: the one after the last block is asked",
        at_once(result=lambda reads, found: (reads, found[0])),
    ),
    Mistake(
        "this returns the feedback that the last block reads: the one after it is asked",
        at_once(result=lambda reads, found: (reads, found[-2])),
    ),
    Mistake(
        "this returns every feedback: the last one is asked",
        at_once(result=lambda reads, found: (reads, torch.stack(found, dim=1))),
    ),
    Mistake(
        "feedback and blocks stand in different orders: a view as (B, S, F, D) of what was joined along F or the batch "
        "mixes rows; torch.stack(..., dim=1) keeps them apart",
        at_once(stacked=lambda found: torch.stack(found).reshape(len(found[0]), len(found), *found[0].shape[1:])),
    ),
    Mistake(
        "the feedback is made without a gradient: it is through it that a later loss teaches what to hand on",
        at_once(made=no_gradient),
    ),
    Mistake(
        "every feedback is made again from the first block on: it goes on from the one before it",
        at_once(made=made_again),
    ),
    Mistake("this still goes token by token", token_loop),
    Mistake("this reads block by block: the tokens of all blocks can read at once", block_by_block),
)

# 8.6 Patient


class Sound(nn.Module):
    """The repaired model, in parts that a mistake replaces."""

    findings: Any = dict(ILL)
    shift: nn.Linear
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear

    def __init__(self, n_words: int, d_model: int, segment_len: int) -> None:
        super().__init__()
        self.segment_len = segment_len
        self.embedding = nn.Embedding(n_words, d_model)
        for name in ("shift", "query", "key", "value"):
            self.add_module(name, nn.Linear(d_model, d_model, bias=False))
        self.write = nn.Linear(d_model, 1)
        self.forget_bias = nn.Parameter(torch.full((d_model,), self.bias()))

    def bias(self) -> float:
        return 4.0

    def before(self, e: Tensor) -> Tensor:
        return F.pad(e, (0, 0, 1, 0))[:, :-1]

    def carry(self, memory: Tensor) -> Tensor:
        return memory

    def gate(self) -> Tensor:
        return torch.sigmoid(self.forget_bias)[:, None]

    def ends(self, segment: Tensor) -> bool:
        return segment.shape[1] == self.segment_len

    def remember(self, memory: Tensor, x: Tensor) -> Tensor:
        written = (torch.sigmoid(self.write(x)) * self.key(x)).mT @ self.value(x)
        return self.gate() * memory + written

    def forward(self, tokens: Tensor) -> Any:
        e = self.embedding(tokens)
        x = e + self.shift(self.before(e))
        memory, reads = x.new_zeros(len(x), x.shape[2], x.shape[2]), []
        for segment in x.split(self.segment_len, dim=1):
            reads.append(self.query(segment) @ memory)
            if self.ends(segment):
                memory = self.carry(self.remember(memory, segment))
        return self.logits(torch.cat(reads, dim=1))

    def logits(self, reads: Tensor) -> Any:
        return reads @ self.embedding.weight.T

    @staticmethod
    def n_segments(step: int) -> Any:
        return 2 + step % 5


def before_in_segments(self: Sound, e: Tensor) -> Tensor:
    return torch.cat([F.pad(part, (0, 0, 1, 0))[:, :-1] for part in e.split(self.segment_len, dim=1)], dim=1)


def found(name: str) -> dict[str, bool]:
    return ILL | {name: not ILL[name]}


CUT = (
    "the memory is still cut off from the graph between the segments: no loss can teach an earlier "
    "segment what to write"
)
UNBOUND = "a token is still bound to itself: shift should see the token before, so that a value's token carries its key"
FORGETS = (
    "a fresh gate forgets too fast: a bias of -2 keeps 12 % a segment and one of 2 keeps 13 % for 16 of them; what is "
    "gone "
    "teaches nothing"
)
ILL_PARTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (UNBOUND, {"before": lambda self, e: e}),
    (CUT, {"carry": lambda self, memory: memory.detach()}),
    (FORGETS, {"bias": lambda self: -2.0}),
    (
        "training still sees one number of segments: what comes in between is never met, and need not be left alone",
        {"n_segments": staticmethod(lambda step: 2)},
    ),
)


def still_ill() -> Iterator[Mistake]:
    """What is left of the four faults; the first of them is named."""
    for how_many in range(1, len(ILL_PARTS) + 1):
        for some in combinations(ILL_PARTS, how_many):
            parts = {name: part for _, replaced in some for name, part in replaced.items()}
            yield Mistake(some[0][0], instead(Sound, **parts))


PATIENT = (
    *(
        Mistake(f"the finding {name!r} is wrong; measure: {SUSPECTS[name]}", instead(Sound, findings=found(name)))
        for name in ILL
    ),
    Mistake("the findings are not written down yet: the first step is to measure", instead(Sound, findings=None)),
    *still_ill(),
    Mistake(
        "the shift looks at the token after: the value's token should carry the key before it, and this is a leak",
        instead(Sound, before=lambda self, e: F.pad(e, (0, 0, 0, 1))[:, 1:]),
    ),
    Mistake(
        "the shift goes around: roll brings the last token of all before the first, a leak. A zero stands there",
        instead(Sound, before=lambda self, e: e.roll(1, dims=1)),
    ),
    Mistake(
        "the shift starts anew in each segment: the token before a segment's first one is the last of the segment "
        "before",
        instead(Sound, before=before_in_segments),
    ),
    Mistake(
        "the gate is the wrong way round: g is the share of M that is kept",
        instead(Sound, gate=lambda self: 1 - torch.sigmoid(self.forget_bias)[:, None]),
    ),
    Mistake(
        "the forget gate is gone: M after a segment is g * M and what is written", instead(Sound, gate=lambda self: 1.0)
    ),
    Mistake(
        "the gate stands on the columns of M: it has one number for each row",
        instead(Sound, gate=lambda self: torch.sigmoid(self.forget_bias)),
    ),
    Mistake(
        "tokens that do not fill a segment are written, and nobody reads them: this is right in the numbers of a text, "
        "but the last tokens wait for their segment",
        instead(
            Sound,
            forward=lambda self, tokens: Sound.forward(
                self, tokens[:, : max(self.segment_len, tokens.shape[1] // self.segment_len * self.segment_len)]
            ),
        ),
    ),
    Mistake(
        "the gate is so far open that it can no longer learn: a bias of 4 keeps three quarters for 16 segments",
        instead(Sound, bias=lambda self: 20.0),
    ),
    Mistake(FORGETS, instead(Sound, bias=lambda self: 2.0)),
    Mistake(
        "n_segments goes beyond 6: what is trained is 2 to 6, and 16 is the test",
        instead(Sound, n_segments=staticmethod(lambda step: 2 + step % 15)),
    ),
)

# 8.7 MyMemory


class Mine(SequenceMemory):
    """A vector that keeps a share of itself, in parts that a mistake replaces."""

    level = "mixer"
    width: Any = 48

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.config = {"d_model": d_model}
        self.new = nn.Linear(d_model, d_model)
        self.gate = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return (torch.zeros(batch_size, self.config["d_model"], device=device, dtype=dtype),)

    def advance(self, x: Tensor, state: Any) -> Any:
        h, hs = self.start(state), []
        for x_t in self.seen(x).unbind(dim=1):
            g = torch.sigmoid(self.gate(x_t))
            h = g * h + (1 - g) * self.new(x_t)
            hs.append(h)
        return self.result(x, torch.stack(hs, dim=1), state)

    def start(self, state: Any) -> Tensor:
        return state[0]

    def seen(self, x: Tensor) -> Tensor:
        return x

    def result(self, x: Tensor, h: Tensor, state: Any) -> Any:
        return self.out(h), (h[:, -1],)


class OnSelf(Mine):
    """The state lives on the module."""

    def start(self, state: Any) -> Tensor:
        kept = getattr(self, "h", None)
        return state[0] if kept is None or kept.shape != state[0].shape else kept

    def result(self, x: Tensor, h: Tensor, state: Any) -> Any:
        self.h = h[:, -1]
        return self.out(h), (h[:, -1],)


class Growing(Mine):
    """A cache of all tokens."""

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return (torch.zeros(batch_size, 0, self.config["d_model"], device=device, dtype=dtype),)

    def advance(self, x: Tensor, state: Any) -> Any:
        tokens = torch.cat([state[0], x], dim=1)
        query, key, value = self.gate(x), self.new(tokens), self.out(tokens)
        before = state[0].shape[1]
        may_look = ones(x.shape[1], tokens.shape[1]).tril(before)
        weights = (query @ key.mT).masked_fill(~may_look, -torch.inf).softmax(dim=-1)
        return weights @ value, (tokens,)


class AlwaysFloat32(Mine):
    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Any:
        return (torch.zeros(batch_size, self.config["d_model"], device=device),)


class NoConfig(Mine):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.config = {"width": d_model}


class NoLevel(Mine):
    level = "block"


class Idle(Mine):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.spare = nn.Parameter(torch.zeros(1))


class OwnForward(Mine):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.advance(x, self.initial_state(len(x)) if state is None else state)


FUTURE = (
    "something is made of the whole chunk, its mean or its last state perhaps, and read by tokens that come before its "
    "end"
)
AFRESH = (
    "every chunk starts afresh: the state that comes in is not used, or the state that goes out is the one that came in"
)
CUTS = (
    "the state that goes out should be that after the chunk's last token, and nothing may happen once a chunk that "
    "should "
    "happen once a token"
)

MY_MEMORY = (
    Mistake(
        'level should be "mixer": it stands where attention stands, and the arena\'s model brings the rest', NoLevel
    ),
    Mistake('config lacks the width: {"d_model": d_model}, every argument of __init__ by its name', NoConfig),
    Mistake(
        "advance returns y alone: the state goes on beside it",
        instead(Mine, result=lambda self, x, h, state: self.out(h)),
    ),
    Mistake("forward is defined anew: the inherited one checks what comes in, and calls advance", OwnForward),
    Mistake(
        "y has one vector for the whole chunk: one for each token is asked",
        instead(Mine, result=lambda self, x, h, state: (self.out(h[:, -1:]), (h[:, -1],))),
    ),
    Mistake(
        FUTURE,
        instead(Mine, seen=lambda self, x: x - x.mean(dim=1, keepdim=True)),
    ),
    Mistake(
        FUTURE,
        instead(Mine, result=lambda self, x, h, state: (self.out(h[:, -1:].expand_as(h)), (h[:, -1],))),
    ),
    Mistake("the running state lives on the module, and is carried into the next, unrelated text", OnSelf),
    Mistake("initial_state does nothing with its `dtype`: zeros take it, torch.zeros(..., dtype=dtype)", AlwaysFloat32),
    Mistake(
        AFRESH,
        instead(Mine, start=lambda self, state: torch.zeros_like(state[0])),
    ),
    Mistake(
        AFRESH,
        instead(Mine, result=lambda self, x, h, state: (self.out(h), state)),
    ),
    Mistake(
        CUTS,
        instead(Mine, result=lambda self, x, h, state: (self.out(h), (h[:, 0],))),
    ),
    Mistake(
        CUTS,
        instead(Mine, start=lambda self, state: 0.5 * state[0]),
    ),
    Mistake(
        "this has no memory: each output hangs on its own token",
        instead(Mine, result=lambda self, x, h, state: (self.out(self.new(x) * self.gate(x)), (h[:, -1],))),
    ),
    Mistake(
        "the state is detached on its way in or out: no later loss can teach what to write",
        instead(Mine, result=lambda self, x, h, state: (self.out(h), (h[:, -1].detach(),))),
    ),
    Mistake(
        "the state is detached on its way in or out: no later loss can teach what to write",
        instead(Mine, start=lambda self, state: state[0].detach()),
    ),
    Mistake("the state is a cache of all tokens, and grows with them: a memory of fixed size is asked", Growing),
    Mistake(
        "rows of the batch share something, a mean over dim=0 perhaps: each is a text of its own",
        instead(Mine, result=lambda self, x, h, state: (self.out(h + h.mean(dim=0)), (h[:, -1],))),
    ),
    Mistake("the model is too large for the arena at this width", instead(Mine, width=96)),
    Mistake("the model is too small for the arena at this width", instead(Mine, width=24)),
    Mistake("the width is not written down", instead(Mine, width=None)),
    Mistake("a parameter is made and never used", Idle),
)
