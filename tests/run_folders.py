"""Run folders written without training: the files of a run, of `explain` and of a range test, with any class names."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from torch import nn

from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.inference.predictions import Predictions
from fastcifar.training import RunFolder
from fastcifar.training.weights import DatasetInfo, file_sha256, save_weights

INDEX = ("index", "true", "predicted", "confidence", "loss", "file", "origin")


def write_metrics(run: RunFolder) -> None:
    run.write_metrics(
        {
            "test_accuracy": 0.75,
            "test_loss": 0.8125,
            "tta": "flip",
            "tta_accuracy": 0.78,
            "train_seconds": 325.2,
            "model": "small",
            "recipe": "fast",
            "epochs": 3,
        }
    )


def write_results(run: RunFolder, validated: bool = True) -> None:
    rows = [
        {
            "epoch": i,
            "lr": 0.1 / i**4,
            "train_loss": 2.0 / i,
            "train_accuracy": 0.3 * i,
            "val_loss": 2.2 / i if validated else None,
            "val_accuracy": 0.25 * i if validated else None,
            "seconds": 1.0,
            "images_per_s": 100.0,
        }
        for i in (1, 2, 3)
    ]
    run.write_results(rows)


def write_weights(run: RunFolder, names: Sequence[str], model: str = "small", sha256: str = "0" * 64) -> None:
    run.best.parent.mkdir(parents=True, exist_ok=True)
    info = DatasetInfo(
        class_names=tuple(names), image_shape=(32, 32, 3), mean=(1.0,) * 3, std=(1.0,) * 3, sha256=sha256
    )
    save_weights(run.best, nn.Linear(2, 2), ModelConfig(name=model), info)
    run.last.touch()


def write_predictions(run: RunFolder, num_classes: int, n: int = 60) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int64) % num_classes
    logits = random.normal(size=(n, num_classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    weights_sha256 = file_sha256(run.best) if run.best.is_file() else ""
    Predictions(np.arange(n), labels, logits, weights_sha256).save(run.predictions)


def write_explained(
    run: RunFolder, names: Sequence[str], n: int = 6, folder: str = "explain", own: bool = False, sheets: bool = True
) -> None:
    """n images; image i is of class i and predicted as the next class, but for the last, which is correct."""
    random = np.random.default_rng(1)
    root = run.path / folder
    (root / "sheets").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        true, guess = names[i % len(names)], names[(i + (i < n - 1)) % len(names)]
        row = [str(i), true, guess, "0.75", f"{4 - i / 100:.3f}", f"sheets/{i:05d}.png", ""]
        rows.append([f"my {names[i % len(names)]}.jpg", "", guess, "0.75", "", row[5], ""] if own else row)
        if sheets:
            PIL.Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save(root / row[5])
    write_index(root / "index.csv", rows)
    write_maps(root / "maps.npz", n, own)


def write_index(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([INDEX, *rows])


def write_maps(path: Path, n: int, own: bool = False, **overrides: object) -> None:
    random = np.random.default_rng(2)
    weights = [run.best for run in map(RunFolder, path.parents) if run.best.is_file()]
    arrays = {
        "weights_sha256": np.array(file_sha256(weights[0]) if weights else ""),
        "selection": np.array(f"{n} of your images" if own else f"{n} of 60 test images"),
        "indices": np.full(n, -1) if own else np.arange(n),
        "images": random.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "targets": np.array(["pred", "true"]),
        "methods": np.array(["gradcam"]),
        "layers": np.array(["layer1", "layer2"]),
        "sizes": np.array([[8, 8], [4, 4]]),
        "classes": np.zeros((2, n), np.int64),
        "maps": random.random((2, 1, n, 2, 8, 8), dtype=np.float32),
        "has_evidence": np.ones((2, 1, n, 2), np.bool_),
    }
    np.savez_compressed(path, **{**arrays, **overrides})  # type: ignore[arg-type]


def write_range_test(run: RunFolder) -> None:
    run.lr_find.mkdir()
    rates = np.geomspace(1e-5, 1, 60)
    losses = 2.3 - 1.5 / (1 + np.exp(-3 * (np.log10(rates) + 2)))
    rows = [f"{rate},{loss},{loss}" for rate, loss in zip(rates, losses, strict=True)]
    (run.lr_find / "lr_find.csv").write_text("\n".join(["lr,loss,smoothed_loss", *rows, ""]))


def whole_run(path: Path, names: Sequence[str], model: str = "small") -> RunFolder:
    """All files that a run folder can have."""
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.write_config(TrainConfig.from_settings(model="small", epochs=3, lr=0.25))
    env = json.loads((path / "env.json").read_text()) | {"processor": "A processor", "gpu": None}
    (path / "env.json").write_text(json.dumps(env))
    write_metrics(run)
    write_results(run)
    write_weights(run, names, model)
    write_predictions(run, len(names))
    write_range_test(run)
    write_explained(run, names)
    write_explained(run, names, 2, "explain/images", own=True)
    return run
