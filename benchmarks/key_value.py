"""Product keys against brute force over 65,536 slots: the same scores, and the ratio of times."""

from collections.abc import Iterator

import torch

from benchmarks.timing import Row, ratio
from memcourse import ProductKeys

N_SUB_KEYS, KEY_DIM, K = 256, 128, 32
LIMIT = 0.2


def rows() -> Iterator[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    product = ProductKeys(N_SUB_KEYS, KEY_DIM).to(device)
    with torch.no_grad():
        keys = product.keys.T.contiguous()  # (key_dim, slots), laid out before the clock starts
        for n_queries in (1, 128):
            query = torch.randn(n_queries, KEY_DIM, device=device)
            torch.testing.assert_close(product(query, K)[0], (query @ keys).topk(K).values, atol=1e-4, rtol=1e-4)
            found = ratio(lambda: product(query, K), lambda: (query @ keys).topk(K))  # noqa: B023
            what = (
                f"ProductKeys, {K} best of {N_SUB_KEYS**2:,} slots for {n_queries} queries on {device}, "
                f"{product.comparisons(K):,} comparisons: time / brute force"
            )
            yield Row(what, f"{found:.3f}x", f"at most {LIMIT}x", found <= LIMIT)
