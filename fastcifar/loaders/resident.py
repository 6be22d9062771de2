"""The whole dataset in memory (the device's own, where there is one), augmented batch by batch."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment import torch_ops
from fastcifar.augment.draws import Choices
from fastcifar.beton import Beton
from fastcifar.loaders.base import Batch, CpuKernel, Loader, LoaderConfig, Rows


class ResidentLoader(Loader):
    """The default wherever the dataset fits."""

    name = "resident"

    def __init__(self, beton: Beton, config: LoaderConfig, rows: Rows, mean: npt.ArrayLike, std: npt.ArrayLike) -> None:
        super().__init__(beton, config, rows, mean, std)
        device = config.device
        self._kernel = self.cpu_kernel()
        self._plans: dict[int, Future[tuple[list[Rows], Choices]]] = {}
        if self._kernel is None:
            self._put_on(device)

    def _put_on(self, device: torch.device) -> None:
        """Everything that the torch operations need, in the device's memory."""
        beton = self.beton
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nobody writes to it
            data = torch.from_numpy(beton.data).to(device)
        size = int(np.prod(beton.image_shape))
        # every run of `size` bytes as a row, without copying: indexing it by offset gathers whole images
        self._windows = data.as_strided((len(data) - size + 1, size), (1, 1))
        self._labels = torch.from_numpy(beton.labels).to(device)
        self._offsets = torch.from_numpy(beton.offsets).to(device)
        self._mean = torch.from_numpy(self.mean32).to(device)
        self._inv_std = torch.from_numpy(self.inv_std32).to(device)
        self._fill = torch.from_numpy(self.fill).to(device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self._kernel is None:
            yield from self._epoch_by_torch(epoch, start)
            return
        kernel = self._kernel
        batches, choices = self._planned(epoch, kernel)
        columns = kernel.columns(choices)
        begun: deque[tuple[Rows, Any]] = deque()
        for rows in chain(batches[start:], (None,)):
            if rows is not None:
                begun.append((rows, kernel.begin(self.beton.data, self.beton.offsets, rows, columns)))
            if len(begun) == 2 or (rows is None and begun):  # one is made while the caller works on the other
                of, pending = begun.popleft()
                labels, indices = torch.from_numpy(self.beton.labels[of]), torch.from_numpy(of.copy())
                yield Batch(kernel.finished(pending), labels, indices)

    def _planned(self, epoch: int, kernel: CpuKernel) -> tuple[list[Rows], Choices]:
        """The plan of an epoch, which was made during the one before it."""
        plan = self._plans.pop(epoch, None)
        self._plans = {epoch + 1: kernel.submit(self.plan, epoch + 1)}
        return self.plan(epoch) if plan is None else plan.result()

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()

    def _epoch_by_torch(self, epoch: int, start: int) -> Iterator[Batch]:
        config = self.config
        table = torch_ops.to_device(self.choices(epoch), config.device)
        for rows_here in self.batches(epoch)[start:]:
            rows = torch.from_numpy(rows_here.copy()).to(config.device)
            images = self._windows[self._offsets[rows]].view(-1, *self.beton.image_shape)  # (N, H, W, 3) uint8
            chosen = {name: column[rows] for name, column in table.items()}
            delivered = torch_ops.augment_batch(
                images, chosen, config.augment, self._fill, self._mean, self._inv_std, config.dtype
            )
            yield Batch(self.laid_out(delivered), self._labels[rows], rows)
