"""A trained run, opened: its network, the betons it belongs to, and its predictions on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import normalisation
from fastcifar.augment.torch_kernel import normalise
from fastcifar.data.beton import Beton
from fastcifar.data.statistics import require_classes
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError, escape, join_names, one_line
from fastcifar.inference.calibration import Calibration, calibrate, not_held_out
from fastcifar.inference.predict import concatenate, predict, predict_logits
from fastcifar.inference.predictions import Predictions
from fastcifar.io.paths import command_line, data_folder, why_missing
from fastcifar.loaders import make_loader, open_for
from fastcifar.models.probe import place
from fastcifar.training import weights
from fastcifar.training.data import EVAL_BATCH_SIZE, require_same_kind
from fastcifar.training.device import choose_amp, choose_device
from fastcifar.training.progress import Reporter, SilentReporter
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.split import hold_out

log = logging.getLogger(__name__)


class TrainedRun:
    """The best weights of a run, on a device, in evaluation mode and float32."""

    def __init__(
        self,
        run: RunFolder,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
        trusted: str | None = None,
        reporter: Reporter | None = None,
        is_read_only: bool = False,
    ) -> None:
        """data_dir: where the betons are; by default where they were in training. trusted: 'package.module:function',
        the code of the run's network, if you trust it. is_read_only: `predictions` writes nothing.

        Raises CheckpointError (6) if the weights are missing or cannot be read; DataError (4) if they know one class;
        UsageError (2).
        """
        self.run = run
        self.model, self.info, metadata = weights.load_weights(run.best, trusted)
        require_classes(run.best, self.info.class_names)
        self.weights_sha256: str = metadata["file_sha256"]
        self.device = choose_device(device)
        place(self.model, self.device)
        self.config = run.read_config()
        if run.is_unfinished:
            command = run.resume_command(self.config.model)
            log.warning("%s: its training is not finished; finish it with: %s", run.path, command)
        self.reporter = reporter or SilentReporter()
        self._is_read_only = is_read_only
        self._is_given = data_dir is not None
        self._data_dir = Path(self.config.data.data_dir if data_dir is None else data_folder(data_dir))
        self._betons: dict[str, Beton] = {}

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of these weights; None if the run has none."""
        try:
            loaded = Calibration.load(self.run)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: damaged (%s); probabilities are not calibrated", self.run.calibration, one_line(error))
            return None
        return loaded if loaded.weights_sha256 == self.weights_sha256 else None

    @property
    def not_calibrated(self) -> str:
        """Why there is no `calibration`; empty if there is one."""
        if self.calibration is not None:
            return ""
        # also by default, where no class has two images
        if self.config.data.val_size == 0 or self.run.metric("num_val_images") == 0:
            return self._not_held_out()
        return f"calibrate the run with: {command_line('fastcifar', 'eval', self.run.path)}"

    def find_calibration(self) -> tuple[Calibration | None, str]:
        """The calibration of these weights, made and stored now if the run has none; or None and the reason."""
        if self.calibration is not None:
            return self.calibration, ""
        try:
            if not len(self.held_out()):
                return None, self._not_held_out()
            calibration = calibrate(self.predictions("val"))
        except FastcifarError as error:
            return None, f"the validation images cannot be used: {error}"
        with suppress(FastcifarError):  # the folder may be read-only
            calibration.save(self.run)
        return calibration, ""

    def _not_held_out(self) -> str:
        return not_held_out(self.run.metric("num_train_images"), len(self.info.class_names))

    def beton(self, split: str) -> Beton:
        """The beton of 'test' or 'val'. Raises DataError if it is missing, damaged or does not fit the network."""
        if split not in self._betons:
            path = self._data_dir / ("test.beton" if split == "test" else "train.beton")
            if not self._is_given and not path.exists():
                reason = why_missing(path)
                raise DataError(f"{path}: {reason}; the run was trained there: give the folder of its data, --data-dir")
            beton = open_for("auto", path, self.device)
            require_same_kind(beton, self.info, "the network was trained on", "give its data with --data-dir")
            self._betons[split] = beton
        return self._betons[split]

    def warn_of_other_test_images(self) -> None:
        """Warn if metrics.json is of other test images than those of the beton."""
        beton = self.beton("test")
        if self.run.tested_on() not in (None, beton.sha256):
            log.warning("%s: not the test images that metrics.json of %s is of", beton.path, self.run.path)

    def predictions(self, split: str, *, tta: str = "none") -> Predictions:
        """The predictions on 'test', or on 'val', the images held out from training.

        They use the autocast of training. Those on the test images without augmentation are stored in predictions.npz,
        and read from it if they belong to these weights and this beton. Raises DataError if the beton cannot be used;
        UsageError if no image was held out; CheckpointError if a logit is not finite.
        """
        beton = self.beton(split)
        is_cached = split == "test" and tta == "none" and self.run.tested_on() in (None, beton.sha256)
        if is_cached and (cached := self._load_predictions(beton)) is not None:
            return cached
        predictions = self.predict_beton(beton, self._indices(split, beton), tta=tta)
        if is_cached and not self._is_read_only:
            predictions.save(self.run.predictions)
        return predictions

    def held_out(self) -> npt.NDArray[np.int64]:
        """The indices of the validation images in the training beton; none if no image was held out from training.
        Raises DataError if the beton cannot be used, or is another."""
        if self.config.data.val_size == 0:
            return np.empty(0, np.int64)
        beton = self.beton("val")
        if beton.sha256 != self.info.sha256:
            raise DataError(f"{beton.path}: not the file that {self.run.path} was trained on; give it with --data-dir")
        return hold_out(beton.labels, len(self.info.class_names), self.config.data.val_size, self.config.seed)[1]

    def _indices(self, split: str, beton: Beton) -> npt.NDArray[np.int64]:
        indices = np.arange(len(beton)) if split == "test" else self.held_out()
        if not len(indices):
            raise UsageError(f"{self.run.path}: no image was held out from training; expected --split test")
        return indices

    def _load_predictions(self, beton: Beton) -> Predictions | None:
        """predictions.npz, if it holds the predictions of these weights on every image of the beton."""
        try:
            stored = Predictions.load(self.run.predictions)
        except (OSError, ValueError, MemoryError):
            return None
        is_valid = (
            (stored.weights_sha256, stored.data_sha256) == (self.weights_sha256, beton.sha256)
            and stored.logits.shape == (len(beton), len(self.info.class_names))
            and np.array_equal(stored.indices, np.arange(len(beton)))
            and np.array_equal(stored.labels, beton.labels)
        )
        return stored if is_valid else None

    def predict_beton(self, beton: Beton, indices: npt.NDArray[np.int64], *, tta: str = "none") -> Predictions:
        """The predictions on the images `indices` of a beton, with the autocast of training, and with its labels.
        Raises CheckpointError if a logit is not finite."""
        loader = make_loader(
            beton,
            train=False,
            batch_size=EVAL_BATCH_SIZE,
            device=self.device,
            indices=indices,
            mean=self.info.mean,
            std=self.info.std,
        )
        self.reporter.begin("predictions", loader.num_images)
        with closing(loader):
            batches = []
            for batch in predict(self.model, loader, amp=self._amp, tta=tta):
                batches.append(batch)
                self.reporter.advance(len(batch[0]))
        predictions = concatenate(batches)
        self._require_finite(predictions.logits)
        return replace(predictions, weights_sha256=self.weights_sha256, data_sha256=beton.sha256)

    @cached_property
    def _amp(self) -> str:
        return choose_amp(self.device, self.config.runtime.amp)

    def _require_finite(self, logits: npt.NDArray[np.float32]) -> None:
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{self.run.best}: its logits are not finite; train again with a smaller --lr")

    def logits(self, images: npt.NDArray[np.uint8], *, tta: str = "none") -> npt.NDArray[np.float32]:
        """(N, H, W, 3) uint8 -> (N, C) float32, at most EVAL_BATCH_SIZE images at a time: what `predict_beton` has for
        the same images. Raises CheckpointError if a logit is not finite."""
        logits = predict_logits(self.model, self.normalise(images), amp=self._amp, tta=tta).cpu().numpy()
        self._require_finite(logits)
        return logits

    def normalise(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 on the device, normalised as in training."""
        mean, inv_std = (torch.from_numpy(v) for v in normalisation(np.array(self.info.mean), np.array(self.info.std)))
        return normalise(torch.from_numpy(images), mean, inv_std).to(self.device)

    def match_classes(self, path: Path, names: Sequence[str], *, numbered: bool) -> npt.NDArray[np.int64]:
        """The class of the network for each of the class names of other data, (len(names),). Raises DataError for names
        that it does not know.

        numbered: the names may also be numbers of its classes, 0, 1, …, unless its own class names are numbers. path:
        of the data, for messages.
        """
        class_names = self.info.class_names
        class_of = {name: index for index, name in enumerate(class_names)}
        if numbered and not set(names) <= class_of.keys() and not any(name.isdigit() for name in class_names):
            class_of = {str(index): index for index in range(len(class_names))}
        unknown = [name for name in names if name not in class_of]
        if unknown:
            raise DataError(
                f"{path}: has classes that the network does not know: {escape(join_names(unknown))}; expected some of: "
                f"{join_names(class_of)}"
            )
        return np.array([class_of[name] for name in names], np.int64)

    def require_shape(self, path: Path, shape: tuple[int, ...]) -> None:
        """Raise DataError unless images of other data have the shape (H, W, 3) of those of the network."""
        if shape != self.info.image_shape:
            sizes = [
                "x".join(map(str, each[:2] if each[2:] == (3,) else each)) for each in (shape, self.info.image_shape)
            ]
            raise DataError(f"{path}: has images of {sizes[0]}; the network takes {sizes[1]}: resize them")
