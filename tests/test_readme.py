"""What the README says is so: its program runs as it stands, its files exist, its commands are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_program_in_the_readme_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(programs) == 1
    lines = [line for line in programs[0].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    exec(compile(programs[0], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(
        "what is read, is written; what is written, is"
    )  # half of it was generated


def test_every_file_that_the_readme_links_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_every_make_target_of_the_readme_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)[` ]", README)) - {"course,"}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


def test_every_command_of_the_readme_is_in_the_command_line() -> None:
    from memcourse.course.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"memcourse (lab|check|grade|hint|progress|doctor|data|start)\b", README))
    assert named and named <= known
