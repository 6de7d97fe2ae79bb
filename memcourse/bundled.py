"""The small language model of Python's documentation that ships with the package.

    model, tokenizer = docs_model()
    tokens = tokenizer.encode("Return the number of items in")[None]      # (1, T)
    print(tokenizer.decode(model.generate(tokens, 20)[0]))

`experiments/bundled_model.py` made it, from `corpora.python_docs().train` alone: `valid` and `test` are text that
neither the weights nor the tokenizer have seen.
"""

import hashlib
from pathlib import Path

from memcourse.memory import require
from memcourse.token_model import TokenModel
from memcourse.tokenizer import Tokenizer
from memcourse.transformer import open_model

FOLDER = Path(__file__).parent / "models"
WEIGHTS, WORDS, CHECKSUMS = "docs.safetensors", "docs.tokenizer.json", "docs.sha256"


def docs_model() -> tuple[TokenModel, Tokenizer]:
    """A language model of Python's documentation and its byte-pair tokenizer, which takes any text.

    Two layers of causal attention over the newest 128 tokens, width 96, a vocabulary of 2,048; the weights lie on
    disk as float16 and come back as float32.  Each call returns a model of its own, in evaluation mode.
    Raises ValueError, naming the file, where one of the files is missing or is not what was shipped.
    """
    checksums = _listed(FOLDER / CHECKSUMS)
    for name in (WEIGHTS, WORDS):
        path = FOLDER / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
        advice = f"whole, with the sha256 {checksums.get(name)} (install memcourse again)"
        require(found == checksums.get(name), str(path), found, advice)
    return open_model(FOLDER / WEIGHTS).eval(), Tokenizer.load(FOLDER / WORDS)


def _listed(path: Path) -> dict[str, str]:
    """{file name: sha256} from lines as `sha256sum` writes them."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {name: digest for digest, name in (line.split() for line in lines if len(line.split()) == 2)}
