"""The whole dataset in memory (that of the device, if it has its own), augmented batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fastcifar.augment.kernel import make_kernel
from fastcifar.augment.mixing import MixPlan
from fastcifar.data.beton import Beton
from fastcifar.loaders.base import Indices, Loader, LoaderConfig
from fastcifar.loaders.batch import Batch


class ResidentLoader(Loader):
    """The default wherever the dataset fits."""

    name = "resident"

    def __init__(self, beton: Beton, config: LoaderConfig, indices: Indices) -> None:
        super().__init__(beton, config, indices)
        self._kernel = make_kernel(config.unmixed)
        loaded, key = beton.file.loaded, (type(self._kernel), config.device)
        self._data = loaded.get(key)  # of another loader: images to train and to validate on are in one beton
        if self._data is None:
            self._data = loaded[key] = self._kernel.to_device(beton.read_all())
        self._offsets, self._labels = map(self._kernel.to_device, (beton.offsets, beton.labels))

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        kernel, plan = self._kernel, self.plan(epoch)
        loaded = kernel.load_params(plan.params)
        offsets = self._offsets if plan.images is None else kernel.to_device(self.beton.offsets[plan.images])
        order = np.concatenate(plan.batches)
        slots, images = map(kernel.to_device, (order, plan.images_in(order)))  # one copy for the epoch
        bounds = np.cumsum([0, *map(len, plan.batches)]).tolist()
        launched: deque[tuple[Any, Callable[[], torch.Tensor], MixPlan | None]] = deque()
        for first, last in list(pairwise(bounds))[start:]:
            wait = kernel.launch(self._data, offsets, slots[first:last], loaded)
            launched.append((images[first:last], *self.mixed(wait, plan, order[first:last])))
            if len(launched) > kernel.num_ahead:
                yield self._batch(*launched.popleft())
        while launched:
            yield self._batch(*launched.popleft())

    def _batch(self, indices: Any, wait: Callable[[], torch.Tensor], mix: MixPlan | None) -> Batch:
        labels = self._labels[indices]
        if isinstance(indices, torch.Tensor):
            return self.make_batch(wait(), labels, indices.clone(), mix)
        return self.make_batch(wait(), torch.from_numpy(labels), torch.from_numpy(indices.copy()), mix)

    def close(self) -> None:
        super().close()
        self._kernel.close()
        self._data = self._offsets = self._labels = None
