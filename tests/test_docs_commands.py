"""The commands of the documentation: those of each page run, in their order, in a folder with everything they name.

In this process, on 80 images: a training has two steps, the networks are narrow and figures are empty. What is not run
is in `NOT_RUN`.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image

from fastcifar import plotting
from fastcifar.cli import main, settings
from fastcifar.config import TrainConfig
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.models import resnet
from tests.test_docs import PAGES, ROOT, fenced

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ordinary_algorithms")]
REFERENCE = ("commands.md", "settings.md", "api.md")
"""Generated pages: usage, not examples. tests/test_docs.py compares them with the program."""
NOT_RUN = {
    "make ": "tests/test_scripts.py",
    "pip install ": "needs a network; tests/test_wheel.py installs the wheel",
    "python -m benchmarks": "minutes to hours; a test below imports them all",
    "tensorboard ": "a server",
    "torchrun ": "several processes: tests/test_two_machines.py, tests/test_distributed.py",
    "srun ": "needs SLURM",
    "first=$(scontrol ": "needs SLURM",
}
"""Beginnings of commands that are not run, and the reason, or what runs them."""
NOT_COMMANDS = (
    "convert    write images",  # README.md: the list of commands, the figure
    "images ─convert─▶",
    "cli, api ->",  # design.md: the layers
    "y = clip(",  # augmentation.md: a formula
    "train: 312 images",  # own-images.md: output, files
    "data/  train.beton",
    "loader: resident",  # quickstart.md: a log
    "runs/resnet18/",  # training.md: files
)
"""Beginnings of indented blocks that are not commands."""
FIGURES = ("cam_grid", "cam_sheet", "confusion_matrix", "gallery", "group_curves", "preview", "reliability_diagram")
NAMES = {"SOURCE": "my-images", "RUN": "resnet18"}
"""What stands for a name on the pages."""


def indented(page: Path) -> list[str]:
    """The indented blocks, without their indentation."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:^    .+\n)+", text, flags=re.MULTILINE)]


def commands_of(page: Path) -> list[str]:
    """The lines of indented blocks, but for those of `NOT_COMMANDS`, and of ```bash blocks."""
    blocks = [block for block in indented(page) if not block.startswith(NOT_COMMANDS)]
    blocks += [block.replace("\\\n", "") for block in fenced(page, "bash")]
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


PAGES_WITH_COMMANDS = [page for page in PAGES if page.name not in REFERENCE and commands_of(page)]


def quick(config: TrainConfig) -> TrainConfig:
    """The same training, of two steps on sixteen images."""
    few = {"epochs": min(config.epochs, 2), "max_steps": 2, "batch_size": 16, "progressive": ()}
    if config.data.val_size:
        few["val_size"] = min(config.data.val_size, 16)
    return config.with_settings(**few)


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """A ResNet-18 with few channels, trainings of two steps by the command line, and empty figures."""
    train_config = settings.train_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "WIDTHS", (16, 16, 16, 16))  # with 8, oneDNN crashes: see fastcifar.models.probe
        for name in FIGURES:
            patch.setattr(plotting, name, lambda *args, **more: Figure(figsize=(1, 1)))
        patch.setattr(settings, "train_config", lambda *given: quick(train_config(*given)))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, narrow: None) -> Path:
    """A folder with what the pages name: images, betons, runs. Not to be written to."""
    root = tmp_path_factory.mktemp("pages")
    with synthetic_source(80, 40) as source:
        for split, samples in source.splits.items():
            for number, sample in enumerate(samples):
                path = root / "my-images" / split / source.class_names[int(sample.label)] / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(sample.image)).save(path)
    images = sorted((root / "my-images").glob("train/*/*.png"))
    shutil.copy(images[0], root / "my-images" / "test" / images[0].parent.name / "leak.png")
    for path in [*images[:3], *images[8:11]]:
        copy = root / "photos" / path.relative_to(root / "my-images" / "train")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    Image.open(images[4]).resize((64, 48)).save(root / "my-cat.jpg")
    (root / "more").mkdir()
    shutil.copy(images[5], root / "more")
    for name, kept in {"album.zip": images[:2], "photos.zip": images}.items():
        with zipfile.ZipFile(root / name, "w") as archive:
            for path in kept:
                archive.write(path, path.relative_to(root / "my-images" / "train"))
    (root / "last").touch()
    os.utime(root / "last", (0, 0))
    (root / "train").mkdir()
    lines = ["id,label"]
    for number, path in enumerate(images, 1):
        shutil.copy(path, root / "train" / f"{number}.png")
        lines.append(f"{number},{path.parent.name}")
    (root / "trainLabels.csv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("FASTCIFAR_SOURCE", "my-images")
        run("fastcifar convert", root)
        for name in ("few", "other"):
            shutil.copytree(root / "data", root / name)
        run("fastcifar audit --only duplicates", root)
        shutil.move(root / "audit" / "issues.csv", root / "issues.csv")
        shutil.rmtree(root / "audit")
        (root / "data" / "audit.json").unlink()
        for name, flags in {"fast": "--recipe fast", "smooth": "--model small", "plain": "--model small"}.items():
            run(f"fastcifar train {flags} --name {name}", root)
        run("fastcifar train", root)
    random = np.random.default_rng(0)
    probabilities = {name: random.dirichlet(np.ones(10), count) for name, count in {"train": 80, "test": 41}.items()}
    np.savez(root / "probabilities.npz", **probabilities)
    corrupted = root / "CIFAR-10-C"
    corrupted.mkdir()
    np.save(corrupted / "gaussian_noise.npy", random.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    np.save(corrupted / "labels.npy", np.tile(np.arange(10, dtype=np.uint8), 5))
    return root


def run(line: str, folder: Path) -> None:
    """Run a command as a shell in `folder` would: with its comment, a pipe into it, or its output in a file."""
    for name, value in NAMES.items():
        line = re.sub(rf"\b{name}\b", value, line)
    before, piped, after = line.rpartition(" | ")
    stdin = None
    if piped:
        stdin = subprocess.run(before, shell=True, cwd=folder, capture_output=True, check=True).stdout
        line = after
    if inner := re.fullmatch(r"source <\((.*)\)", line.partition(" #")[0].strip()):
        line = inner[1]
    line, _, target = line.partition(" > ")
    words = shlex.split(line, comments=True)
    assert words[0] == "fastcifar", line
    assert isinstance(main, click.Group)
    result = CliRunner().invoke(main, words[1:], input=stdin)
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    if target:
        path = folder / target.replace("~", "home")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result.stdout)


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("default")
def test_the_commands_of_a_page_run_in_their_order(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCIFAR_SOURCE", "my-images")
    for number, example in enumerate(fenced(page, "yaml")):
        (tmp_path / ("mine.yaml" if number == 0 else f"mine-{number}.yaml")).write_text(example)
    if page.name == "fine-tuning.md":
        timm: Any = pytest.importorskip("timm")
        safetensors: Any = pytest.importorskip("safetensors.torch")
        safetensors.save_file(timm.create_model("resnet18").state_dict(), "resnet18.safetensors")
    if page.name == "explain.md":
        shutil.copy("my-cat.jpg", "photos")
    if page.name == "augmentation.md":  # the lines of Python before the command
        pytest.importorskip("albumentations")
        exec(next(block for block in fenced(page, "python") if "pipeline.json" in block), {})
    threads = torch.get_num_threads()
    try:
        for line in commands_of(page):
            if not line.startswith(tuple(NOT_RUN)):
                run(line, tmp_path)
    finally:
        torch.set_num_threads(threads)


def test_every_exception_is_used() -> None:
    lines = [line for page in PAGES_WITH_COMMANDS for line in commands_of(page)]
    blocks = [block for page in PAGES for block in indented(page)]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), start
    for start in NOT_COMMANDS:
        assert any(block.startswith(start) for block in blocks), start


def test_every_benchmark_has_a_line_on_its_page_and_can_be_imported() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        module = importlib.import_module(f"benchmarks.{path.stem}")
        if hasattr(module, "main"):
            assert f"| `benchmarks.{path.stem}` |" in page
            assert CliRunner().invoke(module.main, ["--help"]).exit_code == 0, path.stem
