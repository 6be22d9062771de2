"""`eval --on`: the metrics of a run on a test set that is not its own: a beton, or what `convert` reads.

A module of its own, with `fastcifar.inference.corruptions`, because these need the converters.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.config import SPLITS, TTA_MODES
from fastcifar.converters.array_names import read_words
from fastcifar.converters.arrays import is_array_folder
from fastcifar.converters.names import SPLIT_OF
from fastcifar.converters.open_source import ARRAYS, open_path
from fastcifar.converters.sources import Broken, IndexedSplit, Sample, Source, SourceOptions, Split
from fastcifar.data.image_files import Preprocessing, quiet_pillow
from fastcifar.errors import DataError, UsageError, escape
from fastcifar.inference.corruption_scores import CorruptionEvaluation
from fastcifar.inference.corruptions import evaluate_corruptions, is_corruption_folder
from fastcifar.inference.evaluation import EvaluatedImages, Evaluation, command_of, result_folder, write_evaluation
from fastcifar.inference.predictions import Ints, Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.checks import require_choice
from fastcifar.io.paths import numbered, user_path, why_missing
from fastcifar.io.reading import read_mapping
from fastcifar.loaders import open_for
from fastcifar.training.data import EVAL_BATCH_SIZE
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import MAX_TEXT_BYTES, RunFolder

log = logging.getLogger(__name__)
KINDS = (
    "a beton, an .npy file of images with its labels next to it, a folder or archive of class folders, or the folder "
    "of CIFAR-10-C"
)
MAX_FOLDER_NAME = 100
NUMBERED = ("arrays", "a table")
"""Kinds of source whose labels may be numbers of classes."""


@standard_torch_defaults()
def evaluate_on(
    run: RunFolder,
    path: str | os.PathLike[str],
    *,
    tta: str = "none",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Evaluation | CorruptionEvaluation:
    """Evaluate the best weights of a run on another test set; the results go to eval/<name of the set>[-<tta>]/ in its
    folder, with a number in the name where that has the results of a set at another path.

    path: a beton, or a folder with test.beton; the folder of CIFAR-10-C, see `fastcifar.inference.corruptions`; or what
    `convert` reads from disk, e.g. the arrays of CIFAR-10.1, or class folders: its test images if it has some, else
    all. Image files are resized as those of the run's data were. Classes are matched by name; in arrays and tables they
    may be numbers of the network's classes.
    For the other arguments see `evaluate_run`. Raises DataError (4) if the set is missing, damaged or does not fit the
    network; CheckpointError (6); UsageError (2).
    """
    require_choice("tta", tta, TTA_MODES)
    path = user_path(path, "on")
    if not path.exists():
        raise DataError(f"{path}: {why_missing(path, 'no such file or folder')}; expected {KINDS}")
    trained = TrainedRun(run, data_dir=data_dir, device=device, trusted=trusted, reporter=reporter)
    command = command_of(run, ["--on", path], tta, data_dir, trusted)
    beton, about = _beton_in(path), {"on": os.path.abspath(path)}
    name = _free_name(run, beton)
    if path.is_dir() and is_corruption_folder(path):
        return evaluate_corruptions(trained, path, name, about, tta, command)
    with ExitStack() as resources:
        if beton.suffix == ".beton":
            images = _of_beton(trained, beton, tta)
        else:
            images = _of_source(trained, resources.enter_context(_open(trained, path)), path, tta)
        return write_evaluation(trained, images, name, about, tta, command)


def _set_name(path: Path) -> str:
    """What the set at `path` is called, in figures and in eval/."""
    absolute = Path(os.path.abspath(path))
    name = absolute.name if path.is_dir() else absolute.stem
    if name.lower() in SPLIT_OF:
        name = f"{absolute.parent.name}-{name}"
    name = escape(name)[:MAX_FOLDER_NAME] or "root"
    return f"on-{name}" if name.split("-")[0] in SPLITS else name  # eval/test/ is that of the run's own images


def _beton_in(path: Path) -> Path:
    """The test images of a folder of betons; any other path as it is."""
    return path / "test.beton" if (path / "test.beton").is_file() else path


def _free_name(run: RunFolder, path: Path) -> str:
    """The name of the set at `path`, with a number where eval/ has results of another set of that name."""
    own = None, os.path.abspath(path)
    names = numbered(_set_name(path))
    return next(each for each in names if all(_evaluated(result_folder(run, each, tta)) in own for tta in TTA_MODES))


def _evaluated(folder: Path) -> str | None:
    """The path of the set whose results these are; None if it is unknown."""
    with suppress(OSError, ValueError):
        on = read_mapping(folder / "metrics.json", MAX_TEXT_BYTES).get("on")
        return os.path.abspath(_beton_in(Path(on))) if isinstance(on, str) else None
    return None


def _of_beton(trained: TrainedRun, path: Path, tta: str) -> EvaluatedImages:
    beton = open_for("auto", path, trained.device)
    trained.require_shape(path, beton.image_shape)
    if not beton.verified and len(beton.class_names) <= len(trained.info.class_names):
        classes = np.arange(len(beton.class_names))  # the names are the labels: those of the network
    else:
        classes = trained.match_classes(path, beton.class_names, numbered=not beton.verified)
    predictions = trained.predict_beton(beton, np.arange(len(beton)), tta=tta)
    return EvaluatedImages(
        title=f"{len(beton):,} images of {_set_name(path)}",
        predictions=replace(predictions, labels=classes[predictions.labels]),
        origins=beton.origins(),
        read=beton.images,
    )


def _open(trained: TrainedRun, path: Path) -> Source:
    """The source at `path`; image files are resized for the network."""
    rule = Preprocessing()
    if path.suffix.lower() not in ARRAYS and not (path.is_dir() and is_array_folder(path)):
        rule = trained.info.preprocessing
    try:
        return open_path(path, SourceOptions(preprocessing=rule))
    except (DataError, UsageError) as error:
        if path.suffix.lower() == ".npy" and is_corruption_folder(path.parent):
            raise DataError(f"{path}: belongs to a folder of corrupted images; expected {path.parent}") from error
        if " --" not in str(error):
            raise
        raise DataError(f"{error} (an option of 'fastcifar convert': convert it, and give the beton)") from error


def _of_source(trained: TrainedRun, source: Source, path: Path, tta: str) -> EvaluatedImages:
    name = "train" if read_words(path.stem).split == "train" or "test" not in source.splits else "test"
    if len(source.splits) > 1:
        log.info("%s: the images of its split '%s' are evaluated", path, name)
    split, numbered = source.splits[name], source.kind in NUMBERED
    classes = trained.match_classes(path, source.class_names, numbered=numbered)
    trained.reporter.begin("predictions", len(split))
    labels: list[int] = []
    origins: list[str] = []
    logits: list[npt.NDArray[np.float32]] = []
    digest = hashlib.sha256()
    with quiet_pillow():
        samples = iter(split)
        while batch := [_readable(path, sample) for sample in islice(samples, EVAL_BATCH_SIZE)]:
            for sample in batch:
                trained.require_shape(path, sample.image.shape)
                digest.update(sample.image.tobytes())
            labels += [sample.label for sample in batch]
            origins += [escape(sample.origin) for sample in batch]
            logits.append(trained.logits(np.stack([sample.image for sample in batch]), tta=tta))
            trained.reporter.advance(len(batch))
    true = classes[np.array(labels)]
    digest.update(true.tobytes())
    return EvaluatedImages(
        title=f"{len(labels):,} images of {_set_name(path)}",
        predictions=Predictions(
            indices=np.arange(len(labels)),
            labels=true,
            logits=np.concatenate(logits),
            weights_sha256=trained.weights_sha256,
            data_sha256=digest.hexdigest(),
        ),
        origins=origins,
        read=partial(_read, path, split),
    )


def _read(path: Path, split: Split, positions: Ints) -> npt.NDArray[np.uint8]:
    """The images at some positions of a split, (M,) int64 -> (M, H, W, 3)."""
    wanted = set(positions.tolist())
    samples: Iterable[tuple[int, Sample | Broken]] = enumerate(split)
    if isinstance(split, IndexedSplit):  # without reading the others
        samples = zip(sorted(wanted), split.select(positions), strict=True)
    with quiet_pillow():
        images = {i: _readable(path, sample).image for i, sample in samples if i in wanted}
    return np.stack([images[position] for position in positions.tolist()])


def _readable(path: Path, sample: Sample | Broken) -> Sample:
    if isinstance(sample, Broken):
        raise DataError(f"{path}: {sample.origin}: {sample.reason}; remove the image, or use another copy")
    return sample
