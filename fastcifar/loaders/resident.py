"""The whole dataset in memory (the device's own, where there is one), augmented batch by batch."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.data.beton import Beton
from fastcifar.loaders.base import Batch, CpuKernel, DeviceKernel, Loader, LoaderConfig, Rows


class ResidentLoader(Loader):
    """The default wherever the dataset fits."""

    name = "resident"

    def __init__(self, beton: Beton, config: LoaderConfig, rows: Rows, mean: npt.ArrayLike, std: npt.ArrayLike) -> None:
        super().__init__(beton, config, rows, mean, std)
        self._bytes = beton.read_all()
        self._on_cpu = self.cpu_kernel()
        if self._on_cpu is None:
            self._on_device = self.device_kernel()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nobody writes to it
                arrays = (self._bytes, beton.offsets, beton.labels)
                self._data, self._offsets, self._labels = (torch.from_numpy(a).to(config.device) for a in arrays)

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        if self._on_cpu is not None:
            return self._epoch_on_cpu(self._on_cpu, epoch, start)
        return self._epoch_on_device(self._on_device, epoch, start)

    def _epoch_on_cpu(self, kernel: CpuKernel, epoch: int, start: int) -> Generator[Batch, None, None]:
        batches, choices = self.plan(epoch)
        columns = kernel.columns(choices)
        begun: deque[tuple[Rows, Any]] = deque()
        for rows in chain(batches[start:], (None,)):
            if rows is not None:
                begun.append((rows, kernel.begin(self._bytes, self.beton.offsets, rows, columns)))
            if len(begun) == 2 or (rows is None and begun):  # one is made while the caller works on the other
                of, pending = begun.popleft()
                labels, indices = torch.from_numpy(self.beton.labels[of]), torch.from_numpy(of.copy())
                yield Batch(kernel.finished(pending), labels, indices)

    def _epoch_on_device(self, kernel: DeviceKernel, epoch: int, start: int) -> Generator[Batch, None, None]:
        batches, choices = self.plan(epoch)
        columns = kernel.columns(choices)
        order = torch.from_numpy(np.concatenate(batches)).to(self.config.device)
        for rows in torch.split(order, len(batches[0]))[start:]:
            images = kernel(self._data, self._offsets, rows, columns)
            yield Batch(images, self._labels[rows], rows.clone())

    def close(self) -> None:
        super().close()
        if self._on_cpu is not None:
            self._on_cpu.close()
