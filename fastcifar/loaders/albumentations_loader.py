"""Batches made by worker processes with Albumentations, from the beton: without FFCV and without a compiler."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fastcifar.augment.albumentations_ops import AlbumentationsAugment, Pipeline, augment_batch
from fastcifar.augment.draws import Choices, raw_bits
from fastcifar.beton import Beton
from fastcifar.errors import FastcifarError
from fastcifar.loaders.base import Batch, Loader, LoaderConfig, Rows

MAX_WORKERS = 8
TIMEOUT_S = 120


class AlbumentationsLoader(Loader):
    """A torch `DataLoader` whose workers draw the same table as everybody else."""

    name = "albumentations"

    def __init__(
        self,
        beton: Beton,
        config: LoaderConfig,
        rows: Rows,
        mean: npt.ArrayLike,
        std: npt.ArrayLike,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(beton, config, rows, mean, std)
        if config.augment.pipeline is not None:
            Pipeline(config.augment.pipeline)(beton.images(rows[:1])[0], 0)  # a bad one is told here, not by a worker
        if num_workers is None:
            num_workers = min(
                len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, MAX_WORKERS
            )
        self._num_workers = num_workers
        self._workers = self._start()
        self._in_use = False

    def _start(self) -> DataLoader[Any]:
        num_workers = self._num_workers
        return DataLoader(
            _Batches(self),
            sampler=_Requests(),
            batch_size=None,  # a request is a whole batch
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            worker_init_fn=_leave_signals_to_the_parent,
            timeout=TIMEOUT_S if num_workers else 0,  # a killed worker is an error, not a hang
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self._in_use:  # an epoch is open already: this one gets workers of its own
            workers = self._start()
            try:
                yield from self._epoch(workers, epoch, start)
            finally:
                workers._iterator = None  # ends them
            return
        self._in_use = True
        try:
            yield from self._epoch(self._workers, epoch, start)
        finally:
            self._in_use = False

    def _epoch(self, workers: DataLoader[Any], epoch: int, start: int) -> Iterator[Batch]:
        device, batches = self.config.device, self.batches(epoch)[start:]
        self.beton.check_unchanged()
        workers.sampler.requests = [(epoch, rows) for rows in batches]  # type: ignore[attr-defined]
        for rows, images in zip(batches, self._answers(workers), strict=True):
            # a copy: what comes from a worker lies in shared memory, which holds a descriptor open
            copied = images.to(device, self.config.dtype, copy=True)
            delivered = copied.permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W), channels_last memory
            labels = torch.from_numpy(self.beton.labels[rows]).to(device)
            if not self.config.channels_last:
                delivered = delivered.contiguous()
            yield Batch(delivered, labels, torch.from_numpy(rows.copy()).to(device))
        self.beton.check_unchanged()

    @staticmethod
    def _answers(workers: DataLoader[Any]) -> Iterator[torch.Tensor]:
        try:
            yield from workers
        except FastcifarError as error:  # of a worker: its message ends a traceback
            raise type(error)(str(error).strip().splitlines()[-1].partition("Error: ")[2]) from error
        except (RuntimeError, OSError, EOFError) as error:  # a worker was killed, or does not answer
            workers._iterator = None
            reason = " ".join(str(error).split())
            raise FastcifarError(f"a worker of the albumentations loader ended ({reason})") from error

    def close(self) -> None:
        super().close()
        self._workers._iterator = None  # ends the worker processes


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent saves first and then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Requests(Sampler[Any]):
    """What the workers are asked for next: (epoch, rows) of each batch."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, Rows]] = []

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.requests))


class _Batches(Dataset[Any]):
    """In a worker: the augmented images of one request."""

    def __init__(self, loader: AlbumentationsLoader) -> None:
        self._beton, self._choices_of = loader.beton, loader.choices
        self._mean, self._inv_std = loader.mean32, loader.inv_std32
        self._raw = loader.config.dtype == torch.uint8
        augment = loader.config.augment
        self._seed = loader.config.seed
        self._pipeline = None if augment.pipeline is None else Pipeline(augment.pipeline)
        self._operations = AlbumentationsAugment(loader.config.augment, loader.fill)
        self._epoch: int | None = None
        self._table: Choices | None = None

    def __getitem__(self, request: tuple[int, Rows]) -> torch.Tensor:
        epoch, rows = request
        if self._table is None or self._epoch != epoch:  # a pure function of the epoch: every worker draws the same
            self._epoch, self._table = epoch, self._choices_of(epoch)
        images = self._beton.images(rows)
        if self._pipeline is None:
            images = augment_batch(images, self._table[rows], self._operations)
        else:
            seeds = (raw_bits(self._seed, epoch, "pipeline", len(self._beton))[rows] >> np.uint64(32)).tolist()
            images = np.stack([self._pipeline(image, seed) for image, seed in zip(images, seeds, strict=True)])
        if self._raw:
            return torch.from_numpy(images)
        floats = images.astype(np.float32)
        floats -= self._mean
        floats *= self._inv_std
        return torch.from_numpy(floats)
