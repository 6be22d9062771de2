"""`explain`: images of a run with their class activation maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastcifar.config import ExplainConfig
from fastcifar.errors import UsageError
from fastcifar.explain.cam import Activations, Size
from fastcifar.explain.files import draw_grid, write_explanation
from fastcifar.explain.maps import CAM_BATCH, ExplainedImages, compute_maps
from fastcifar.explain.user_images import read_user_images
from fastcifar.inference.predictions import UNKNOWN, Predictions, select_images
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.checks import require_choice
from fastcifar.models import stages_of
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_TOP = 3
"""Number of classes reported for each of the user's images."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The result of `explain_run`."""

    num_images: int
    """Test images, or images of the user."""
    num_wrong: int | None
    """Misclassified test images."""
    num_shown: int
    layers: dict[str, Size]
    """(h, w) of the maps of each layer; empty if no image was selected."""
    files: tuple[Path, ...]
    """grid.png, index.csv, maps.npz and the sheets; empty if no image was selected."""
    images: tuple[dict[str, Any], ...] = ()
    """For each of the user's images its `file` and the `classes` of highest probability, (name, probability), the most
    probable first."""


@standard_torch_defaults()
def explain_run(
    run: RunFolder,
    config: ExplainConfig,
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explain test images of a run into its folder explain/, or the user's own images into explain/images/.

    images: files, folders and patterns, see `fastcifar.explain.user_images.read_user_images`. For the other
    arguments see `TrainedRun`. Raises DataError (4) if test.beton or an image is missing, damaged or does not fit;
    CheckpointError (6); UsageError (2).
    """
    if images and config.target in ("true", "both"):
        raise UsageError(f"target is {config.target!r}, but the true class of your images is unknown; expected 'pred'")
    trained = TrainedRun(run, data_dir=data_dir, device=device, trusted=trusted, reporter=reporter)
    layers = _layers(trained, config)
    class_names = trained.info.class_names
    require_choice("target", config.target, ("pred", "true", "both", *class_names))
    top: tuple[dict[str, Any], ...] = ()
    num_wrong = None
    if images:
        explained = _user_images(trained, images, layers)
        top, num_images = _top_classes(explained, class_names), len(explained.images)
        folder, selection = run.explain / "images", f"{num_images:,} of your images"
    else:
        predictions, explained, selection = _test_images(trained, config)
        num_images, num_wrong = len(predictions), int((~predictions.is_correct).sum())
        folder = run.explain
    sizes: tuple[Size, ...] = ()
    files: tuple[Path, ...] = ()
    if len(explained.images):
        table = compute_maps(trained, explained, layers, config)
        sizes = table.sizes
        files = write_explanation(
            run.make_subfolder(folder), explained, table, class_names, run.path.name, selection, trained.reporter
        )
    return Explanation(
        num_images=num_images,
        num_wrong=num_wrong,
        num_shown=len(explained.images),
        layers=dict(zip(layers, sizes, strict=False)),
        files=files,
        images=top,
    )


@standard_torch_defaults()
def explanation_grid(
    run: RunFolder,
    config: ExplainConfig,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Figure | None:
    """The figure of grid.png for test images of a run, without writing anything; None if no image is selected.

    For arguments and errors see `explain_run`.
    """
    trained = TrainedRun(run, data_dir=data_dir, device=device, trusted=trusted, reporter=reporter)
    _, explained, selection = _test_images(trained, config)
    if not len(explained.images):
        return None
    table = compute_maps(trained, explained, _layers(trained, config), config)
    return draw_grid(explained, table, trained.info.class_names, f"{run.path.name}: {selection}")


def _test_images(trained: TrainedRun, config: ExplainConfig) -> tuple[Predictions, ExplainedImages, str]:
    """All predictions on the test images, those that are selected, and the selection in words."""
    predictions, beton = trained.predictions("test"), trained.beton("test")
    selected = select_images(predictions, config)
    explained = ExplainedImages(
        images=beton.images(selected.indices),
        names=tuple(map(str, selected.indices)),
        origins=tuple(beton.origins(selected.indices)),
        predictions=selected,
    )
    num_wrong = int((~predictions.is_correct).sum())
    return predictions, explained, _describe(config, len(selected), len(predictions), num_wrong)


def _layers(trained: TrainedRun, config: ExplainConfig) -> tuple[str, ...]:
    """The requested layers, each once; 'all' stands for the network's stages."""
    stages = stages_of(trained.model)
    if "all" in config.layers and not stages:
        raise UsageError(
            f"{trained.config.model.name} has no stage that gives maps; name a layer that does and is not scripted"
        )
    names = [stages if name == "all" else (name,) for name in config.layers]
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def _describe(config: ExplainConfig, num_shown: int, num_images: int, num_wrong: int) -> str:
    if not isinstance(config.select, str):
        return f"{num_shown:,} of {num_images:,} test images"
    order = {"loss": "largest loss first", "confidence": "most confident first", "random": "at random"}[config.select]
    kind = "correctly classified" if config.correct else "misclassified"
    count = num_images - num_wrong if config.correct else num_wrong
    return f"{num_shown:,} of {count:,} {kind} among {num_images:,} test images, {order}"


def _user_images(
    trained: TrainedRun, patterns: Sequence[str | os.PathLike[str]], layers: Sequence[str]
) -> ExplainedImages:
    images, paths = read_user_images(patterns, trained.info.image_shape)
    logits = [
        Activations(trained.model, trained.normalise(images[i : i + CAM_BATCH]), layers).logits
        for i in range(0, len(images), CAM_BATCH)
    ]
    unknown = np.full(len(paths), UNKNOWN)
    predictions = Predictions(unknown, unknown, torch.cat(logits).cpu().numpy(), trained.weights_sha256)
    names = tuple(map(_printable, paths))
    return ExplainedImages(images=images, names=names, origins=names, predictions=predictions)


def _top_classes(explained: ExplainedImages, class_names: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    probabilities = torch.from_numpy(explained.predictions.logits).double().softmax(dim=1)
    values, classes = probabilities.topk(min(NUM_TOP, probabilities.shape[1]), dim=1)
    return tuple(
        {"file": name, "classes": [(class_names[i], p) for i, p in zip(row, row_values, strict=True)]}
        for name, row, row_values in zip(explained.names, classes.tolist(), values.tolist(), strict=True)
    )


def _printable(path: Path) -> str:
    """The path as UTF-8 text without control characters."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
