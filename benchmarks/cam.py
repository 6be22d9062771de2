"""Class activation maps: how many seconds for 25 images at the four stages of ResNet-18 by two methods?

    python -m benchmarks.cam --data-dir data --json

The same network and images (normalised, float32) for each, in turn, after a warm-up: fastcifar takes all layers and
both methods from one pass; pytorch-grad-cam averages over layers, so it runs once per layer and method; captum
has Grad-CAM alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from benchmarks import Command, options, row, save_rows, show
from fastcifar import make_loader
from fastcifar.bench import measure
from fastcifar.bench.results import environment
from fastcifar.config import ModelConfig
from fastcifar.explain import Activations
from fastcifar.loaders.base import usable_device
from fastcifar.models import make_model

METHODS = ("gradcam", "gradcampp")
Run = Callable[[], object]


def ours(model: Any, images: torch.Tensor, targets: torch.Tensor) -> Run:
    return lambda: Activations(model, images, model.stages).maps(targets, METHODS)


def pytorch_grad_cam(model: Any, images: torch.Tensor, targets: torch.Tensor) -> Run:
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    classes = [ClassifierOutputTarget(int(target)) for target in targets]

    def run() -> None:
        for layer in model.stages:
            for method in (GradCAM, GradCAMPlusPlus):
                with method(model, [model.get_submodule(layer)]) as cam:
                    cam(images, classes)

    return run


def captum(model: Any, images: torch.Tensor, targets: torch.Tensor) -> Run:
    from captum.attr import LayerAttribution, LayerGradCam

    def run() -> None:
        for layer in model.stages:
            heat = LayerGradCam(model, model.get_submodule(layer)).attribute(images, targets, relu_attributions=True)
            LayerAttribution.interpolate(heat, images.shape[2:], "bilinear")

    return run


PEERS = {"fastcifar": ours, "pytorch-grad-cam": pytorch_grad_cam, "captum": captum}
NOTES = {"captum": "Grad-CAM only: it has no Grad-CAM++"}


@click.command(cls=Command)
@click.option("--n", default=25, show_default=True, type=click.IntRange(1), help="Images.")
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(5))
@options("data_dir", "device")
def main(data_dir: str, n: int, device: str, repeats: int, save: bool, as_json: bool) -> None:
    """Seconds for the maps of some images."""
    where = usable_device(device)
    loader = make_loader(Path(data_dir) / "test.beton", train=False, batch_size=n, device=where)
    batch = next(iter(loader))
    torch.manual_seed(0)
    model = make_model(ModelConfig(name="resnet18"), len(loader.beton.class_names)).to(where).eval()
    runs, seconds, notes = {}, {name: [] for name in PEERS}, dict(NOTES)
    for name, make in PEERS.items():
        try:
            runs[name] = make(model, batch.images, batch.labels)
        except ImportError as error:
            notes[name] = f"skipped: {error}"
            continue
        runs[name]()
    for number in range(repeats):
        click.echo(f"round {number + 1} of {repeats}", err=True)
        for name, run in runs.items():
            seconds[name].append(measure.timed(run, where))
    rows = []
    for name, times in seconds.items():
        values: dict[str, Any] = {"seconds": None, "seconds_min": None, "seconds_max": None}
        if times:
            values = {"seconds": median(times), "seconds_min": min(times), "seconds_max": max(times)}
            values = {key: round(value, 4) for key, value in values.items()}
        rows.append(row(name, **values, repeats=len(times), note=notes.get(name, "")))
    show(rows, ("name", "seconds", "seconds_min", "seconds_max", "note"), as_json)
    if save:
        save_rows(__file__, rows, environment(f"{data_dir}, resnet18, {n} images, 4 layers, 2 methods", where))


if __name__ == "__main__":
    main()
