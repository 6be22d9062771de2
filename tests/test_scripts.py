"""What `make setup` and `make demo` run, with programs in the place of Python, pip and fastcifar that only say what
they were called with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FASTCIFAR = """#!/bin/sh
echo "called: $*"
[ "$1" != train ] || mkdir -p runs/demo
[ "$1" != train ] || touch runs/demo/report.html
"""
PIP = """#!/bin/sh
echo "called: $*" >>"$CALLS"
"""
PYTHON = """#!/bin/sh
mkdir -p "$3/bin" && cp "$(dirname "$0")/pip" "$3/bin/python"
"""

pytestmark = pytest.mark.slow


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(script: str, *args: str, cwd: Path, **env: str) -> str:
    command = ["bash", str(ROOT / "scripts" / script), *args]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FASTCIFAR_")}
    done = subprocess.run(command, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that has a space in its name."""
    folder = tmp_path / "my work"
    program(folder / "bin" / "fastcifar", FASTCIFAR)
    return folder


def test_the_demo_names_files_that_are_there_and_commands_that_can_be_pasted(folder: Path) -> None:
    (folder / "synthetic").mkdir()  # not what is converted
    output = run("demo.sh", "synthetic", cwd=folder, BIN=str(folder / "bin"), CDPATH=str(folder))
    lines = output.splitlines()
    assert "called: convert --source synthetic" in lines
    assert [line for line in lines if line.startswith("    demo/")] == ["    demo/runs/demo/report.html"]
    commands = [line for line in lines if "fastcifar " in line and line.startswith("    ")]
    assert len(commands) == 2
    for command in commands:
        pasted = subprocess.run(command, shell=True, cwd=folder / "demo", capture_output=True, text=True, check=True)
        assert pasted.stdout.startswith("called: ")


@pytest.mark.parametrize("absolute", [True, False])
def test_the_demo_of_cifar_takes_what_is_named_from_where_make_was_called(folder: Path, absolute: bool) -> None:
    (folder / "images.zip").touch()
    source = str(folder / "images.zip") if absolute else "images.zip"
    output = run("demo.sh", "cifar", cwd=folder, BIN=str(folder / "bin"), FASTCIFAR_SOURCE=source)
    assert f"called: convert --source {folder / 'images.zip'}" in output
    assert "downloaded" not in output
    output = run("demo.sh", "cifar", cwd=folder, BIN=str(folder / "bin"), FASTCIFAR_SOURCE="")
    assert "called: convert --source download" in output
    assert "FASTCIFAR_SOURCE=PATH" in output


@pytest.mark.parametrize("before", ["nothing", "no pip"])
def test_set_up_goes_on_where_it_was_left_without_pip(tmp_path: Path, before: str) -> None:
    """As `python3 -m venv` leaves it on Debian where python3-venv is not installed."""
    stubs = tmp_path / "bin"
    program(stubs / "pkg-config", "#!/bin/sh\n")  # nothing is installed in the system
    program(stubs / "pip", PIP)
    if before == "no pip":
        program(tmp_path / ".venv" / "bin" / "python", "#!/bin/sh\necho No module named pip >&2\nexit 1\n")
    for tool in ("bash", "dirname", "mktemp", "rm", "mkdir", "cp", "tail", "sh"):  # and no uv
        (stubs / tool).symlink_to(next(p for p in (Path("/bin") / tool, Path("/usr/bin") / tool) if p.exists()))
    settings = {"PATH": str(stubs), "PYTHON": str(program(stubs / "python3", PYTHON)), "VENV": ".venv"}
    calls = tmp_path / "calls"
    output = run("setup.sh", cwd=tmp_path, CALLS=str(calls), FFCV_NEEDS="", TORCH_INDEX="", **settings)
    assert "done in" in output
    assert output.endswith("next: source .venv/bin/activate\n")
    assert "install --disable-pip-version-check --editable .[dev]" in calls.read_text()
