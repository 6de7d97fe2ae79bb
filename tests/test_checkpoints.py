"""A run that is stopped, in whatever way, goes on as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from memcourse import Batch, fit

STEPS = 40


class Noisy(nn.Module):
    """Every kind of thing that a checkpoint must hold: weights, one of them shared, buffers, and dropout's noise."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.config = {"width": width}
        self.embedding = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(width, 7)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        x = self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        return self.out(self.dropout(x)), None


def noisy_batch(step: int) -> Batch:
    """Drawn from global generators, so that they must be as they were."""
    tokens = torch.randint(7, (4, 6))
    tokens[0, 0] = int(np.random.randint(7))
    return Batch(tokens, (tokens + step) % 7)


def run(
    checkpoint: Path | None, batches: Callable[[int], Batch] = noisy_batch, seed: int = 0, save_every: int = 4
) -> str:
    """Train from the seed, or from the checkpoint; everything that came of it, exactly, as text."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = Noisy()
    history = fit(model, batches, steps=STEPS, checkpoint=checkpoint, save_every=save_every, progress=False)
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    return json.dumps([history, weights, torch.rand(1).item(), np.random.rand()])


def stopping_at(step: int, stop: Callable[[], None]) -> Callable[[int], Batch]:
    def batches(now: int) -> Batch:
        if now == step:
            stop()
        return noisy_batch(now)

    return batches


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def steps_in(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return len(json.loads(file.metadata()["config"])["history"]["loss"])


@pytest.fixture(scope="module")
def whole() -> str:
    torch.set_num_threads(1)
    return run(None)


def test_saving_changes_nothing(whole: str, tmp_path: Path) -> None:
    assert run(tmp_path / "run.safetensors") == whole


@pytest.mark.parametrize("step", [0, 1, 4, 5, 39])
def test_a_run_that_died_at_a_step_goes_on_as_if_it_had_not(whole: str, tmp_path: Path, step: int) -> None:
    def die() -> None:
        raise MemoryError

    checkpoint = tmp_path / "a new folder" / "run.safetensors"
    with pytest.raises(MemoryError):
        run(checkpoint, stopping_at(step, die))
    assert steps_in(checkpoint) == step // 4 * 4
    assert run(checkpoint, seed=99) == whole  # another seed: nothing may come from the new start


def test_ctrl_c_ends_the_run_after_the_step_and_loses_nothing(whole: str, tmp_path: Path) -> None:
    checkpoint, before = tmp_path / "run.safetensors", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after 7 of 40 steps; .* goes on from .*run.safetensors"):
        run(checkpoint, stopping_at(6, ctrl_c))
    assert steps_in(checkpoint) == 7
    assert signal.getsignal(signal.SIGINT) is before
    assert run(checkpoint, seed=99) == whole


def test_a_second_ctrl_c_ends_the_run_at_once(whole: str, tmp_path: Path) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()
        raise AssertionError("the second Ctrl-C came too late")

    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, stopping_at(6, twice))
    assert steps_in(checkpoint) == 4
    assert run(checkpoint, seed=99) == whole


def test_ctrl_c_without_a_checkpoint_still_stops_between_two_steps() -> None:
    with pytest.raises(KeyboardInterrupt, match="stopped after 7 of 40 steps$"):
        run(None, stopping_at(6, ctrl_c))


def test_outside_the_main_thread_it_trains_too(whole: str) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(run(None)))
    thread.start()
    thread.join()
    assert found == [whole]


def test_a_finished_run_gives_its_history_at_once(whole: str, tmp_path: Path) -> None:
    def never(step: int) -> Batch:
        raise AssertionError("a finished run asked for a batch")

    run(tmp_path / "run.safetensors")
    assert run(tmp_path / "run.safetensors", never, seed=99) == whole


def test_a_write_that_fails_leaves_the_file_before(whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    checkpoint = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        run(checkpoint, stopping_at(6, lambda: patch.setattr(os, "replace", full)))
    assert steps_in(checkpoint) == 4 and list(tmp_path.iterdir()) == [checkpoint]
    assert run(checkpoint, seed=99) == whole


def test_what_a_kill_left_beside_the_file_is_cleared_away_and_nothing_else(tmp_path: Path) -> None:
    mine, others = tmp_path / "run.safetensors.123.part", tmp_path / "run2.safetensors.123.part"
    mine.touch()
    others.touch()
    run(tmp_path / "run.safetensors")
    assert not mine.exists() and others.exists()


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    checkpoint, model = tmp_path / "run.safetensors", Noisy()

    def batches(step: int) -> Batch:
        if step == 9:
            nn.init.constant_(model.norm.weight, torch.inf)
        return noisy_batch(step)

    with pytest.raises(FloatingPointError, match="at step 9"):
        fit(model, batches, steps=STEPS, checkpoint=checkpoint, save_every=4, progress=False)
    assert steps_in(checkpoint) == 8
    with safe_open(checkpoint, framework="pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("save_every", [1, 3])
def test_killed_at_random_moments_it_ends_with_the_same_curve(tmp_path: Path, save_every: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path), str(save_every)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5  # kills
    assert (tmp_path / "result.json").read_text() == (tmp_path / "whole" / "result.json").read_text()


rename = os.replace


def killed_before_the_rename(*paths: Path) -> None:
    if steps_in(paths[0]) >= 6:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)


def killed_after_the_rename(*paths: Path) -> None:
    rename(*paths)
    if steps_in(paths[1]) >= 6:
        os.kill(os.getpid(), signal.SIGKILL)


def start(folder: Path, save_every: int, seed: int, replace: Callable[..., None] = rename) -> int:
    """Fork a process that trains; its number, once it has asked for its first batch.

    Forked before torch has computed anything, it starts in milliseconds.
    """
    ready, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)
        return process
    status = 1
    try:
        torch.set_num_threads(1)
        os.replace = replace

        def batches(step: int) -> Batch:
            os.write(tell, b"!")
            batch = noisy_batch(step)
            batch.tokens[1, 0] = random.randrange(7)  # only here: elsewhere beartype draws from this generator too
            return batch

        (folder / "result.json").write_text(run(folder / "run.safetensors", batches, seed, save_every))
        status = 0
    finally:
        os._exit(status)


def kill_until_done(folder: Path, save_every: int) -> int:
    """Start the run, kill -9 it at a random moment, start it again (from another seed), until it is done."""
    import torch._dynamo  # noqa: F401 (an optimizer imports it at its first step, which would take most of the run)

    (folder / "whole").mkdir()
    process, begin = start(folder / "whole", save_every, seed=0), time.monotonic()
    os.waitpid(process, 0)
    duration = time.monotonic() - begin
    for number, replace in enumerate((killed_before_the_rename, killed_after_the_rename)):
        os.waitpid(start(folder, save_every, seed=99 if number else 0, replace=replace), 0)
        assert steps_in(folder / "run.safetensors") == (6 if number else 6 - save_every)
        assert len(list(folder.glob("*.part"))) == 1 - number  # the second start cleared away what the first left
    moments, kills = random.Random(save_every), 2
    while True:
        process = start(folder, save_every, seed=99)
        if kills < 10:
            time.sleep(moments.uniform(0, duration / 5))
            os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != -signal.SIGKILL:
            assert status == 0
            return kills
        kills += 1


if __name__ == "__main__":
    print(kill_until_done(Path(sys.argv[1]), int(sys.argv[2])))
