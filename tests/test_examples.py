"""The examples run: scripts and the notebook, on synthetic images."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
FLAGS = ("--epochs", "1", "--batch-size", "40", "--data-dir", "data")
SCRIPTS = {
    "own_loop.py": (FLAGS, r"epoch 1: loss \d\.\d{3}, test accuracy \d+\.\d%"),
    "lightning.py": (FLAGS, r"test accuracy \d+\.\d%"),
    "timm_model.py": (
        (*FLAGS, "--model", "timm:test_resnet"),
        (
            r"\d+\.\d% of the test images are correctly classified\n"
            r"9 mistakes, at the layers \S.*: \S+/runs/test_resnet/mistakes\.png\n"
            r"for other programs: \S+/runs/test_resnet/export/model\.onnx"
        ),
    ),
}
"""Of each script, flags for a short run and what it prints at the end."""
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(tiny_data)
    return tmp_path


def test_every_example_is_here() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir()) == sorted([*SCRIPTS, "quickstart.ipynb"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_and_prints_its_accuracy(name: str, folder: Path) -> None:
    flags, printed = SCRIPTS[name]
    command = [sys.executable, str(EXAMPLES / name), *flags]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert re.search(rf"^{printed}\n\Z", process.stdout, re.MULTILINE), process.stdout
    if name == "timm_model.py":
        assert (folder / "runs" / "test_resnet" / "export" / "model.onnx").is_file()
        assert (folder / "runs" / "test_resnet" / "mistakes.png").is_file()


def test_a_network_without_mistakes_has_no_picture_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = SimpleNamespace(path="model.onnx")
    run = SimpleNamespace(metrics={"test_accuracy": 1.0}, explain=lambda **_: [], export=lambda: export)
    monkeypatch.setattr("fastcifar.train", lambda config: run)
    monkeypatch.setattr("sys.argv", ["timm_model.py"])
    runpy.run_path(str(EXAMPLES / "timm_model.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "100.0% of the test images are correctly classified",
        "for other programs: model.onnx",
    ]


def test_the_loop_of_your_own_is_short() -> None:
    code = [line for line in (EXAMPLES / "own_loop.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 45


def read_notebook() -> Any:
    return pytest.importorskip("nbformat").read(EXAMPLES / "quickstart.ipynb", as_version=4)


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    notebook = read_notebook()
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert parameters.source == "SOURCE = None\nMINUTES = 2\nPICTURES = []"
    assert any('convert("download" if SOURCE is None else SOURCE' in cell.source for cell in notebook.cells)
    for index in range(160):  # so few that seconds are enough for several steps
        path = tmp_path / "images" / ("test" if index % 4 == 3 else "train") / "abcde"[index % 5] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 60).convert("RGB").save(path)
    parameters.source = "SOURCE, MINUTES, PICTURES = 'images', 0.3, []"
    (training,) = [cell for cell in notebook.cells if "fastcifar.train(" in cell.source]
    training.source = training.source.replace('tta="none"', 'tta="none", batch_size=30, lr=0.02, bias_lr=1')
    *_, pictures = (cell for cell in notebook.cells if cell.cell_type == "code")
    Image.new("RGB", (60, 40)).save(tmp_path / "mine.png")
    again = {**pictures, "id": "again", "source": f"PICTURES = ['mine.png']\n{pictures.source}"}
    shown_last = "display(run.curves(), maps.grid())\nassert run.metrics['steps'] > 1, run.metrics"
    figures = {**again, "id": "figures", "source": shown_last}
    notebook.cells += [type(pictures)(again), type(pictures)(figures)]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [
        (
            "".join(output.text for output in cell.outputs if output.get("name") == "stdout"),
            {kind: text for output in cell.outputs for kind, text in output.get("data", {}).items()},
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    _, _, (_, converted), (_, images), (_, run), (_, maps), (confused, _), (named, own), (mine, _), _ = shown
    assert re.fullmatch(r"\{'train': \d+, 'test': \d+\}", converted["text/plain"])
    assert "image/png" in images
    assert "test accuracy" in run["text/html"]
    assert "data:image/png" in run["text/html"]
    assert "image/png" in maps
    assert re.fullmatch(r"(\w+ predicted as \w+: \d+ times\n){5}", confused)
    assert re.fullmatch(r"data/picture\.png (\w+ \d+%(, )?){3}\n", named)
    assert "image/png" in own
    assert mine.startswith("mine.png ")
    assert ["image/png" in output.data for output in notebook.cells[-1].outputs] == [True, True]
    assert (tmp_path / "runs" / "fast" / "report.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "images", "mine.png", "runs"]


PIP = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.register_magic_function(print, magic_name="pip")
sys.modules["fastcifar"] = None
shell.run_cell(sys.stdin.read()).raise_error()
"""


def test_the_first_cell_of_the_notebook_installs_what_the_documentation_says(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    first = next(cell for cell in read_notebook().cells if cell.cell_type == "code")
    process = subprocess.run(
        [sys.executable, "-c", PIP],
        input=first.source,
        cwd=tmp_path,
        env={"IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(process.stdout) == ["install", "-q", "fastcifar[all]"]
    page = (EXAMPLES.parent / "docs" / "environments.md").read_text(encoding="utf-8")
    assert "`INSTALL` names where fastcifar is missing: `fastcifar[all]` by default" in page
