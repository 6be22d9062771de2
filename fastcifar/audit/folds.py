"""Out-of-fold probabilities: of each training image, by a network that did not see it.

Each fold is an ordinary run in `folds/`, which `fastcifar explain` draws maps of; one that is begun is resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fastcifar import recipes
from fastcifar.audit.assign_folds import Ints, assign_folds, require_folds, single_fold_classes, train_indices
from fastcifar.audit.issues import Pair
from fastcifar.config import CHANGEABLE, LENGTH, MAX_SEED, TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import Stopped, join_names
from fastcifar.inference.calibration import fit_temperature
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.atomic import write_text
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import make_folder
from fastcifar.io.reading import read_mapping
from fastcifar.training import RunFolder, train
from fastcifar.training.device import choose_device, standard_torch_defaults
from fastcifar.training.progress import PrefixedReporter, Reporter, SilentReporter, duration

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]
RECIPE = "fast"
EPOCHS = 8
MIN_STEPS = 200
"""Of a training: with fewer images it has more epochs, and smaller batches."""
MIN_STEPS_PER_EPOCH = 8
MAX_BATCH_PIXELS = 2_000 * 32 * 32
"""Larger images come in smaller batches, to fit into the memory."""
FILE = "folds.json"
MAX_BYTES = 2**20
HELD_OUT, TEST = "held_out.npz", "test.npz"
"""Predictions with test-time augmentation, in the folder of a fold."""
DATA_SETTINGS = ("lr", "max_steps", "max_minutes")
"""What the first start of a run replaces by numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """What the networks of all folds say."""

    train: Floats
    """(N, C) float32: probabilities of each training image by the network that did not see it; 1 for the label of the
    only image of a class."""
    test: Floats | None
    """(M, C) float32: of each test image, the mean of the networks; None without a test split."""
    folds: Ints
    """(N,) int64: which network that is."""
    runs: tuple[RunFolder, ...]
    """The run of each fold, with its weights."""


def fold_config(
    beton: Beton, recipe: str | None = None, *, folds: int, seed: int, device: str, data_dir: str | Path
) -> TrainConfig:
    """The settings of the training of a fold: those of `recipe`, without validation; by default those of `fast`, with
    sizes in proportion to the images, and more epochs where there are few. Few or large images come in smaller batches.

    Raises UsageError for a recipe, a number of folds or a device that cannot be used.
    """
    require_folds(len(beton), folds)
    choose_device(device)
    config = recipes.load(RECIPE if recipe is None else recipe).config
    height, width, _ = beton.image_shape
    num_images = len(beton) * (folds - 1) // folds
    batch_size = min(config.batch_size, num_images // MIN_STEPS_PER_EPOCH, MAX_BATCH_PIXELS // (height * width))
    batch_size = max(batch_size, 2)
    if recipe is None:
        scale = min(height, width) / 32
        config = config.with_settings(
            epochs=max(EPOCHS, -(-MIN_STEPS // max(num_images // batch_size, 1))),
            progressive=tuple((min(max(round(side * scale), 8), 1_024), until) for side, until in config.progressive),
        )
    return config.with_settings(
        batch_size=batch_size,
        val_size=0,
        early_stop=None,
        log=(),
        seed=seed,
        device=device,
        data_dir=str(data_dir),
    )


@standard_torch_defaults()
def out_of_fold(
    splits: Mapping[str, Beton],
    pairs: Sequence[Pair],
    config: TrainConfig,
    *,
    folds: int = 4,
    out: Path,
    reporter: Reporter | None = None,
) -> OutOfFold:
    """Train a network for each fold of the training images, on the others, and let it predict that fold and the test
    images, with the test-time augmentation of `config`, and calibrated on that fold.

    splits: 'train', and 'test' if there is one. pairs: duplicates, best first, see `assign_folds`. config: of
    `fold_config`; its seed also deals the images. out: the audit's folder; the runs go to `folds/` in it. Those that
    are finished are not repeated, if data, folds and settings are the same. Raises as `fastcifar.training.train`.
    """
    reporter, train_beton = reporter or SilentReporter(), splits["train"]
    labels = train_beton.labels
    assigned = assign_folds(labels, pairs, folds, config.seed)
    single = single_fold_classes(labels, assigned)
    if single.any():
        names = join_names([train_beton.class_names[label] for label in np.flatnonzero(single)])
        log.warning("not judged, as there is one image of the class, or duplicates of one: %s", names)
    folder = out / "folds"
    make_folder(folder)
    with lock_folder(folder, "another process is auditing in this folder; wait for it to end"):
        _begin(folder, _key(splits, assigned, config))
        made = [
            _one_fold(splits, assigned, config, fold, folder, PrefixedReporter(reporter, f"fold {fold + 1}/{folds}"))
            for fold in range(folds)
        ]
    probabilities = np.zeros((len(labels), len(train_beton.class_names)), np.float32)
    of_test = []
    for each in made:
        # probabilities of all networks are ranked together: one scale for all, without the doubt of label smoothing
        temperature = fit_temperature(each.held_out)
        probabilities[each.held_out.indices] = _probabilities(each.held_out, temperature)
        if each.test is not None:
            of_test.append(_probabilities(each.test, temperature))
    not_judged = np.flatnonzero(single[labels])
    probabilities[not_judged] = np.eye(probabilities.shape[1], dtype=np.float32)[labels[not_judged]]
    return OutOfFold(
        train=probabilities,
        test=np.mean(of_test, axis=0, dtype=np.float32) if of_test else None,
        folds=assigned,
        runs=tuple(each.run for each in made),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    run: RunFolder
    held_out: Predictions
    test: Predictions | None


def _one_fold(
    splits: Mapping[str, Beton], assigned: Ints, config: TrainConfig, fold: int, folder: Path, reporter: Reporter
) -> _Fold:
    """The predictions of one fold, from its files, or made now."""
    run, beton, test = RunFolder(folder / f"fold-{fold + 1}"), splits["train"], splits.get("test")
    held_out, num_folds, begin = np.flatnonzero(assigned == fold), int(assigned.max()) + 1, time.monotonic()
    stored = _load(run.path / HELD_OUT, beton, held_out)
    stored_test = None if test is None else _load(run.path / TEST, test, np.arange(len(test)))
    if stored is not None and (test is None or stored_test is not None):
        return _Fold(run=run, held_out=stored, test=stored_test)
    is_new = not run.path.is_dir()
    if not (run.metrics.is_file() and run.best.is_file()):
        log.info("fold %d of %d: %s images are held out", fold + 1, num_folds, f"{len(held_out):,}")
        own = config.with_settings(seed=(config.seed + fold) % (MAX_SEED + 1))
        _train(
            run, own, [beton, beton if test is None else test], train_indices(beton.labels, assigned, fold), reporter
        )
    trained = TrainedRun(
        run,
        data_dir=config.data.data_dir,
        device=config.runtime.device,
        trusted=config.model.name,
        reporter=reporter,
    )
    predictions = trained.predict_beton(beton, held_out, tta=config.tta)
    of_test = None if test is None else trained.predict_beton(test, np.arange(len(test)), tta=config.tta)
    if of_test is not None:
        of_test.save(run.path / TEST)
    predictions.save(run.path / HELD_OUT)
    for checkpoint in (run.last, run.previous):  # several times the size of the weights
        checkpoint.unlink(missing_ok=True)
    elapsed_s, num_left = time.monotonic() - begin, num_folds - fold - 1
    left = f"; about {duration(elapsed_s * num_left)} for the other {num_left}" if num_left and is_new else ""
    log.info("fold %d of %d: done in %s%s", fold + 1, num_folds, duration(elapsed_s), left)
    return _Fold(run=run, held_out=predictions, test=of_test)


def _train(run: RunFolder, config: TrainConfig, betons: Sequence[Beton], indices: Ints, reporter: Reporter) -> None:
    """Train the run of a fold, or what is left of it."""
    resume = run if run.has_checkpoint else None
    if resume is not None:
        stored = run.read_config().to_settings()
        config = config.with_settings(**{name: stored[name] for name in DATA_SETTINGS})
    elif run.path.is_dir():
        shutil.rmtree(run.path)  # killed before its first step
    try:
        train(
            config,
            runs_dir=run.path.parent,
            name=run.path.name,
            resume=resume,
            reporter=reporter,
            betons=betons,
            indices=indices,
            test=False,
        )
    except Stopped as stopped:
        message = f"saved in {run.path}; the same command continues there"
        raise Stopped(stopped.exit_code - 128, message) from None


def _load(path: Path, beton: Beton, indices: Ints) -> Predictions | None:
    """The stored predictions; None if they are missing, damaged or of other images."""
    with contextlib.suppress(OSError, ValueError, MemoryError):
        stored = Predictions.load(path)
        if (
            stored.data_sha256 == beton.sha256
            and np.array_equal(stored.indices, indices)
            and stored.logits.shape[1] == len(beton.class_names)
        ):
            return stored
    return None


def _probabilities(predictions: Predictions, temperature: float) -> Floats:
    """(N, C) float32, from the logits in float64."""
    return softmax(predictions.logits.astype(np.float64) / temperature, axis=1).astype(np.float32)


def _begin(folder: Path, key: dict[str, Any]) -> None:
    """Keep the runs in `folder` if they are of the same data, folds and settings; else remove them."""
    file = folder / FILE
    existing = None
    with contextlib.suppress(OSError, ValueError):
        existing = read_mapping(file, MAX_BYTES)
    if existing == key:
        return
    old = sorted(path for path in folder.glob("fold-*") if path.is_dir() and not path.is_symlink())
    if old:
        log.warning("%s: %d trainings of other data, folds or settings are replaced", folder, len(old))
    for path in old:
        shutil.rmtree(path)
    write_text(file, json.dumps(key, indent=1) + "\n")


def _key(splits: Mapping[str, Beton], assigned: Ints, config: TrainConfig) -> dict[str, Any]:
    """What decides the results: data, labels, folds and settings."""
    other = set(CHANGEABLE) - {*LENGTH}
    settings = {name: value for name, value in config.to_settings().items() if name not in other}
    digest = {name: hashlib.sha256(beton.labels.tobytes()).hexdigest() for name, beton in splits.items()}
    return {
        "fastcifar_folds": 1,
        "data": {name: beton.sha256 for name, beton in splits.items()},
        "labels": digest,
        "folds": hashlib.sha256(assigned.tobytes()).hexdigest(),
        "settings": json.loads(json.dumps(settings)),
    }
