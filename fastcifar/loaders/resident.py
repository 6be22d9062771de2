"""The whole dataset in memory (that of the device, if it has its own), augmented batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fastcifar.augment.kernel import make_kernel
from fastcifar.data.beton import Beton
from fastcifar.loaders.base import Batch, Indices, Loader, LoaderConfig


class ResidentLoader(Loader):
    """The default wherever the dataset fits."""

    name = "resident"

    def __init__(self, beton: Beton, config: LoaderConfig, indices: Indices) -> None:
        super().__init__(beton, config, indices)
        self._kernel = make_kernel(config)
        self._data = self._kernel.to_device(beton.read_all())
        self._offsets, self._labels = map(self._kernel.to_device, (beton.offsets, beton.labels))

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        kernel = self._kernel
        batches, params = self.plan(epoch)
        loaded = kernel.load_params(params)
        order = kernel.to_device(np.concatenate(batches))  # one copy for the epoch
        bounds = np.cumsum([0, *map(len, batches)]).tolist()
        launched: deque[tuple[Any, Callable[[], torch.Tensor]]] = deque()
        for first, last in list(pairwise(bounds))[start:]:
            indices = order[first:last]
            launched.append((indices, kernel.launch(self._data, self._offsets, indices, loaded)))
            if len(launched) > kernel.num_ahead:
                yield self._batch(*launched.popleft())
        while launched:
            yield self._batch(*launched.popleft())

    def _batch(self, indices: Any, wait: Callable[[], torch.Tensor]) -> Batch:
        labels = self._labels[indices]
        if isinstance(indices, torch.Tensor):
            return Batch(wait(), labels, indices.clone())
        return Batch(wait(), torch.from_numpy(labels), torch.from_numpy(indices.copy()))

    def close(self) -> None:
        super().close()
        self._kernel.close()
