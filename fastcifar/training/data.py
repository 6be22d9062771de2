"""The images of a run: what is trained on, validated on and tested on, each behind a loader."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.data.statistics import require_classes
from fastcifar.errors import DataError, UsageError
from fastcifar.loaders import Loader, choose_loader, make_loader
from fastcifar.training.checkpoint import DataInfo
from fastcifar.training.distributed import Processes
from fastcifar.training.split import hold_out

EVAL_BATCH = 1_000


class Loaders:
    """The loaders of a run, all normalising by the training images' mean and std."""

    def __init__(self, config: TrainConfig, device: torch.device, processes: Processes) -> None:
        folder = Path(config.data.data_dir)
        paths = [folder / "train.beton", folder / "test.beton"]
        self.choice = choose_loader(config.data.loader, paths, augment=config.augment, device=device)
        train, test = self.choice.betons
        require_classes(train.path, train.class_names)
        self._check_pair(train, test)
        num_classes = len(train.class_names)
        rows, val_rows = hold_out(train.labels, num_classes, config.data.val_size, config.seed)

        def make(beton: Beton, **settings: Any) -> Loader:
            return make_loader(
                beton, loader=self.choice.name, device=device, mean=train.mean, std=train.std, **settings
            )

        def make_train(rank: int, world_size: int) -> Loader:
            settings = {"augment": config.augment, "batch_size": config.batch_size, "seed": config.seed}
            return make(train, **settings, shuffle=config.data.shuffle, indices=rows, rank=rank, world_size=world_size)

        self.whole_batches = partial(make_train, 0, 1)
        self.train = make_train(processes.rank, processes.count)

        def make_eval(beton: Beton, rows: npt.NDArray[np.int64]) -> Loader:
            if len(rows) < processes.count:
                raise UsageError(f"{len(rows)} images to evaluate for {processes.count} processes; expected fewer")
            return make(beton, train=False, batch_size=EVAL_BATCH, indices=processes.part(rows))

        self.val = make_eval(train, val_rows) if len(val_rows) else None
        self.test = make_eval(test, np.arange(len(test)))
        self.num_train, self.num_val = len(rows), len(val_rows)
        num_val_of = np.bincount(train.labels[val_rows], minlength=num_classes)
        self.not_validated = [name for name, num in zip(train.class_names, num_val_of, strict=True) if not num]
        self.info = DataInfo(
            class_names=train.class_names,
            image_shape=train.image_shape,
            mean=tuple(train.mean.tolist()),
            std=tuple(train.std.tolist()),
            sha256=train.sha256,
        )

    @staticmethod
    def _check_pair(train: Beton, test: Beton) -> None:
        if train.image_shape != test.image_shape:
            raise DataError(
                f"{test.path}: its images are {test.image_shape}, those of {train.path} {train.image_shape}"
            )
        if train.verified and test.verified and train.class_names != test.class_names:
            raise DataError(f"{test.path}: its classes are not those of {train.path}; convert both again")
        if int(test.labels.max()) >= len(train.class_names):
            raise DataError(
                f"{test.path}: has label {int(test.labels.max())}, {train.path} has {len(train.class_names)} classes"
            )

    def close(self) -> None:
        for loader in (self.train, self.val, self.test):
            if loader is not None:
                loader.close()
