"""The examples run: scripts and the notebook, on synthetic images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FLAGS = ("--epochs", "1", "--batch-size", "40", "--data-dir", "data")
SCRIPTS = {
    "own_loop.py": FLAGS,
    "lightning.py": FLAGS,
    "timm_model.py": (*FLAGS, "--model", "timm:test_resnet"),
}
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(tiny_data)
    return tmp_path


def test_every_example_is_here() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir()) == sorted([*SCRIPTS, "quickstart.ipynb"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_and_prints_its_accuracy(name: str, folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name), *SCRIPTS[name]]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "%" in process.stdout
    if name == "timm_model.py":
        assert (folder / "runs" / "test_resnet" / "export" / "model.onnx").is_file()
        assert (folder / "runs" / "test_resnet" / "mistakes.png").is_file()


def test_the_loop_of_your_own_is_short() -> None:
    code = [line for line in (EXAMPLES / "own_loop.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 45


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert parameters.source == "SOURCE = None\nMINUTES = 2"
    parameters.source = "SOURCE, MINUTES = 'synthetic', 0.1"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    text = str([cell.get("outputs") for cell in notebook.cells])
    assert "test accuracy" in text  # of the run
    assert text.count("image/png") >= 3  # images, maps of mistakes, maps of the picture
    assert "picture.png" in text
    assert (tmp_path / "runs" / "fast" / "report.html").is_file()
