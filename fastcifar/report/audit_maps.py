"""Class activation maps of the suggested classes, by the networks of an audit that did not see the images."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastcifar import plotting
from fastcifar.audit.issues import Image
from fastcifar.audit.run import Audit
from fastcifar.config import ExplainConfig
from fastcifar.errors import FastcifarError
from fastcifar.explain.cam import best_layer
from fastcifar.explain.maps import ExplainedImages, compute_maps
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.models import stages_of
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter

log = logging.getLogger(__name__)
TILE = 128
Pixels = npt.NDArray[np.uint8]


@standard_torch_defaults()
def suggested_maps(
    audit: Audit, named: Sequence[tuple[Image, str]], reporter: Reporter | None = None
) -> list[Pixels | None]:
    """For each image and class, the map of the evidence for that class over the image in grey, (h, w, 3) uint8; None
    without trainings, without evidence, or if the network has no layer that gives maps."""
    drawn: list[Pixels | None] = [None] * len(named)
    for fold, run in enumerate(audit.runs):
        positions = [i for i, (image, _) in enumerate(named) if _fold(audit, image) == fold]
        if not positions:
            continue
        try:
            trained = TrainedRun(run, data_dir=audit.data_dir, device=audit.device, reporter=reporter)
            maps = _maps(trained, audit, [named[i] for i in positions])
        except FastcifarError as error:
            log.warning("%s: no class activation maps: %s", run.path, error)
            continue
        for position, pixels in zip(positions, maps, strict=False):
            drawn[position] = pixels
    return drawn


def _fold(audit: Audit, image: Image) -> int:
    """The network that did not see an image: of a test image, the first."""
    return 0 if image.split == "test" or audit.folds is None else int(audit.folds[image.index])


def _maps(trained: TrainedRun, audit: Audit, named: Sequence[tuple[Image, str]]) -> list[Pixels | None]:
    layers = stages_of(trained.model)
    if not layers:
        return []
    names = trained.info.class_names
    images = np.concatenate([audit.splits[image.split].images([image.index]) for image, _ in named])
    targets = np.array([names.index(label) for _, label in named], np.int64)
    explained = ExplainedImages(
        images=images,
        names=tuple(str(image.index) for image, _ in named),
        origins=("",) * len(named),
        # the target 'pred' is the class of the largest logit
        predictions=Predictions(np.arange(len(named)), targets, np.eye(len(names), dtype=np.float32)[targets]),
    )
    table = compute_maps(trained, explained, layers, ExplainConfig(target="pred", methods=("hirescam",)))
    best = best_layer(table.sizes)
    return [
        np.rint(plotting.overlay(image, table.maps[0, 0, i, best], TILE) * 255).astype(np.uint8)
        if table.has_evidence[0, 0, i, best]
        else None
        for i, image in enumerate(images)
    ]
