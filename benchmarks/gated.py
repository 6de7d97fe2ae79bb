"""linear_scan against the loops and torch.nn.GRU, its forward against one addition; a long stream, token by token."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, ratio
from memcourse.gated import ParallelGatedMemory, linear_scan, scan_into
from memcourse.memory import stream

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]

FIRST_STEPS = 64


def indexing_loop(forget_gate: Tensor, update: Tensor, initial: Tensor, steps: int | None = None) -> Tensor:
    """The plain loop.  Each `[:, t]` gets a gradient as large as the whole sequence, so its backward grows with T^2."""
    states, state = [], initial
    for t in range(update.shape[1] if steps is None else steps):
        state = forget_gate[:, t] * state + update[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


def unbound_loop(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """The same loop over steps taken apart once, whose backward grows with T."""
    states, state = [], initial
    for gate, new in zip(forget_gate.unbind(1), update.unbind(1), strict=True):
        state = gate * state + new
        states.append(state)
    return torch.stack(states, dim=1)


def rows() -> Iterator[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, T, D = 8, 4096, 256
    shape = f"B={B} T={T} D={D} on {device}"
    forget_gate, update = torch.rand(B, T, D, device=device), torch.randn(B, T, D, device=device)
    initial, direction = torch.zeros(B, D, device=device), torch.randn(B, T, D, device=device)
    parts = [part.requires_grad_() for part in (forget_gate, update, initial)]

    def both_ways(scan: Scan, steps: int = T) -> Callable[[], object]:
        return lambda: torch.autograd.grad(scan(*parts), parts, direction[:, :steps])

    for found, expected in zip(both_ways(linear_scan)(), both_ways(unbound_loop)(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)

    found = ratio(both_ways(lambda *p: indexing_loop(*p, FIRST_STEPS), FIRST_STEPS), both_ways(linear_scan), rounds=3)
    what = (
        f"linear_scan, forward and backward, {shape}: time of the plain loop's first {FIRST_STEPS} steps / all of ours"
    )
    yield Row(what, f"{found:.1f}x", "at least 10x", found >= 10)

    found = ratio(both_ways(unbound_loop), both_ways(linear_scan), rounds=6)
    what = f"linear_scan, forward and backward, {shape}: time of the loop over unbound steps / ours"
    yield Row(what, f"{found:.1f}x", "at least 1x (no slower)", found >= 1)

    gru = nn.GRU(D, D, batch_first=True, device=device)

    def gru_both_ways() -> object:
        return torch.autograd.grad(gru(update)[0], [update, *gru.parameters()], direction)

    found = ratio(gru_both_ways, both_ways(linear_scan), rounds=3)
    what = f"linear_scan, forward and backward, {shape}: time of torch.nn.GRU / ours"
    yield Row(what, f"{found:.1f}x", "at least 5x", found >= 5)

    states, total = torch.empty(B, T, D, device=device), torch.empty(B, T, D, device=device)
    with torch.no_grad():
        threads = torch.get_num_threads()
        for n_threads in sorted({1, threads}):
            torch.set_num_threads(n_threads)
            found = ratio(
                lambda: scan_into(states, forget_gate, update, initial),
                lambda: torch.add(forget_gate, update, out=total),
            )
            what = f"linear_scan, forward, {shape}, {n_threads} threads: time / one addition, both into buffers"
            yield Row(what, f"{found:.1f}x", "at most 8x (stretch: 4x)", found <= 8)
        torch.set_num_threads(threads)

        layer, x = ParallelGatedMemory(D).to(device), torch.randn(1, 65_536, D, device=device)

        def in_chunks(time: int) -> Callable[[], None]:
            def run() -> None:
                for _ in range(65_536 // time):  # as many tokens in either call
                    for _ in stream(layer, x[:, :time], 1024):
                        pass

            return run

        found = ratio(in_chunks(65_536), in_chunks(1024), rounds=6)
        what = f"ParallelGatedMemory in chunks of 1024, D={D} on {device}: time per token at T=65536 / at T=1024"
        yield Row(what, f"{found:.2f}x", "at most 1.3x", found <= 1.3)
