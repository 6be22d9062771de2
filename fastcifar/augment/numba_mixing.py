"""MixUp and CutMix on a CPU, compiled by Numba: in place, part by part of the batch, on several threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fastcifar.augment.kernel import KernelConfig
from fastcifar.augment.mixing import MixPlan, rounded
from fastcifar.augment.numba_kernel import BufferPool, compiled
from fastcifar.system.thread_pool import Threads

MIN_IMAGES = 512  # of a task, which takes 0.8 ms for 32x32: two of half the size were slower


def mix_parts(
    images: Any,  # (B, planes * height * line) float32: 3 planes, or 1 with the channels next to each other
    partners: Any,  # and the others of `MixPlan`
    weights: Any,
    boxes: Any,
    bounds: Any,
    shape: tuple[int, int, int, int],  # planes, height, values in a line, values in a pixel of a line
    before: Any,  # (images of the largest part, as many) float32: overwritten
    first: int,
    last: int,
) -> None:
    """Mix the parts first .. last - 1 of a batch. Numba does not fuse multiplication and addition."""
    planes, height, line, step = shape
    size = planes * height * line
    for part in range(first, last):
        begin = bounds[part]
        for i in range(begin, bounds[part + 1]):
            for at in range(size):
                before[i - begin, at] = images[i, at]
        for i in range(begin, bounds[part + 1]):
            image, other = images[i], before[partners[i] - begin]
            if boxes[i, 2] == 0:
                own, rest = weights[i, 0], weights[i, 1]
                for at in range(size):
                    image[at] = own * image[at] + rest * other[at]
                continue
            left, right = boxes[i, 1] * step, (boxes[i, 1] + boxes[i, 3]) * step
            for plane in range(planes):
                for y in range(boxes[i, 0], boxes[i, 0] + boxes[i, 2]):
                    start = (plane * height + y) * line
                    # slices: an index that might be negative for all that Numba knows is not vectorised
                    pixels, pasted = image[start + left : start + right], other[start + left : start + right]
                    for at in range(len(pixels)):
                        pixels[at] = pasted[at]


def _compile(kernel: Callable[..., None]) -> None:
    """Call it with the argument types of `NumbaMixer`."""
    floats, integers = np.zeros((2, 2), np.float32), np.zeros((2, 4), np.int64)
    kernel(floats, integers[0], floats, integers, integers[0], (1, 1, 2, 1), floats.copy(), 0, 0)


class NumbaMixer:
    """Mixes batches on a CPU, on threads without the GIL: see `mixing.Mixer`."""

    def __init__(self, config: KernelConfig, num_threads: int | None = None) -> None:
        self._config = config
        height, width, _ = config.image_shape
        self._shape = (1, height, width * 3, 3) if config.channels_last else (3, height, width, 1)
        self._num_threads = num_threads or torch.get_num_threads()
        self._pool = Threads(self._num_threads, "mix")
        self._buffers = BufferPool()
        self._kernel = compiled(mix_parts, _compile)

    def launch(self, wait: Callable[[], torch.Tensor], plan: MixPlan) -> Callable[[], torch.Tensor]:
        num_parts = len(plan.bounds) - 1
        num_tasks = max(1, min(self._num_threads, num_parts, len(plan.partners) // MIN_IMAGES))
        if self._config.dtype == torch.uint8:
            num_tasks = 1  # the floats are those of one task
        edges = [num_parts * i // num_tasks for i in range(num_tasks + 1)]
        tasks = [self._pool.submit(self._mix, wait, plan, first, last) for first, last in pairwise(edges)]
        return functools.partial(self._wait, tasks)

    def _mix(self, wait: Callable[[], torch.Tensor], plan: MixPlan, first: int, last: int) -> torch.Tensor:
        images = wait().float()  # itself, or from uint8
        num, size = len(images), images[0].numel()
        lines = images.permute(0, 2, 3, 1) if self._config.channels_last else images  # contiguous
        most = int(np.diff(plan.bounds).max())
        before = self._buffers.empty(most * size * 4).view(np.float32).reshape(most, size)
        self._kernel(lines.reshape(num, size).numpy(), *plan, self._shape, before, first, last)
        return images

    def _wait(self, tasks: list[Future[torch.Tensor]]) -> torch.Tensor:
        for task in tasks:
            images = task.result()  # the same batch
        return rounded(images, self._config.dtype)

    def close(self) -> None:
        self._pool.close()
