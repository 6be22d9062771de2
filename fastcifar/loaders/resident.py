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
from fastcifar.loaders.base import Batch, CpuKernel, DeviceKernel, Indices, Loader, LoaderConfig


class ResidentLoader(Loader):
    """The default wherever the dataset fits."""

    name = "resident"

    def __init__(
        self, beton: Beton, config: LoaderConfig, indices: Indices, mean: npt.ArrayLike, std: npt.ArrayLike
    ) -> None:
        super().__init__(beton, config, indices, mean, std)
        self._bytes = beton.data
        if not beton.private:
            self._bytes = np.empty(len(beton.data), np.uint8)
            beton.read_into(self._bytes, 0)
        beton.check_unchanged()  # what was copied is what was checked
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
        batches, params = self.plan(epoch)
        columns = kernel.columns(params)
        begun: deque[tuple[Indices, Any]] = deque()
        for indices in chain(batches[start:], (None,)):
            if indices is not None:
                begun.append((indices, kernel.begin(self._bytes, self.beton.offsets, indices, columns)))
            if len(begun) == 2 or (indices is None and begun):  # one is made while the caller works on the other
                of, pending = begun.popleft()
                labels, indices = torch.from_numpy(self.beton.labels[of]), torch.from_numpy(of.copy())
                yield Batch(kernel.finished(pending), labels, indices)

    def _epoch_on_device(self, kernel: DeviceKernel, epoch: int, start: int) -> Generator[Batch, None, None]:
        batches, params = self.plan(epoch)
        columns = kernel.columns(params)
        order = torch.from_numpy(np.concatenate(batches)).to(self.config.device)
        for indices in torch.split(order, len(batches[0]))[start:]:
            images = kernel(self._data, self._offsets, indices, columns)
            yield Batch(images, self._labels[indices], indices.clone())

    def close(self) -> None:
        super().close()
        if self._on_cpu is not None:
            self._on_cpu.close()
