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
