"""The images of a run: to train, validate and test on, each behind a loader."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.data.manifest import Conversion
from fastcifar.data.statistics import require_classes
from fastcifar.errors import DataError, UsageError
from fastcifar.loaders import Loader, choose_loader, make_loader
from fastcifar.training.distributed import Distributed
from fastcifar.training.split import hold_out
from fastcifar.training.weights import DatasetInfo

EVAL_BATCH_SIZE = 1_000


class Loaders:
    """The loaders of a run; all normalise by mean and std of the training images."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        distributed: Distributed,
        betons: Sequence[Beton] | None = None,
        indices: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """betons: the training and test images, if they are open already; else they are opened in the data folder.
        indices: the images of the first to train on, (M,) int64, sorted; by default all that are not held out."""
        self._config, self._device, self._distributed = config, device, distributed
        data, num_processes = config.data, distributed.world_size
        images: Sequence[Any] = betons or [Path(data.data_dir) / name for name in ("train.beton", "test.beton")]
        self.choice = choose_loader(
            data.loader, images, augment=config.augment, device=device, num_processes=distributed.num_yet_to_load
        )
        self._beton, test = self.choice.betons
        require_classes(self._beton.path, self._beton.class_names)
        names, labels = self._beton.class_names, self._beton.labels
        if indices is not None and data.val_size != 0:
            raise UsageError(
                f"val_size is {data.val_size} with indices; expected 0: no image is held out of some images"
            )
        self._train_indices, val_indices = hold_out(labels, len(names), data.val_size, config.seed)
        self.indices_sha256 = ""
        """Of the `indices`; empty without them."""
        if indices is not None:
            self._train_indices, self.indices_sha256 = indices, hashlib.sha256(indices.tobytes()).hexdigest()
        conversion = self._beton.manifest.conversion if self._beton.manifest else Conversion()
        self.info = DatasetInfo(
            class_names=names,
            image_shape=self._beton.image_shape,
            mean=tuple(self._beton.mean.tolist()),
            std=tuple(self._beton.std.tolist()),
            sha256=self._beton.sha256,
            fit=conversion.fit,
            background=conversion.background,
        )
        source, compare_names = f"{self._beton.path} has", self._beton.verified
        require_same_kind(test, self.info, source, "convert both again", compare_names=compare_names)
        self.num_train, self.num_val = len(self._train_indices), len(val_indices)
        if config.early_stop is not None and not self.num_val:
            raise UsageError(
                f"early_stop is {config.early_stop}, and no image is held out; expected a val_size above 0"
            )
        num_val_by_class = np.bincount(labels[val_indices], minlength=len(names))
        self.classes_without_val = [name for name, num in zip(names, num_val_by_class, strict=True) if not num]
        for num_images in (self.num_val, len(test)):
            if 0 < num_images < num_processes:
                raise UsageError(
                    f"{num_images} images to evaluate for {num_processes} processes; start at most {num_images} "
                    "processes"
                )
        self.train = self.make_train_loader(distributed.rank, num_processes)
        self.val = self._make_eval_loader(self._beton, val_indices) if self.num_val else None
        self.test = self._make_eval_loader(test, np.arange(len(test)))

    def make_train_loader(self, rank: int = 0, world_size: int = 1) -> Loader:
        """A loader of the training images: the slice of `rank` of each batch."""
        return make_loader(
            self._beton,
            self._config.augment,
            batch_size=self._config.batch_size,
            loader=self.choice.name,
            seed=self._config.seed,
            device=self._device,
            shuffle=self._config.data.shuffle,
            sampler=self._config.data.sampler,
            indices=self._train_indices,
            rank=rank,
            world_size=world_size,
        )

    def _make_eval_loader(self, beton: Beton, indices: npt.NDArray[np.int64]) -> Loader:
        return make_loader(
            beton,
            train=False,
            batch_size=EVAL_BATCH_SIZE,
            loader=self.choice.name,
            device=self._device,
            mean=self.info.mean,
            std=self.info.std,
            indices=self._distributed.shard(indices),
        )

    def close(self) -> None:
        """Stop threads and processes of the loaders."""
        for loader in (self.train, self.val, self.test):
            if loader is not None:
                loader.close()


def require_same_kind(beton: Beton, info: DatasetInfo, source: str, remedy: str, *, compare_names: bool = True) -> None:
    """Raise DataError unless the images of `beton` have the shape and the classes of `info`, which describes `source`.

    The class names of a beton without a manifest are numbers, which are not compared.
    """
    num_classes = len(info.class_names)
    if beton.verified and compare_names:
        is_same = beton.class_names == info.class_names
    else:
        is_same = int(beton.labels.max()) < num_classes
    if not is_same or beton.image_shape != info.image_shape:
        raise DataError(
            f"{beton.path}: {len(beton.class_names)} classes, images {beton.image_shape}; {source} {num_classes} "
            f"classes, images {info.image_shape}; expected the same shape and class names; {remedy}"
        )
