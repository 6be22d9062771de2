"""`export`: a run as one file for other programs, which is compared with the run before it is kept."""

from __future__ import annotations

import json
import math
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastcifar
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError, UsageError, describe
from fastcifar.inference.export_formats import FORMATS, Classify
from fastcifar.inference.export_graph import export_graph
from fastcifar.inference.model_card import card
from fastcifar.inference.predict import Columns, concatenate, predict
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.atomic import new_file, write_text
from fastcifar.io.checks import require_choice
from fastcifar.io.paths import make_folder, user_path
from fastcifar.loaders import make_loader
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder, find_run

BATCH_SIZE = 256
TIE = 1e-4
"""Two probabilities that differ by less may change places: float32 is rounded in another order."""
MAX_DIFFERENCE = 1e-3
"""Of a probability. Rounding makes less than 4e-5 (benchmarks.export); another temperature or normalisation more."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """The result of `export`."""

    path: Path
    format: str
    num_bytes: int
    num_images: int
    """Test images on which the file was compared with the network in torch."""
    num_agreeing: int
    """Of those, the ones of the same class as by the network in float32."""
    num_agreeing_with_eval: int
    """The ones of the same class as by `eval`, which uses the autocast of training."""
    largest_difference: float
    """Of a probability, to the network in float32."""
    accuracy: float
    """Of the network in float32 on the test images, 0..1."""
    temperature: float | None
    """By which the logits are divided; None if the run is not calibrated."""
    not_calibrated: str
    """Why it is not; empty if it is."""
    model_card: Path | None


@standard_torch_defaults()
def export(
    run: RunFolder | str | os.PathLike[str] | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    format: str = "onnx",
    output: str | os.PathLike[str] | None = None,
    model_card: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Export:
    """Export the best weights of a run as a function of images as stored, (N, H, W, 3) uint8 RGB, to probabilities,
    (N, C) float32: with normalisation, calibration and softmax.

    Before the file gets its name, it is compared with the network in float32 torch on all test images; if they differ,
    there is no file, or the earlier one.

    run: its name or path; None for the latest in `runs_dir`. format: 'onnx', or 'torch' for `torch.export.load`.
    output: by default export/model.onnx (or .pt2) in the run folder. model_card: write a description in Markdown next
    to the file. data_dir: the folder of test.beton, by default where it was in training. trusted:
    'package.module:function', the code of the run's network, if you trust it. reporter: shows progress, e.g. a
    `fastcifar.bars.Bars`. Raises FastcifarError (1) if the network cannot be exported or the file differs;
    MissingExtraError (3); DataError (4) if test.beton is missing, damaged or does not fit; CheckpointError (6);
    UsageError (2).

    Examples:
        >>> exported = export("fast", format="torch")
        >>> exported.path.name, exported.num_agreeing == exported.num_images
        ('model.pt2', True)
    """
    require_choice("format", format, tuple(FORMATS))
    FORMATS[format].require()
    path = None if output is None else _output_path(output, FORMATS[format].suffix)
    folder = run if isinstance(run, RunFolder) else find_run(run, runs_dir, trained=True)
    trained = TrainedRun(folder, data_dir=data_dir, device="cpu", trusted=trusted, reporter=reporter)
    beton = trained.beton("test")
    evaluated = trained.predictions("test")
    temperature = trained.calibration.temperature if trained.calibration else None
    program = export_graph(trained.model, trained.info, temperature)
    content = FORMATS[format].content(program, _metadata(trained))
    if path is None:
        path = folder.make_subfolder(folder.path / "export") / f"model{FORMATS[format].suffix}"
    make_folder(path.parent)
    with new_file(path, content) as file:
        predictions, num_agreeing, largest_difference = compare(FORMATS[format].load(file), trained, beton)
    exported = Export(
        path=path,
        format=format,
        num_bytes=len(content),
        num_images=len(beton),
        num_agreeing=num_agreeing,
        num_agreeing_with_eval=int((evaluated.predicted == predictions.predicted).sum()),
        largest_difference=largest_difference,
        accuracy=predictions.accuracy,
        temperature=temperature,
        not_calibrated=trained.not_calibrated,
        model_card=path.with_suffix(".md") if model_card else None,
    )
    if exported.model_card is not None:
        write_text(exported.model_card, card(exported, trained, predictions))
    return exported


def compare(classify: Classify, trained: TrainedRun, beton: Beton) -> tuple[Predictions, int, float]:
    """Compare a file with the network in float32 torch, on the images of a loader, batch by batch.

    Returns the predictions of torch, without calibration; on how many images the file says the same class; the largest
    difference of a probability. Raises FastcifarError if it is over MAX_DIFFERENCE, or if the class of an image differs
    that is no tie: whose two highest probabilities differ by more than TIE.
    """
    temperature = trained.calibration.temperature if trained.calibration else 1.0
    settings: dict[str, Any] = {"train": False, "batch_size": BATCH_SIZE, "device": "cpu"}
    loader = make_loader(beton, mean=trained.info.mean, std=trained.info.std, **settings)
    stored = make_loader(beton, dtype=torch.uint8, **settings)  # `beton.images` decodes JPEG images by Pillow
    trained.reporter.begin("comparison", len(beton))
    batches: list[Columns] = []
    wrong: list[int] = []
    num_agreeing, largest = 0, 0.0
    with closing(loader), closing(stored):
        for batch, raw in zip(predict(trained.model, loader, amp="off"), stored, strict=True):
            indices, _, logits = batch
            expected = (logits.double() / temperature).softmax(dim=1)
            images = raw.images.permute(0, 2, 3, 1).numpy()  # (N, 3, H, W) -> (N, H, W, 3)
            # the first image alone: a file for batches of one size must not pass
            parts = (images[:1], images[1:]) if not batches else (images,)
            try:
                actual = torch.from_numpy(np.concatenate([classify(part) for part in parts if len(part)]))
                differences = (actual - expected).abs().amax(dim=1)
            except Exception as error:  # onnxruntime and torch raise many types
                raise FastcifarError(f"the exported network fails on test images: {describe(error, 300)}") from error
            agrees = actual.argmax(dim=1) == expected.argmax(dim=1)
            first, second = expected.topk(2, dim=1).values.T
            is_wrong = ~(agrees | (first - second <= TIE)) | ~(differences <= MAX_DIFFERENCE)  # also where it is NaN
            wrong += indices[is_wrong].tolist()
            batches.append(batch)
            num_agreeing += int(agrees.sum())
            largest = max(largest, differences.nan_to_num(nan=math.inf).max().item())
            trained.reporter.advance(len(images))
    if wrong:
        raise FastcifarError(
            f"the exported network differs from float32 torch on {len(wrong):,} of {len(beton):,} test images (image "
            f"{wrong[0]} is the first), by up to {largest:.2g} in a probability: not exported; a network whose output "
            "is random, or depends on the other images of a batch, cannot be"
        )
    return concatenate(batches), num_agreeing, largest


def _output_path(output: str | os.PathLike[str], suffix: str) -> Path:
    path = user_path(output, "output")
    if path.is_dir():
        raise UsageError(f"output is {str(path)!r}, a folder; expected a file, e.g. {path / f'model{suffix}'}")
    if path.suffix != suffix:
        other = next((name for name, each in FORMATS.items() if each.suffix == path.suffix), None)
        hint = f", or --format {other}" if other else ""
        raise UsageError(f"output is {str(path)!r}; expected a name that ends in {suffix}{hint}")
    return path


def _metadata(trained: TrainedRun) -> dict[str, str]:
    """What a program needs to use the file, and what tells where it comes from; as text, which is what ONNX stores."""
    info, calibration = trained.info, trained.calibration
    height, width, _ = info.image_shape
    return {
        "class_names": json.dumps(info.class_names, ensure_ascii=False),
        "image_height": str(height),
        "image_width": str(width),
        "input": "RGB images, (N, image_height, image_width, 3) uint8, 0..255; not normalised",
        "fit": info.fit,
        "background": json.dumps(info.background),
        "temperature": repr(calibration.temperature) if calibration else "none",
        "network": trained.config.model.name,
        "weights_sha256": trained.weights_sha256,
        "fastcifar_version": fastcifar.__version__,
    }
