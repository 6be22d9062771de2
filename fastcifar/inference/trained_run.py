"""A trained run, opened: its network, the betons it belongs to, and what it answers on their images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import normalisation
from fastcifar.augment.torch_kernel import normalise
from fastcifar.data.beton import Beton
from fastcifar.data.statistics import require_classes
from fastcifar.errors import CheckpointError, DataError, UsageError
from fastcifar.inference.predict import evaluate
from fastcifar.io.paths import data_folder
from fastcifar.loaders import make_loader, open_for
from fastcifar.models.probe import place
from fastcifar.training import checkpoint
from fastcifar.training.checkpoint import Predictions
from fastcifar.training.data import EVAL_BATCH
from fastcifar.training.device import choose_amp, choose_device
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.split import hold_out


class Trained:
    """The best weights of a run, on a device, in evaluation mode and float32."""

    def __init__(
        self, run: RunFolder, *, data_dir: str | os.PathLike[str] | None, device: str, trusted: str | None
    ) -> None:
        """trusted: 'package.module:function', if that is the run's network and you know what it does.

        Raises CheckpointError (6) if there are no weights, or none that can be read; DataError (4) if they know one
        class; UsageError (2).
        """
        self.run = run
        self.model, self.info, facts = checkpoint.load_weights(run.best, trusted)
        require_classes(run.best, self.info.class_names)
        self.weights_sha256: str = facts["file_sha256"]
        self.device = choose_device(device)
        place(self.model, self.device)
        self.config = run.read_config()
        self._data_dir = self.config.data.data_dir if data_dir is None else data_folder(data_dir)

    def open_beton(self, split: str) -> Beton:
        """train.beton or test.beton. Raises DataError if it is missing, damaged or not of the network's kind."""
        beton = open_for("auto", Path(self._data_dir) / f"{split}.beton", self.device)
        info = self.info
        if beton.image_shape != info.image_shape or (beton.verified and beton.class_names != info.class_names):
            raise DataError(
                f"{beton.path}: {len(beton.class_names)} classes, images {beton.image_shape}; the network was trained "
                f"on {len(info.class_names)} classes, images {info.image_shape}; give its data with --data-dir"
            )
        highest = int(beton.labels.max())
        if highest >= len(info.class_names):
            raise DataError(f"{beton.path}: has label {highest}; the network knows {len(info.class_names)} classes")
        return beton

    def rows_of(self, split: str, beton: Beton) -> npt.NDArray[np.int64]:
        """The images of 'test', or of 'val', which training held out of train.beton.

        Raises UsageError if it held out none, DataError if this is not the beton it was trained on.
        """
        if split == "test":
            return np.arange(len(beton))
        if beton.sha256 != self.info.sha256:
            raise DataError(f"{beton.path}: not the file that {self.run.path} was trained on; give it with --data-dir")
        _, rows = hold_out(beton.labels, len(self.info.class_names), self.config.data.val_size, self.config.seed)
        if not len(rows):
            raise UsageError(f"{self.run.path}: no image was held out from training; expected --split test")
        return rows

    def predictions(self, split: str, beton: Beton, tta: str, reporter: Reporter) -> Predictions:
        """The network's answers, with the autocast of its training. Those of the plain test are kept in
        predictions.npz, and taken from it if they are of these weights and images."""
        kept = split == "test" and tta == "none" and self.run.tested_on() in (None, beton.sha256)
        known = checkpoint.load_predictions(self.run.predictions, self.weights_sha256, beton.sha256) if kept else None
        if known is None or not self._are_of(beton, known):
            known = self._predict(beton, self.rows_of(split, beton), tta, reporter)
            if kept:
                checkpoint.save_predictions(self.run.predictions, known)
        if not np.isfinite(known.logits).all():
            raise CheckpointError(f"{self.run.best}: its answers are not finite; train again with a smaller rate")
        return known

    def _are_of(self, beton: Beton, found: Predictions) -> bool:
        """Whether these are answers to every image of the beton, in its order."""
        shape = (len(beton), len(self.info.class_names))
        return (
            found.logits.shape == shape
            and np.array_equal(found.index, np.arange(len(beton)))
            and np.array_equal(found.label, beton.labels)
        )

    def _predict(self, beton: Beton, rows: npt.NDArray[np.int64], tta: str, reporter: Reporter) -> Predictions:
        info = self.info
        loader = make_loader(
            beton,
            train=False,
            batch_size=EVAL_BATCH,
            device=self.device,
            indices=rows,
            mean=info.mean,
            std=info.std,
        )
        amp = choose_amp(self.device, self.config.runtime.amp)
        reporter.begin("predictions", loader.num_images)
        try:
            answers = evaluate(self.model, loader, amp=amp, tta=tta, advance=reporter.advance)
        finally:
            loader.close()
        return Predictions(
            index=answers.indices,
            label=answers.labels,
            logits=answers.logits,
            weights_sha256=self.weights_sha256,
            data_sha256=beton.sha256,
        )

    def normalised(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 on the device, as the network was trained."""
        mean, inv_std = (torch.from_numpy(v) for v in normalisation(np.array(self.info.mean), np.array(self.info.std)))
        return normalise(torch.from_numpy(images), mean, inv_std).to(self.device)
