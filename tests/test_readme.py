"""The README's example runs as printed, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastcifar.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) <= 10
    (tmp_path / "data").symlink_to(data_dir)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["epoch"] == 1  # it went through its epochs


def test_every_picture_and_file_that_it_names_is_there() -> None:
    root = Path(__file__).parents[1]
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for name in [*pictures, "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"]:
        assert (root / name).is_file(), name
    assert not re.findall(r"@@|[A-Z]+_(?:TIME|ACC|EPOCHS)\b", README)


def test_every_command_is_told_and_every_told_command_exists() -> None:
    told = set(re.findall(r"^(?:\.venv/bin/)?fastcifar ([\w-]+)", README, flags=re.MULTILINE))
    told |= set(re.findall(r"`fastcifar ([\w-]+)", README))
    assert told == set(main.commands)  # type: ignore[attr-defined]


def test_every_promise_has_a_test_in_each_tier() -> None:
    """CONTRIBUTING.md has a line for each promise of SECURITY.md, and the tests that it names are in those tiers."""
    root = Path(__file__).parents[1]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    marks = {
        name: "@pytest.mark.slow\n" in above
        for above, name in re.findall(r"((?:^@.*\n)*)^def (test_\w+)", sources, re.M)
    }
    promised = re.findall(r"`(test_\w+\.py)` \|$", (root / "SECURITY.md").read_text(encoding="utf-8"), re.M)
    assert all((root / "tests" / "trust" / name).is_file() for name in promised)
    lines = re.findall(
        r"^\|.*\| (`test_.*) \| (`test_.*) \|$", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    assert len(lines) == len(promised) > 10
    for fast, real in lines:
        assert not any(marks[name] for name in re.findall(r"`(test_\w+)`", fast)), fast
        assert all(marks[name] for name in re.findall(r"`(test_\w+)`", real)), real
