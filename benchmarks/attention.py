"""MultiHeadAttention against torch.nn.MultiheadAttention: equal with copied weights, then the ratio of times."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, ratio
from memcourse import MultiHeadAttention


def pair(d_model: int, n_heads: int, device: str) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Ours and torch's with the same weights."""
    ours = MultiHeadAttention(d_model, n_heads).to(device)
    theirs = nn.MultiheadAttention(d_model, n_heads, bias=False, batch_first=True).to(device)
    heads = ours.heads
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([heads.query.weight, heads.key.weight, heads.value.weight]))
        theirs.out_proj.weight.copy_(heads.output.weight)
    return ours, theirs


def rows() -> Iterator[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for B, T, D, H in ((8, 256, 256, 8), (32, 64, 128, 4), (1, 1024, 512, 8)):
        ours, theirs = pair(D, H, device)
        x = torch.randn(B, T, D, device=device)
        torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-5, rtol=1e-5)

        def forward(layer: nn.Module, *args: Tensor, **kwargs: bool) -> None:
            with torch.no_grad():
                layer(*args, **kwargs)

        def both_ways(layer: nn.Module, *args: Tensor, **kwargs: bool) -> None:
            y = layer(*args, **kwargs)
            (y[0] if isinstance(y, tuple) else y).sum().backward()

        for name, run in (("forward", forward), ("forward and backward", both_ways)):
            found = ratio(lambda: run(ours, x), lambda: run(theirs, x, x, x, need_weights=False))  # noqa: B023
            what = (
                f"MultiHeadAttention, {name}, B={B} T={T} D={D} H={H} on {device}: time / torch.nn.MultiheadAttention"
            )
            yield Row(what, f"{found:.2f}x", "at most 1.05x (no slower)", found <= 1.05)
