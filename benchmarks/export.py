"""Exported networks: do they agree with torch, how large are they, and how fast is ONNX Runtime next to torch?

    python -m benchmarks.export --data-dir data --json

Each network is trained for two steps and exported, which compares the file with float32 torch on all test images. Then
ONNX Runtime and torch (eager, float32, channels-last, normalisation and softmax included) classify the same uint8
images in turn, after a warm-up. Networks for 224x224 pixels get a hundred test images, enlarged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from benchmarks import Command, options, row, save_rows, show
from fastcifar import convert, open_beton
from fastcifar.bench import measure
from fastcifar.bench.results import environment
from fastcifar.config import TrainConfig
from fastcifar.errors import FastcifarError, describe
from fastcifar.inference.export import export
from fastcifar.inference.export_formats import FORMATS
from fastcifar.inference.export_graph import Classifier
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.training import train

NETWORKS = (
    "small",
    "resnet18",
    "resnet18:layer",
    "resnet18:group",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "googlenet",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "inception_v3",
)
"""name, or name:norm."""
LARGE = {"vit_b_16": 224, "inception_v3": 96}
NUM_ENLARGED = 200
BATCHES = (1, 256)


def enlarged(data_dir: Path, side: int, folder: Path) -> Path:
    """`folder`, with a few of the test images at side x side."""
    beton = open_beton(data_dir / "test.beton")
    chosen = np.linspace(0, len(beton) - 1, min(NUM_ENLARGED, len(beton)), dtype=np.int64)  # of all classes
    names = [beton.class_names[label] for label in beton.labels[chosen]]
    convert(list(zip(beton.images(chosen), names, strict=True)), folder, size=side, test_share=0.5)
    return folder


def measured(name: str, data_dir: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """The row of a network."""
    network, _, norm = name.partition(":")
    if network in LARGE:
        data_dir = enlarged(data_dir, LARGE[network], folder / f"data-{name}")
    config = TrainConfig.from_settings(
        model=network, norm=norm or "batch", data_dir=str(data_dir), max_steps=2, batch_size=16, val_size=0
    )
    run, _ = train(config, runs_dir=folder / "runs")
    try:
        exported = export(run)
    except FastcifarError as error:
        return row(name, repeats=0, note=f"failed: {describe(error)}")
    values: dict[str, Any] = {
        "agreement": f"{exported.num_agreeing} of {exported.num_images}",
        "largest_difference": float(f"{exported.largest_difference:.2g}"),
        "megabytes": round(exported.num_bytes / 1e6, 1),
    }
    trained = TrainedRun(run, device="cpu")
    classifier, onnx = Classifier(trained.model, trained.info, None), FORMATS["onnx"].load(exported.path)
    images = trained.beton("test").images(np.arange(max(BATCHES)) % exported.num_images)
    for size in BATCHES:
        runs = {
            "onnx": lambda size=size: onnx(images[:size]),
            "torch": lambda size=size: eager(classifier, images[:size]),
        }
        for key, seconds in in_turn(runs, repeats).items():
            stem = f"{key}_ms_{size}"
            spread = {"": median(seconds), "_min": min(seconds), "_max": max(seconds)}
            values |= {f"{stem}{suffix}": round(1e3 * value, 2) for suffix, value in spread.items()}
    return row(name, **values, repeats=repeats)


def eager(classifier: Classifier, images: Any) -> torch.Tensor:
    with torch.inference_mode():
        return classifier(torch.from_numpy(images))


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each, round after round."""
    for run in runs.values():
        run()
    rounds = [{key: measure.timed(run) for key, run in runs.items()} for _ in range(repeats)]
    return {key: [each[key] for each in rounds] for key in runs}


@click.command(cls=Command)
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="name or name:norm, …")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@options("data_dir", "repeats")
def main(networks: str, threads: int, data_dir: str, repeats: int, save: bool, as_json: bool) -> None:
    """Agreement, size and speed of exported networks."""
    torch.set_num_threads(threads)
    rows = []
    for name in networks.split(","):
        click.echo(name, err=True)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, Path(data_dir), Path(folder), repeats))
    columns = ["name", "agreement", "largest_difference", "megabytes"]
    columns += [f"{key}_ms_{size}" for size in BATCHES for key in ("onnx", "torch")]
    show(rows, (*columns, "note"), as_json)
    if save:
        about = environment(f"{data_dir}, two steps of training, float32", torch.device("cpu"))
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
