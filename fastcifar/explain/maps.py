"""The class activation maps of some images, for all requested layers, methods and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.config import ExplainConfig
from fastcifar.data.origins import short_names
from fastcifar.explain.cam import Activations, Size
from fastcifar.inference.predictions import UNKNOWN, Predictions
from fastcifar.inference.trained_run import TrainedRun

CAM_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class ExplainedImages:
    """The images that are explained."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)."""
    names: tuple[str, ...]
    """The index of a test image, or the path of a file."""
    origins: tuple[str, ...]
    """Where a test image came from, '' if that is unknown; or the path of a file."""
    predictions: Predictions

    @property
    def short_names(self) -> list[str]:
        """The name of the file that an image came from, or the index of a test image without one."""
        return short_names(self.origins, self.names)

    @property
    def sheets(self) -> list[str]:
        """File names of the sheets: the index of a test image, or the number of the file."""
        indices = self.predictions.indices
        return [f"{i:05d}.png" for i in np.where(indices == UNKNOWN, np.arange(len(indices)), indices)]


@dataclass(frozen=True, kw_only=True)
class MapTable:
    """All maps, by target, method, image and layer."""

    weights_sha256: str
    targets: tuple[str, ...]
    """'pred', 'true', or the name of a class."""
    methods: tuple[str, ...]
    layers: tuple[str, ...]
    sizes: tuple[Size, ...]
    """(h, w) of each layer's own maps; empty without images."""
    classes: npt.NDArray[np.int64]
    """(targets, N): the class of each map."""
    maps: npt.NDArray[np.float32]
    """(targets, methods, N, layers, H, W) in 0..1."""
    has_evidence: npt.NDArray[np.bool_]
    """(targets, methods, N, layers)."""


def compute_maps(
    trained: TrainedRun, explained: ExplainedImages, layers: Sequence[str], config: ExplainConfig
) -> MapTable:
    """One forward pass for every 50 images, and one backward pass for each target."""
    targets = _target_classes(config.target, trained.info.class_names, explained.predictions)
    classes = np.stack(list(targets.values()))  # (targets, N)
    none = (len(targets), len(config.methods), 0, len(layers))
    maps = [np.empty((*none, *explained.images.shape[1:3]), np.float32)]
    has_evidence = [np.empty(none, np.bool_)]
    sizes: tuple[Size, ...] = ()
    num_images = len(explained.images)
    trained.reporter.begin("maps", num_images)
    for start in range(0, num_images, CAM_BATCH):
        batch = slice(start, start + CAM_BATCH)
        activations = Activations(trained.model, trained.normalise(explained.images[batch]), layers)
        labels = torch.from_numpy(classes[:, batch]).to(trained.device)
        by_target = [activations.maps(each, config.methods).values() for each in labels]
        maps.append(np.stack([[m.maps.cpu().numpy() for m in by_method] for by_method in by_target]))
        has_evidence.append(np.stack([[m.has_evidence.cpu().numpy() for m in by_method] for by_method in by_target]))
        sizes = activations.sizes
        trained.reporter.advance(len(activations.logits))
    return MapTable(
        weights_sha256=trained.weights_sha256,
        targets=tuple(targets),
        methods=config.methods,
        layers=tuple(layers),
        sizes=sizes,
        classes=classes,
        maps=np.concatenate(maps, axis=2),
        has_evidence=np.concatenate(has_evidence, axis=2),
    )


def _target_classes(
    target: str, class_names: tuple[str, ...], predictions: Predictions
) -> dict[str, npt.NDArray[np.int64]]:
    """By target, the class of each image, (N,)."""
    classes = {"pred": predictions.predicted, "true": predictions.labels}
    if target == "both":
        return classes
    if target not in classes:
        classes[target] = np.full(len(predictions), class_names.index(target))
    return {target: classes[target]}
