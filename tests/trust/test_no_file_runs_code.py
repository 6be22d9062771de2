"""No file runs code: archives, checkpoints, weights, recipes, settings, pipelines, arrays, run folders.

Each payload leaves a file `ran` if it is executed, in whatever way.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

from fastcifar.cli import main
from fastcifar.training import RunFolder, weights
from fastcifar.training.checkpoint import load_state
from tests.trust.cases import count, error_line, run_cli, with_checksum

ALLOWED = (0, 1, 2, 3, 4, 6)


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In an empty folder with a run `runs/a`, and a module that must never be imported because a file names it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs")
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef network(num_classes): pass\n"
    Path("hostile_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return marker


def use(*args: object) -> str:
    """What the command says; it may work or refuse, but neither crash nor show a traceback."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code in ALLOWED, result.output
    assert "Traceback" not in result.output
    assert "unexpected error" not in result.output, result.output
    return result.output


def use_run(marker: Path) -> None:
    """Everything that reads a run folder."""
    for args in (
        ("train", "--resume", "a", "--epochs", 2, "--max-steps", 4),
        ("eval", "a"),
        ("explain", "a", "--n", 1, "--layers", "layer3", "--methods", "gradcam"),
        ("report", "a"),
    ):
        use(*args)
        assert not marker.exists(), args
        assert "hostile_module" not in sys.modules, args


def with_metadata(path: Path, **changed: object) -> None:
    """Weights that say something else of themselves, and have the checksum of it."""
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "metadata_sha256"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata |= {key: json.dumps(value) for key, value in changed.items()}
    metadata["metadata_sha256"] = json.dumps(weights._metadata_sha256(metadata))
    save_file(tensors, path, metadata)


def pickled_arrays(path: Path, marker: Path) -> None:
    with np.load(path) as found:
        arrays = dict(found)
    name = "logits" if "logits" in arrays else "maps"
    np.savez(path, **{**arrays, name: np.array([Payload(marker)], dtype=object)})


def zip_of(marker: Path) -> bytes:
    """What torch.load would take for a checkpoint."""
    return with_checksum({"model": Payload(marker)})


def whole_state(run: RunFolder, marker: Path) -> None:
    """A checkpoint with a payload in it."""
    run.last.write_bytes(with_checksum({**torch.load(run.last, weights_only=True), "extra": Payload(marker)}))


YAML = "!!python/object/apply:builtins.open [{marker}, w]"
POISONS: dict[str, Callable[[RunFolder, Path], Any]] = {
    "checkpoint: pickle": lambda run, marker: run.last.write_bytes(pickle.dumps(Payload(marker))),
    "checkpoint: zip": lambda run, marker: run.last.write_bytes(zip_of(marker)),
    "checkpoint: whole, and more": whole_state,
    "previous: zip": lambda run, marker: (run.last.write_bytes(b""), run.previous.write_bytes(zip_of(marker))),
    "weights: pickle": lambda run, marker: run.best.write_bytes(pickle.dumps(Payload(marker))),
    "weights: zip": lambda run, marker: run.best.write_bytes(zip_of(marker)),
    "weights: name code": lambda run, marker: with_metadata(run.best, model={"name": "hostile_module:network"}),
    "weights: name a program": lambda run, marker: with_metadata(run.best, model={"name": "os:system"}),
    "weights: name a download": lambda run, marker: with_metadata(run.best, model={"name": "timm:hf-hub:some/one"}),
    "weights: odd settings": lambda run, marker: with_metadata(run.best, model={"name": ["x"], "__class__": 1}),
    "settings: tag": lambda run, marker: run.config.write_text(f"model: {YAML.format(marker=marker)}\n"),
    "settings: name code": lambda run, marker: run.config.write_text(
        run.config.read_text().replace("model: small", "model: hostile_module:network")
    ),
    "settings: aliases": lambda run, marker: run.config.write_text(
        "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
    ),
    "predictions: objects": lambda run, marker: pickled_arrays(run.predictions, marker),
    "predictions: pickle": lambda run, marker: run.predictions.write_bytes(pickle.dumps(Payload(marker))),
    "maps: objects": lambda run, marker: pickled_arrays(run.explain / "maps.npz", marker),
    "metrics: tag": lambda run, marker: run.metrics.write_text(YAML.format(marker=marker)),
    "environment: tag": lambda run, marker: (run.path / "env.json").write_text(YAML.format(marker=marker)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if i % 3 else [])
        for i, name in enumerate(list(POISONS)[:: count(3, 1)])
    ],
)
def test_no_file_of_a_run_folder_runs_code(name: str, marker: Path, tally: Callable[[str], None]) -> None:
    run = RunFolder(Path("runs/a"))
    if name.startswith("maps"):
        use("explain", "a", "--n", 1, "--layers", "layer3", "--methods", "gradcam")
    POISONS[name](run, marker)
    use_run(marker)
    tally(f"{name}: not executed")


@pytest.mark.slow
def test_a_program_of_its_own_runs_no_code_either(marker: Path) -> None:
    zip_checkpoint = zip_of(marker)
    for path in (RunFolder(Path("runs/a")).last, RunFolder(Path("runs/a")).best):
        path.write_bytes(zip_checkpoint)
    for args in (("train", "--resume", "a", "--epochs", 2), ("eval", "a")):
        code, _, errors = run_cli(*args)
        assert code == 6, errors
        error_line(errors)
        assert not marker.exists()


def recipe(settings: str) -> Callable[[Path], tuple[str, ...]]:
    def make(marker: Path) -> tuple[str, ...]:
        Path("r.yaml").write_text(f"title: x\nsettings:\n  {settings.format(marker=marker)}\n")
        return ("train", "--recipe", "r.yaml", "--max-steps", "1")

    return make


def pipeline(text: str) -> Callable[[Path], tuple[str, ...]]:
    def make(marker: Path) -> tuple[str, ...]:
        Path("p.json").write_text(text.replace("MARKER", str(marker)))
        return ("train", "--augment", "p.json", "--model", "small", "--max-steps", "1")

    return make


def batches(folder: bool) -> Callable[[Path], tuple[str, ...]]:
    """CIFAR-10's files, every one of which is a payload."""

    def make(marker: Path) -> tuple[str, ...]:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
        base = Path("cifar-10-batches-py")
        base.mkdir()
        for name in names:
            (base / name).write_bytes(pickle.dumps(Payload(marker)))
        if folder:
            return ("convert", "--source", str(base))
        with tarfile.open("cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(base)
        return ("convert", "--source", "cifar-10-python.tar.gz")

    return make


def archive_of_pickles(marker: Path) -> tuple[str, ...]:
    with zipfile.ZipFile("images.zip", "w") as archive:
        for split in ("train", "test"):
            archive.writestr(f"{split}/cat/0.png", pickle.dumps(Payload(marker)))
    return ("convert", "--source", "images.zip")


def manifest(marker: Path) -> tuple[str, ...]:
    Path("x.beton.json").write_text(YAML.format(marker=marker))
    Path("x.beton").write_bytes(pickle.dumps(Payload(marker)))
    return ("inspect", "x.beton")


def initial_weights(content: Callable[[Path], bytes]) -> Callable[[Path], tuple[str, ...]]:
    def make(marker: Path) -> tuple[str, ...]:
        Path("w.pt").write_bytes(content(marker))
        return ("train", "--init", "w.pt", "--model", "small", "--max-steps", "1")

    return make


CALL = '{"__version__": "2.0.8", "transform": {"__class_fullname__": "%s", "p": 1.0, %s}}'
FILES: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "recipe: tag": recipe("model: " + YAML),
    "recipe: name code": recipe("model: hostile_module:network"),
    "recipe: new object": recipe("lr: !!python/object/new:hostile_module.network [1]"),
    "recipe: download": recipe("model: timm:hf-hub:some/one"),
    "recipe: weights": recipe("init: w.pt"),
    "weights: zip": initial_weights(zip_of),
    "weights: pickle": initial_weights(lambda marker: pickle.dumps(Payload(marker))),
    "recipe: pipeline": recipe("pipeline: hostile_module"),
    "pipeline: program": pipeline(CALL % ("os.system", '"command": "touch MARKER"')),
    "pipeline: module": pipeline(CALL % ("hostile_module.network", '"num_classes": 1')),
    "pipeline: lambda": pipeline(CALL % ("Lambda", '"name": "x", "image": "hostile_module.network"')),
    "pipeline: tag": pipeline(YAML.format(marker="MARKER")),
    "CIFAR's archive": batches(folder=False),
    "CIFAR's folder": batches(folder=True),
    "archive of pickles": archive_of_pickles,
    "manifest": manifest,
}


@pytest.mark.parametrize("name", list(FILES)[:: count(2, 1)])
def test_no_input_file_runs_code(
    name: str, marker: Path, data_dir: Path, tally: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA_DIR", str(data_dir))
    args = FILES[name](marker)
    if args[0] == "convert":
        args = (*args, "--data-dir", "out")
    assert "Error: " in use(*args)
    assert not marker.exists()
    assert "hostile_module" not in sys.modules
    tally(f"{name}: not executed")


class Overwritten:
    """A tensor whose pickle writes into it."""

    def __reduce__(self) -> tuple[object, ...]:
        rebuild, arguments = torch.zeros(4).__reduce_ex__(2)[:2]
        return rebuild, arguments, None, None, iter([(0, 1.0)])


def written_into() -> bytes:
    torch.save({"w": Overwritten()}, file := io.BytesIO())
    return file.getvalue()


def shorter_than_its_tensor() -> bytes:
    torch.save({"w": torch.zeros(1_000)}, whole := io.BytesIO())
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(file := io.BytesIO(), "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, content[:16] if name.endswith("data/0") else content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(written_into, "SETITEM"), (shorter_than_its_tensor, "does not match expected size")],
)
def test_torch_refuses_weights_that_corrupt_memory(content: Callable[[], bytes], reason: str) -> None:
    """The reason for `torch>=2.10` in setup.cfg: earlier versions read both (CVE-2026-24747)."""
    with pytest.raises((pickle.UnpicklingError, RuntimeError), match=reason):
        load_state(content())


def test_a_payload_would_be_noticed(marker: Path) -> None:
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()
    os.unlink(marker)
    import hostile_module  # type: ignore[import-not-found]  # noqa: F401

    assert marker.exists()
    del sys.modules["hostile_module"]
