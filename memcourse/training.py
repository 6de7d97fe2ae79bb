"""Training and evaluation of a model that maps (tokens, state) to (logits, state)."""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from memcourse.checkpoints import Checkpoint, History, finishing_the_step
from memcourse.distributed import averaging, join, place, total
from memcourse.memory import require

NOT_SCORED = -100


class Batch(NamedTuple):
    """What the model reads and what it should say after each token; a target of -100 is not scored."""

    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]


def loss_of(logits: Float[Tensor, "batch time vocab"], targets: Int[Tensor, "batch time"]) -> Tensor:
    """Mean negative log-likelihood, in nats, of the scored targets.  Raises ValueError where none is scored."""
    scored = (targets != NOT_SCORED).sum()
    _require_scored(scored.item())
    return _nats(logits, targets) / scored


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the scored targets, summed: processes can add theirs."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_SCORED, reduction="sum")


def _require_scored(scored: int | float) -> None:
    require(scored > 0, "targets", f"all {NOT_SCORED}", "scored in one place at least")


class _SummedLoss(nn.Module):
    """(tokens, targets) -> summed loss, in one forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return _nats(self.model(tokens)[0], targets)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms, gates, biases) and embeddings do not.

    A module that wants something else for a parameter of its own says so in an attribute, by the parameter's name:

        optimizer_options = {"gate": {"rate": 10.0, "weight_decay": 0.0}}      # ten times the learning rate, no decay

    Returns groups of {"params", "weight_decay", "rate"}: first what decays, then what does not, then the wishes.
    Raises ValueError for a wish about a parameter that the module does not have, or for another option.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decay, free = (1.0, weight_decay), (1.0, 0.0)
    options = {id(p): decay if p.ndim >= 2 and id(p) not in embeddings else free for p in trained}
    for module in model.modules():
        for name, wish in getattr(module, "optimizer_options", {}).items():
            where = f"{type(module).__name__}.optimizer_options"
            own = dict(module.named_parameters())
            require(name in own, where, name, f"about a parameter of the module: {', '.join(own)}")
            require(wish.keys() <= {"rate", "weight_decay"}, where, sorted(wish), "of rate and weight_decay")
            rate, own_decay = options.get(id(own[name]), decay)
            options[id(own[name])] = (wish.get("rate", rate), wish.get("weight_decay", own_decay))
    return [
        {"params": [p for p in trained if options[id(p)] == (rate, own)], "weight_decay": own, "rate": rate}
        for rate, own in dict.fromkeys([decay, free, *options.values()])
    ]


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
    bf16: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 100,
    progress: bool = True,
) -> History:
    """Train with AdamW, the learning rate of `one_cycle` and gradients clipped to the norm `clip`.

    `batches(step)` gives the batch of a step, so that the same step always sees the same data.  Returns the history:
    "loss" (nats per scored token), "learning_rate" and "gradient_norm" (before clipping), one number per step.

    bf16: run the forward pass under bfloat16 autocast (weights stay as they are); None: on GPUs that have bfloat16.
    checkpoint: a file written before the first step, every `save_every` steps, at Ctrl-C and at the end.  The same
    call goes on from it, bit for bit as if it had never stopped (where the device's operations are deterministic),
    random generators included; a finished run returns its history at once.  The file knows the model and
    the arguments, but not `batches`: give the same ones.
    Ctrl-C ends the run after the step, with KeyboardInterrupt; a second one at once.

    Under torchrun each process takes its share of the rows of every batch; gradients are averaged over all scored
    targets, so that the history is that of one process.  Put the model on the process's own GPU first
    (`f"cuda:{os.environ['LOCAL_RANK']}"`), and the checkpoint where every process can read it.

    Raises FloatingPointError, with the step, where loss or gradient is not finite; weights and checkpoint are as they
    were before that step.  Raises ValueError for a checkpoint of another model or other arguments, naming what differs.
    """
    require(steps >= 1, "steps", steps, "at least 1")
    require(learning_rate > 0, "learning_rate", learning_rate, "greater than 0")
    require(weight_decay >= 0, "weight_decay", weight_decay, "0 or greater")
    require(clip > 0, "clip", clip, "greater than 0")
    require(save_every >= 1, "save_every", save_every, "at least 1 step")
    device = next(model.parameters()).device
    if bf16 is None:
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    join(device)
    number, processes = place()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate)
    history: History = {"loss": [], "learning_rate": [], "gradient_norm": []}
    run = None
    if checkpoint is not None:
        settings = {
            "steps": steps,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "clip": clip,
            "bf16": bf16,
            "device": device.type,
            "processes": processes,
            "parameter groups": [[g["rate"], g["weight_decay"], len(g["params"])] for g in optimizer.param_groups],
        }
        run = Checkpoint(checkpoint, model, optimizer, history, settings)
        run.load()
    done, stop = len(history["loss"]), 0.0
    summed_loss = averaging(_SummedLoss(model)).train()
    bar = tqdm(range(done, steps), initial=done, total=steps, disable=not progress or number > 0, desc="training")
    with bar, finishing_the_step() as interrupted:
        for step in bar:
            if run and step % save_every == 0:
                run.save()
            tokens, targets = (part.to(device) for part in _share(batches(step), number, processes))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                nats = summed_loss(tokens, targets)
            here = nats.item(), (targets != NOT_SCORED).sum().item(), interrupted()
            all_nats, scored, stop = total(device, *here)
            _require_scored(scored)
            loss = all_nats / scored
            _require_finite(loss, "loss", step, learning_rate)
            optimizer.zero_grad(set_to_none=True)
            (nats * (processes / scored)).backward()  # the mean over processes is the mean over all scored targets
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
            _require_finite(norm, "norm of the gradient", step, learning_rate)
            rate = learning_rate * one_cycle(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
            history["loss"].append(loss)
            history["learning_rate"].append(rate)
            history["gradient_norm"].append(norm)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if stop:
                break
        if run and len(history["loss"]) > done:
            run.save()
        if stop or interrupted():  # stop: in any of the processes
            kept = f"; the same call goes on from {checkpoint}" if run else ""
            raise KeyboardInterrupt(f"stopped after {len(history['loss'])} of {steps} steps{kept}")
    return history


def _share(batch: Batch, number: int, processes: int) -> Batch:
    """The rows of a batch that this process reads."""
    rows = len(batch.tokens)
    require(rows >= processes, "batches", f"{rows} rows", f"of one row per process at least, {processes}")
    return Batch(*(part.tensor_split(processes)[number] for part in batch))


def _require_finite(number: float, name: str, step: int, learning_rate: float) -> None:
    if not math.isfinite(number):
        advice = f"try a lower learning_rate than {learning_rate}"
        raise FloatingPointError(f"the {name} is {number} at step {step}; {advice}")


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
