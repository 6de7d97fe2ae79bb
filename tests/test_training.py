"""Loss, evaluation and the training loop against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from memcourse import Batch, CausalAttention, MemoryTransformer, evaluate, fit
from memcourse.training import loss_of, parameter_groups


class Fixed(nn.Module):
    """A model that says the same of every token: logits (0, log 2, log 5), so probabilities 1/8, 2/8, 5/8."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, math.log(2), math.log(5)]))

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        return self.logits.expand(*tokens.shape, 3), None


TARGETS = torch.tensor([[0, 1, -100], [2, -100, 2]])
NATS = -(math.log(1 / 8) + math.log(2 / 8) + 2 * math.log(5 / 8)) / 4


def test_the_loss_is_the_mean_over_scored_targets() -> None:
    logits = Fixed()(TARGETS)[0]
    assert loss_of(logits, TARGETS).item() == pytest.approx(NATS)


def test_evaluate_weights_every_scored_target_alike() -> None:
    one, rest = Batch(TARGETS[:1], TARGETS[:1]), Batch(TARGETS[1:], TARGETS[1:])
    found = evaluate(Fixed(), [one, rest])
    assert found["loss"] == pytest.approx(NATS)
    assert found["perplexity"] == pytest.approx(math.exp(NATS))
    assert found["accuracy"] == 0.5


def test_evaluate_leaves_the_mode_as_it_was() -> None:
    model = Fixed().train()
    evaluate(model, [Batch(TARGETS, TARGETS)])
    assert model.training


def test_fit_finds_the_best_constant_answer() -> None:
    model = Fixed()
    history = fit(model, lambda _: Batch(TARGETS, TARGETS), steps=200, learning_rate=0.1, progress=False)
    assert model.logits.softmax(-1).tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.01)
    assert len(history["loss"]) == len(history["learning_rate"]) == len(history["gradient_norm"]) == 200
    assert history["loss"][0] == pytest.approx(NATS)
    assert max(history["learning_rate"]) == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_history() -> None:
    def run() -> list[float]:
        torch.manual_seed(5)
        model = MemoryTransformer(7, 8, 1, lambda: CausalAttention(8, 2))
        tokens = torch.arange(10).view(2, 5) % 7
        return fit(model, lambda _: Batch(tokens, tokens), steps=5, progress=False)["loss"]

    assert run() == run()


def test_norms_and_embeddings_do_not_decay() -> None:
    model = MemoryTransformer(7, 8, 2, lambda: CausalAttention(8, 2))
    decaying, free = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in free["params"]} == {n for n in names.values() if "norm" in n or "embedding" in n}
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert len(decaying["params"]) + len(free["params"]) == len(names)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_weights() -> None:
    model = Fixed()

    def batches(step: int) -> Batch:
        if step == 3:
            with torch.no_grad():
                model.good = model.logits.clone()
                model.logits += math.nan
        return Batch(TARGETS, TARGETS)

    with pytest.raises(FloatingPointError, match="step 3"):
        fit(model, batches, steps=9, progress=False)


def test_the_weights_are_those_before_the_step_that_failed() -> None:
    class Cusp(Fixed):
        """A loss that stays finite where its gradient does not: d/dx sqrt(x) at 0."""

        def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
            bend = (self.logits - self.logits.detach()).abs().sqrt()
            return (self.logits + bend).expand(*tokens.shape, 3), None

    model = Cusp()
    before = model.logits.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient is nan at step 0"):
        fit(model, lambda _: Batch(TARGETS, TARGETS), steps=3, progress=False)
    assert torch.equal(model.logits, before)


class Gated(nn.Module):
    """Asks for ten times the learning rate and no decay for its gate, and for half the decay of a vector inside."""

    def __init__(self, **changed: dict[str, float]) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(3, 3))
        self.inner = nn.Linear(3, 3)
        wishes = {"gate": {"rate": 10.0, "weight_decay": 0.0}, "inner.bias": {"weight_decay": 0.05}}
        self.optimizer_options = wishes | changed

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        return self.inner(self.gate[tokens]), None


def test_a_module_may_ask_for_a_group_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Gated())
    own = model[1]
    assert isinstance(own, Gated)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [([names[id(p)] for p in g["params"]], g["rate"], g["weight_decay"]) for g in parameter_groups(model, 0.1)]
    assert found == [
        (["0.weight", "1.inner.weight"], 1.0, 0.1),
        (["0.bias"], 1.0, 0.0),
        (["1.gate"], 10.0, 0.0),
        (["1.inner.bias"], 1.0, 0.05),
    ]


def test_a_group_of_its_own_takes_its_own_steps() -> None:
    """The first step of AdamW is the learning rate times the sign of the gradient, plus the decay."""
    model = Gated(**{"inner.weight": {"rate": 0.0}})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, lambda _: Batch(TARGETS.clamp_min(0), TARGETS), steps=1, learning_rate=0.01, progress=False)
    step = {name: (parameter - before[name]).abs().max().item() for name, parameter in model.named_parameters()}
    assert step["gate"] == pytest.approx(0.1, rel=1e-3)
    assert step["inner.weight"] == 0.0
    assert step["inner.bias"] == pytest.approx(0.01, rel=1e-2)


def test_what_is_frozen_stays() -> None:
    model = Gated()
    model.gate.requires_grad_(False)
    fit(model, lambda _: Batch(TARGETS.clamp_min(0), TARGETS), steps=3, progress=False)
    assert (model.gate == 1).all()


def test_bf16_rounds_the_forward_pass_and_leaves_the_weights_as_they_are() -> None:
    def losses(bf16: bool | None) -> list[float]:
        torch.manual_seed(2)
        model = MemoryTransformer(7, 8, 1, lambda: CausalAttention(8, 2))
        tokens = torch.arange(24).view(4, 6) % 7
        history = fit(model, lambda _: Batch(tokens, tokens), steps=8, bf16=bf16, progress=False)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        return history["loss"]

    exact, rounded = losses(False), losses(True)
    assert exact == losses(None)  # a CPU stays with float32 unless asked
    assert exact != rounded and rounded == pytest.approx(exact, abs=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_is_the_default_where_the_gpu_has_it() -> None:
    def losses(bf16: bool | None) -> list[float]:
        torch.manual_seed(2)
        model = MemoryTransformer(7, 8, 1, lambda: CausalAttention(8, 2)).cuda()
        tokens = torch.arange(24).view(4, 6) % 7
        return fit(model, lambda _: Batch(tokens, tokens), steps=3, bf16=bf16, progress=False)["loss"]

    assert losses(None) == losses(torch.cuda.is_bf16_supported(including_emulation=False))
    assert losses(True) != losses(False)
