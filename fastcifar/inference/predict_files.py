"""`predict`: the classes of the user's own images, with probabilities."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.converters.sources import Broken, Sample
from fastcifar.data.image_files import quiet_pillow
from fastcifar.errors import UsageError
from fastcifar.inference.calibration import Calibration
from fastcifar.inference.predictions import UNKNOWN, Floats, Ints, Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.inference.user_images import UserImage, decode_images, list_images
from fastcifar.io.checks import require_int
from fastcifar.training.data import EVAL_BATCH_SIZE
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder, find_run

MAX_SHOWN = 50
"""Images in a notebook."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePredictions:
    """The predictions on the user's own images: the N that could be read, and what could not."""

    files: tuple[str, ...]
    """(N,): path; in an archive after that of the archive; for an image of a beton 'PATH[INDEX]'."""
    origins: tuple[str, ...]
    """(N,): what a beton knows about where its image came from; '' for other images."""
    predictions: Predictions
    """Calibrated if the run has a calibration. Indices and labels are those of a beton, -1 for other images."""
    class_names: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
    """Name and reason for each file that could not be read."""
    calibration: Calibration | None
    """None if the probabilities are not calibrated."""
    not_calibrated: str
    """Why not; empty if they are."""
    pixels: npt.NDArray[np.uint8] | None = None
    """(N, H, W, 3), as the network takes them, if they were requested."""

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        errors = f", {len(self.errors):,} could not be read" if self.errors else ""
        return f"ImagePredictions({len(self):,} images{errors})"

    def _repr_html_(self) -> str:
        """In notebooks: the most probable classes of the first images, and what could not be read."""
        cells = [
            [name, ", ".join(f"{self.class_names[i]} {value:.0%}" for i, value in zip(*row, strict=True))]
            for name, *row in zip(self.files[:MAX_SHOWN], *self.top(), strict=False)
        ]
        cells += [[name, f"not read: {reason}"] for name, reason in self.errors[:MAX_SHOWN]]
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in cells
        )
        return f"{html.escape(repr(self))}<table>{rows}</table>"

    @property
    def probabilities(self) -> Floats:
        """(N, C) float64, each row of sum 1."""
        return torch.from_numpy(self.predictions.logits).double().softmax(dim=1).numpy()

    @property
    def num_labelled(self) -> int:
        """Images whose true class is known."""
        return int((self.predictions.labels != UNKNOWN).sum())

    @property
    def accuracy(self) -> float | None:
        """Share of those that are correctly classified, 0..1; None if there is none."""
        return self.predictions.accuracy if self.num_labelled else None

    def top(self, num_classes: int = 3) -> tuple[Ints, Floats]:
        """The most probable classes of each image, the most probable first, and their probabilities: (N, K) each, where
        K is `num_classes`, at most all."""
        num_classes = min(require_int("top", num_classes, 1), len(self.class_names))
        # stable: of equal logits, which bfloat16 often has, the first, as in Predictions.predicted
        classes = np.argsort(-self.predictions.logits, axis=1, kind="stable")[:, :num_classes]
        return classes, np.take_along_axis(self.probabilities, classes, axis=1)

    def to_rows(self, num_classes: int = 3) -> list[dict[str, Any]]:
        """For each image its `file` and `classes`, (name, probability) as from `top`; for those of betons also `index`,
        `origin` and `true`, which is '' if it is unknown."""
        rows = []
        columns = zip(self.files, self.origins, self.predictions.indices.tolist(), strict=True)
        labels, (top, values) = self.predictions.labels.tolist(), self.top(num_classes)
        for (file, origin, index), label, classes, row in zip(
            columns, labels, top.tolist(), values.tolist(), strict=True
        ):
            names = [self.class_names[i] for i in classes]
            of_beton = {"index": index, "origin": origin, "true": self.class_names[label] if label != UNKNOWN else ""}
            rows.append(
                {
                    "file": file,
                    **(of_beton if index != UNKNOWN else {}),
                    "classes": [(name, round(value, 6)) for name, value in zip(names, row, strict=True)],
                }
            )
        return rows


@standard_torch_defaults()
def predict(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    run: RunFolder | str | os.PathLike[str] | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> ImagePredictions:
    """Classify images of any size with the best weights of a run.

    paths: image files, folders of them, patterns as 'photos/*.jpg', archives, betons. What cannot be read is in the
    `errors` of the result. run: its name or path; None for the latest in `runs_dir`. device: 'auto', 'cpu', 'cuda', …
    trusted: 'package.module:function', the code of the run's network, if you trust it. reporter: shows progress, e.g. a
    `fastcifar.bars.Bars`.
    Raises CheckpointError (6) if there is no such run, or its weights cannot be used; DataError (4); UsageError (2).

    Examples:
        >>> found = predict(["cat.png", "photos"], "fast")
        >>> found.probabilities.shape
        (3, 10)
        >>> names = [found.class_names[index] for index in found.predictions.predicted]
        >>> classes, values = found.top(3)  # of each image the three most probable classes
    """
    folder = run if isinstance(run, RunFolder) else find_run(run, runs_dir, trained=True)
    trained = TrainedRun(folder, device=device, trusted=trusted, reporter=reporter)
    return predict_images(trained, paths)


def predict_images(
    trained: TrainedRun,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    max_images: int | None = None,
) -> ImagePredictions:
    """See `predict`. max_images: keep the pixels of all images in memory. Raises UsageError if there are more."""
    paths = _path_list(paths)
    read: list[UserImage] = []
    errors: list[tuple[str, str]] = []
    logits = [np.empty((0, len(trained.info.class_names)), np.float32)]
    pixels = [np.empty((0, *trained.info.image_shape), np.uint8)]
    with ExitStack() as resources, quiet_pillow():
        images = list_images(paths, trained.info.class_names, resources)
        if max_images is not None and len(images) > max_images:
            raise UsageError(f"{len(images):,} images; expected at most {max_images:,} at a time, to draw maps of them")
        decoded = _decode(images, trained)
        while batch := list(islice(decoded, EVAL_BATCH_SIZE)):
            errors += [(image.name, result.reason) for image, result in batch if isinstance(result, Broken)]
            read += [image for image, result in batch if isinstance(result, Sample)]
            if samples := [result.image for _, result in batch if isinstance(result, Sample)]:
                stacked = np.stack(samples)
                logits.append(trained.logits(stacked))
                if max_images is not None:
                    pixels.append(stacked)
    predictions = Predictions(
        np.array([image.index for image in read], dtype=np.int64),
        np.array([image.label for image in read], dtype=np.int64),
        np.concatenate(logits),
        trained.weights_sha256,
    )
    calibration = trained.calibration
    return ImagePredictions(
        files=tuple(image.name for image in read),
        origins=tuple(image.origin for image in read),
        predictions=predictions.with_temperature(calibration.temperature) if calibration else predictions,
        class_names=trained.info.class_names,
        errors=tuple(errors),
        calibration=calibration,
        not_calibrated=trained.not_calibrated,
        pixels=np.concatenate(pixels) if max_images is not None else None,
    )


def _path_list(paths: Any) -> list[str | os.PathLike[str]]:
    """Raises UsageError for something else, and for none."""
    listed = [paths] if isinstance(paths, (str, os.PathLike)) or not isinstance(paths, Iterable) else list(paths)
    if not listed:
        raise UsageError("no image is given; expected paths of files, folders, patterns, archives or betons")
    for path in listed:
        if not isinstance(path, (str, bytes, os.PathLike)):
            raise UsageError(
                f"image is of type {type(path).__name__}; expected the path of a file, or a list of them: save what is "
                "in memory to files first"
            )
    return listed


def _decode(images: Sequence[UserImage], trained: TrainedRun) -> Iterator[tuple[UserImage, Sample | Broken]]:
    trained.reporter.begin("images", len(images))
    for image, result in zip(images, decode_images(images, trained.info.preprocessing), strict=True):
        yield image, result
        trained.reporter.advance(1)
