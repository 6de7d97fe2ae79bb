"""memcourse: how neural networks remember, as a small PyTorch library.

Every memory is an address, a read, a write and a way to forget.  One module per idea; all classes are
importable from here and loaded on first use, so that `import memcourse` costs no more than torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "attention": ("AdditiveAttention", "CausalAttention", "MultiHeadAttention", "attend", "hopfield_step"),
    "datastore": ("Datastore",),
    "gated": ("GatedMemory", "ParallelGatedMemory", "gated_update", "linear_scan"),
    "infini_attention": ("InfiniAttention",),
    "key_value": ("KeyValueMemory", "KeyValueStore", "ProductKeys"),
    "knn_lm": ("KNNLM", "interpolate", "knn_log_prob", "knn_probs"),
    "lm2": ("LM2Block",),
    "memorizing": ("MemorizingAttention",),
    "memory": ("BlockMemory", "SequenceMemory"),
    "resmem": ("ResMem", "residual_read"),
    "rmt": ("RecurrentMemoryTransformer",),
    "training": ("Batch", "evaluate", "fit"),
    "transformer_fam": ("FeedbackBlock",),
    "transformer": ("MemoryTransformer", "open_model"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"memcourse.{_HOME[name]}"), name)
    raise AttributeError(f"module 'memcourse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
