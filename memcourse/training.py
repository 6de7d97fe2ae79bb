"""Training and evaluation of a model that maps (tokens, state) to (logits, state)."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from memcourse.memory import require

NOT_SCORED = -100


class Batch(NamedTuple):
    """What the model reads and what it should say after each token; a target of -100 is not scored."""

    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]


def loss_of(logits: Float[Tensor, "batch time vocab"], targets: Int[Tensor, "batch time"]) -> Tensor:
    """Mean negative log-likelihood, in nats, of the scored targets.  Raises ValueError where none is scored."""
    require(bool((targets != NOT_SCORED).any()), "targets", f"all {NOT_SCORED}", "scored in one place at least")
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_SCORED)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (norms, gates, biases) and embeddings do not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decaying: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decaying if parameter.ndim >= 2 and id(parameter) not in embeddings else free).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def one_cycle(step: int, steps: int) -> float:
    """The share of the learning rate at a step: linear to 1 over the first tenth, then down a cosine towards 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    *,
    steps: int,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Train with AdamW, the learning rate of `one_cycle` and gradients clipped to the norm `clip`.

    `batches(step)` gives the batch of a step, so that the same step always sees the same data.  Returns the history:
    "loss" (nats per scored token), "learning_rate" and "gradient_norm" (before clipping), one number per step.
    Raises FloatingPointError, with the step, where the loss is not finite; the weights are those of the step before.
    """
    require(steps >= 1, "steps", steps, "at least 1")
    require(learning_rate > 0, "learning_rate", learning_rate, "greater than 0")
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps))
    history: dict[str, list[float]] = {"loss": [], "learning_rate": [], "gradient_norm": []}
    device = next(model.parameters()).device
    model.train()
    bar = tqdm(range(steps), disable=not progress, desc="training", unit="step")
    for step in bar:
        batch = Batch(*(part.to(device) for part in batches(step)))
        loss = loss_of(model(batch.tokens)[0], batch.targets)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}; try a lower learning_rate than {learning_rate}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        history["loss"].append(loss.item())
        history["learning_rate"].append(float(schedule.get_last_lr()[0]))
        history["gradient_norm"].append(norm.item())
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return history


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Loss (nats per scored token), perplexity = exp(loss) and accuracy over all scored targets of the batches."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss = correct = count = 0.0
    for batch in batches:
        tokens, targets = (part.to(device) for part in batch)
        scored = targets != NOT_SCORED
        logits = model(tokens)[0][scored].float()  # (scored, V)
        loss += F.cross_entropy(logits, targets[scored], reduction="sum").item()
        correct += (logits.argmax(dim=-1) == targets[scored]).sum().item()
        count += scored.sum().item()
    model.train(was_training)
    require(count > 0, "batches", "no scored target", "batches with at least one scored target")
    return {
        "loss": loss / count,
        "perplexity": math.exp(min(loss / count, 700.0)),
        "accuracy": correct / count,
    }
