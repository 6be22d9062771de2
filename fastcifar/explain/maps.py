"""The maps of some images: of all layers, methods and targets asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.config import ExplainConfig
from fastcifar.explain.cam import Activations, Size
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun

CAM_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The images that are explained."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)."""
    names: tuple[str, ...]
    """What each is called in headings: 'test image 12', 'my-cat.jpg'."""
    short_names: tuple[str, ...]
    """And in the grid: '12', 'my-cat.jpg'."""
    files: tuple[str, ...]
    """Names of their sheets."""
    predictions: Predictions


@dataclass(frozen=True, kw_only=True)
class MapTable:
    """All maps: by target, method, image and layer."""

    weights_sha256: str
    """Of the weights that gave them."""
    targets: tuple[str, ...]
    methods: tuple[str, ...]
    layers: tuple[str, ...]
    sizes: tuple[Size, ...]
    classes: npt.NDArray[np.int64]
    """(targets, N): the class of each map."""
    maps: npt.NDArray[np.float32]
    """(targets, methods, N, layers, H, W) in 0..1."""
    has_evidence: npt.NDArray[np.bool_]
    """(targets, methods, N, layers)."""


def map_table(trained: TrainedRun, subjects: Subjects, layers: Sequence[str], config: ExplainConfig) -> MapTable:
    """One forward pass, and a backward pass for each kind of target, for every 50 images."""
    classes = _targets(config.target, trained.info.class_names, subjects.predictions)
    chosen = np.stack(list(classes.values()))  # (targets, N)
    maps: list[npt.NDArray[np.float32]] = []
    evidence: list[npt.NDArray[np.bool_]] = []
    num = len(subjects.images)
    trained.reporter.begin("maps", num)
    sizes: tuple[Size, ...] = ()
    for start in range(0, num, CAM_BATCH):
        part = slice(start, start + CAM_BATCH)
        kept = Activations(trained.model, trained.normalise(subjects.images[part]), layers)
        made = [
            [found[method] for method in config.methods]
            for found in (kept.maps(torch.from_numpy(of[part]).to(trained.device), config.methods) for of in chosen)
        ]
        maps.append(np.stack([[m.maps.cpu().numpy() for m in row] for row in made]))
        evidence.append(np.stack([[m.has_evidence.cpu().numpy() for m in row] for row in made]))
        sizes = kept.sizes
        trained.reporter.advance(len(kept.logits))
    return MapTable(
        weights_sha256=trained.weights_sha256,
        targets=tuple(classes),
        methods=config.methods,
        layers=tuple(layers),
        sizes=sizes,
        classes=chosen,
        maps=np.concatenate(maps, axis=2),
        has_evidence=np.concatenate(evidence, axis=2),
    )


def _targets(target: str, names: tuple[str, ...], predictions: Predictions) -> dict[str, npt.NDArray[np.int64]]:
    """By kind of target the class of each image, (N,)."""
    kinds = {"pred": predictions.predicted, "true": predictions.labels}
    if target == "both":
        return kinds
    return {target: kinds[target] if target in kinds else np.full(len(predictions), names.index(target))}
