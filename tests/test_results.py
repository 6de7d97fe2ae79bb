"""Results of experiments: written whole, read back, known to be stale, and resumed after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcourse.course import results

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("[0-9][0-9]_*.py"))
CONFIG = {"width": 8, "steps": {10: "few", 9: "fewer"}, "sizes": (1, 2)}  # keys and tuples that JSON changes


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment in a clone of its own, which is the working directory."""
    file = tmp_path / "experiments" / "77_toy.py"
    file.parent.mkdir()
    file.write_text("print('toy')\n")
    monkeypatch.chdir(tmp_path)
    return file


def write(file: Path, found: object = 0.5) -> Path:
    return results.write("77_toy", {"loss": found}, config=CONFIG, seeds=[0, 1, 2], experiment_file=file)


def test_what_is_written_is_read_from_anywhere_in_the_clone(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(experiment)
    course_copy = experiment.parents[1] / "my_course" / "chapters"
    course_copy.mkdir(parents=True)
    monkeypatch.chdir(course_copy)
    document = results.read("77_toy")
    assert path == experiment.parent / "results" / "77_toy.json"
    assert document["results"] == {"loss": 0.5}
    assert document["seeds"] == [0, 1, 2]
    assert set(document["machine"]) == {"cpu", "cores", "gpu", "python", "torch"}
    assert str(ROOT) not in path.read_text() and str(Path.home()) not in path.read_text()


def test_results_are_stale_once_the_experiment_or_the_configuration_differs(experiment: Path) -> None:
    path = write(experiment)
    assert not results.is_stale("77_toy")
    experiment.write_text("print('another toy')\n")
    assert results.is_stale("77_toy")
    path = write(experiment)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "config": {"width": 16}}))
    assert results.is_stale("77_toy")


def test_bad_results_are_refused_and_the_old_ones_stay(experiment: Path) -> None:
    before = write(experiment).read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        write(experiment, float("nan"))
    with pytest.raises(ValueError, match=r"seeds must be at least three.*\[0, 0, 1\]"):
        results.write("77_toy", {}, config={}, seeds=[0, 0, 1], experiment_file=experiment)
    with pytest.raises(ValueError, match="'77_toy', got '77_other'"):
        results.write("77_other", {}, config={}, seeds=[0, 1, 2], experiment_file=experiment)
    folder = experiment.parent / "results"
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("77_toy.json", before)]


def test_missing_results_name_the_command_that_makes_them(experiment: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python experiments/77_toy\.py makes it"):
        results.read("77_toy")
    with pytest.raises(ValueError, match=r"'01_attention', got '\.\./secret'"):
        results.read("../secret")


def test_a_killed_experiment_goes_on_from_the_finished_runs(experiment: Path) -> None:
    ran = []

    def train(seed: int) -> list[float]:
        if seed == 1 and ran == [0]:
            raise KeyboardInterrupt
        ran.append(seed)
        return [seed / 10]

    def all_runs() -> list[list[float]]:
        return [
            results.cached_run("77_toy", {"seed": s}, lambda s=s: train(s), experiment_file=experiment)
            for s in range(3)
        ]

    with pytest.raises(KeyboardInterrupt):
        all_runs()
    ran.append("again")
    assert all_runs() == [[0.0], [0.1], [0.2]]
    assert ran == [0, "again", 1, 2]
    experiment.write_text("print('another toy')\n")
    all_runs()
    assert ran == [0, "again", 1, 2, 0, 1, 2]


def test_a_changed_library_means_a_new_run(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = experiment.parents[1] / "library"
    library.mkdir()
    monkeypatch.setattr(results, "PACKAGE", library)
    runs = iter(range(9))

    def value() -> int:
        return results.cached_run("77_toy", {}, lambda: next(runs), experiment_file=experiment)

    assert [value(), value()] == [0, 0]
    (library / "attention.py").write_text("scale = 1\n")
    assert value() == 1


def test_summary_has_the_spread_over_seeds() -> None:
    assert results.summary([[1.0, 2.0], [3.0, 6.0]]) == {
        "mean": [2.0, 4.0],
        "low": [1.0, 2.0],
        "high": [3.0, 6.0],
        "per_seed": [[1.0, 2.0], [3.0, 6.0]],
    }
    with pytest.raises(ValueError, match="one value"):
        results.summary([])


def test_there_are_experiments() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda file: file.stem)
def test_committed_results_are_those_of_the_committed_experiment(experiment: Path) -> None:
    assert len(results.read(experiment.stem)["seeds"]) >= 3
    assert not results.is_stale(experiment.stem), f"run python experiments/{experiment.name} again"


def test_no_result_has_lost_its_experiment() -> None:
    names = {file.stem for file in EXPERIMENTS}
    assert {file.stem for file in (ROOT / "experiments" / "results").glob("*.json")} == names
