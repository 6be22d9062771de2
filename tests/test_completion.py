"""Completion in a shell: commands, options, choices, recipes, runs and files, without loading torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from fastcifar import recipes
from fastcifar.cli import main
from fastcifar.cli.completion import SHELLS
from tests.test_cli import HEAVY, refused, run


def completed(*words: str) -> list[str]:
    """What completes the last word."""
    complete = BashComplete(main, {}, "fastcifar", "_FASTCIFAR_COMPLETE")
    return [str(item.value) for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_commands_options_and_values_are_completed() -> None:
    assert completed("tr") == ["train"]
    assert completed("train", "--ba") == ["--batch-size"]
    assert completed("train", "--sched", "co") == ["cosine"]
    assert completed("train", "--optimizer", "Adam") == ["adam", "adamw"]
    assert completed("completion", "") == list(SHELLS)
    assert completed("train", "--bs") == []  # other names are not offered


def test_recipes_and_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed("train", "--recipe", "f") == ["fast"]
    assert set(recipes.names()) <= set(completed("train", "--recipe", ""))
    for name in ("first", "second"):
        (tmp_path / "runs" / name / "weights").mkdir(parents=True)
    commands = (("eval",), ("explain",), ("report",), ("eval", "--run"), ("predict", "--run"), ("train", "--resume"))
    for words in (*commands, ("runs", "compare"), ("runs", "compare", "first"), ("runs", "log")):
        assert completed(*words, "") == ["first", "second"]
    (tmp_path / "runs" / "few").mkdir()
    (tmp_path / "runs" / "few" / "group.yaml").touch()
    for words in (("runs", "compare"), ("runs", "log"), ("train", "--resume")):
        assert completed(*words, "") == ["few", "first", "second"]
        assert completed(*words, "fe") == ["few"]
    (tmp_path / "others" / "third" / "weights").mkdir(parents=True)
    assert completed("eval", "--runs-dir", "others", "") == ["third"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_that_of_the_shell(shell: str) -> None:
    script = run("completion", shell).stdout
    assert f"_FASTCIFAR_COMPLETE={shell}_complete" in script
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in refused(2, "completion", "tcsh")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "fastcifar"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastcifar "$@"\n')
    program.chmod(0o755)
    line = """
eval "$(fastcifar completion bash)"
complete -p fastcifar
COMP_WORDS=(fastcifar train --ba); COMP_CWORD=2
_fastcifar_completion fastcifar
echo "${COMPREPLY[@]}"
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stdout.splitlines() == ["complete -o nosort -F _fastcifar_completion fastcifar", "--batch-size"]


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.shell_completion import BashComplete; from fastcifar.cli import main\n"
        "complete = BashComplete(main, {}, 'fastcifar', '_FASTCIFAR_COMPLETE')\n"
        "assert complete.get_completions(['train', '--recipe'], 'f') and complete.get_completions(['eval'], '')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
