"""Make the language model that ships with the package: `memcourse.bundled.docs_model()`.

    python experiments/bundled_model.py      about eight minutes on one core; a killed run goes on where it was

Trained on `corpora.python_docs().train` alone, the byte-pair tokenizer too.  That text differs between versions of
Python, so another version makes another model; documents fall into train, valid and test by the hash of their name,
so that a document which the shipped model was trained on is in `train` under every version.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from memcourse import Batch, CausalAttention, MemoryTransformer, bundled, corpora, evaluate, fit
from memcourse.memory import write_safetensors

VOCABULARY = 2048
MODEL: dict[str, int] = {"d_model": 96, "n_layers": 2}
ATTENTION: dict[str, int] = {"n_heads": 4, "window": 128}
TRAINING: dict[str, Any] = {"steps": 3000, "learning_rate": 4e-3, "weight_decay": 0.1}
BATCH, CONTEXT = 8, 256
CHECKPOINT = Path(__file__).parents[1] / ".cache" / "experiments" / "bundled_model.safetensors"


def crops(ids: torch.Tensor, step: int) -> Batch:
    """BATCH random stretches of CONTEXT tokens; the targets are the tokens after them."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(len(ids) - CONTEXT, (BATCH, 1), generator=generator)
    window = ids[start + torch.arange(CONTEXT + 1)]  # (B, T + 1)
    return Batch(window[:, :-1], window[:, 1:])


def perplexity(model: MemoryTransformer, ids: torch.Tensor) -> float:
    """Of every token but the first, read as one stream in pieces."""
    n = (len(ids) - 1) // CONTEXT * CONTEXT
    tokens, targets = ids[:n].view(-1, CONTEXT), ids[1 : n + 1].view(-1, CONTEXT)
    return evaluate(model, [Batch(*pair) for pair in zip(tokens.split(16), targets.split(16), strict=True)])[
        "perplexity"
    ]


def main() -> None:
    torch.set_num_threads(1)
    docs = corpora.python_docs()
    tokenizer = corpora.tokenizer(docs.train, VOCABULARY, kind="bpe")
    ids = tokenizer.encode(docs.train)
    torch.manual_seed(0)
    model = MemoryTransformer(VOCABULARY, **MODEL, memory=lambda: CausalAttention(MODEL["d_model"], **ATTENTION))
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    fit(model, lambda step: crops(ids, step), **TRAINING, checkpoint=CHECKPOINT, save_every=500)
    bundled.FOLDER.mkdir(exist_ok=True)
    tokenizer.save(bundled.FOLDER / bundled.WORDS)
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    write_safetensors(weights, bundled.FOLDER / bundled.WEIGHTS, model.config)
    files = [bundled.FOLDER / name for name in (bundled.WEIGHTS, bundled.WORDS)]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (bundled.FOLDER / bundled.CHECKSUMS).write_text("".join(lines), "utf-8")
    model, tokenizer = bundled.docs_model()
    for name in ("train", "valid", "test"):
        print(f"perplexity on {name}: {perplexity(model, tokenizer.encode(getattr(docs, name))):.2f}")


if __name__ == "__main__":
    main()
