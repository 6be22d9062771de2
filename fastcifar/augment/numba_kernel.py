"""Augmentation on a CPU in one pass over the pixels, compiled by Numba: uint8 in, normalised floats out.

Slices of a batch run on our own threads, without the GIL: Numba's parallel layers abort when two loaders run, and
deadlock after a fork. The steps are in `numba_pixels`.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment import numba_pixels as pixels
from fastcifar.augment.kernel import KernelConfig, normalisation
from fastcifar.augment.params import AugmentParams, rotation_terms, sample_params
from fastcifar.config import NO_AUGMENT
from fastcifar.errors import describe
from fastcifar.system.thread_pool import Threads

log = logging.getLogger(__name__)
MIN_SLICE = 64  # images; submitting less to a thread costs more than it saves
MAX_FREE_BUFFERS = 4
OUT_DTYPES = (np.float32, np.uint16, np.uint8)  # of FLOAT32, BFLOAT16, UINT8
_LOADING = threading.Lock()  # `open_for` loads the kernel in a thread while a loader may ask for it


def load() -> Callable[..., None]:
    """The compiled kernel, from Numba's cache on disk if it is there."""
    return compiled(pixels.augment_slice, _compile)


def compiled(function: Callable[..., Any], compile: Callable[[Callable[..., Any]], None]) -> Callable[..., Any]:
    """`function` as machine code, from Numba's cache on disk if it is there.

    compile: calls it once with arguments of the types that it is used with: that reads and writes the cache.
    """
    with _LOADING:
        return _load(function, compile)


@functools.cache  # once per process: Numba's dispatchers cannot be garbage collected safely
def _load(function: Callable[..., Any], compile: Callable[[Callable[..., Any]], None]) -> Callable[..., Any]:
    remedy = "set NUMBA_CACHE_DIR to a writable folder"
    try:
        cached = numba.njit(nogil=True, cache=True)(function)
        remedy = f"delete {cached.stats.cache_path}, or make it writable"
        compile(cached)
        return cached
    except Exception as error:  # noqa: BLE001 (a full disk, or a damaged cache: unpickling it can raise anything)
        log.warning(
            "the CPU kernel is compiled in each process: its cache cannot be used (%s); %s", describe(error), remedy
        )
    kernel = numba.njit(nogil=True)(function)
    compile(kernel)
    return kernel


def _compile(kernel: Callable[..., None]) -> None:
    """Call it with the argument types of `NumbaKernel.launch`."""
    data, empty = np.zeros(3, np.uint8), np.zeros(0, np.int64)
    data.flags.writeable = False
    row, outs = np.zeros((1, 3), np.float32), tuple(np.empty((1, 0), dtype) for dtype in OUT_DTYPES)
    constants = ((1, 1), 0, False, data.copy(), row, row, pixels.FLOAT32)
    kernel(data, empty, empty, *_columns(sample_params(NO_AUGMENT, 0, 0, 2), True), *constants, outs, 0, 0)


def _columns(params: AugmentParams, rotates: bool) -> tuple[Any, ...]:
    """crop, flip, rotation, colour, cutout of `numba_pixels.augment_slice`."""

    def group(*names: str) -> tuple[npt.NDArray[Any], ...]:
        return tuple(params[name] for name in names)

    rotation = rotation_terms(params["rotation"] if rotates else params["rotation"][:0])
    cutout = group("cutout_y", "cutout_x", "cutout_height", "cutout_width")
    colour = group("hue", "saturation", "value", "brightness", "contrast")
    return group("crop_y", "crop_x"), params["flip"], rotation, colour, cutout


class BufferPool:
    """Memory for the tensors of batches, reused once nothing refers to a tensor any more.

    Fresh pages cost more than the augmentation: each 4 KiB is a page fault and is zeroed.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[npt.NDArray[np.uint8]]] = {}  # by size; the methods of a deque are atomic

    def empty(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Uninitialised bytes, which a tensor made from them keeps alive."""
        free = self._free.setdefault(num_bytes, deque(maxlen=MAX_FREE_BUFFERS))
        try:
            buffer = free.pop()  # the most recently used: it may still be in the cache
        except IndexError:
            buffer = np.empty(num_bytes, np.uint8)
        view = np.frombuffer(buffer.data, np.uint8)  # further views refer to it; those of a slice refer to the buffer
        weakref.finalize(view, free.append, buffer).atexit = False
        return view


class NumbaKernel:
    """Augments and normalises batches on a CPU, on several threads without the GIL: see `kernel.Kernel`."""

    num_ahead = 1  # one batch is made while the caller uses the one before

    def __init__(self, config: KernelConfig, num_threads: int | None = None) -> None:
        height, width, _ = config.image_shape
        kind = {torch.bfloat16: pixels.BFLOAT16, torch.uint8: pixels.UINT8}.get(config.dtype, pixels.FLOAT32)
        self._config, self._kind = config, kind
        rows = [
            np.tile(values, width)[None] if config.channels_last else np.repeat(values[:, None], width, axis=1)
            for values in normalisation(config.mean, config.std)
        ]
        reflect = config.augment.padding_mode == "reflect"
        self._constants = ((height, width), config.augment.crop_padding, reflect, config.fill, *rows, kind)
        self._num_threads = num_threads or torch.get_num_threads()
        self._pool = Threads(self._num_threads, "augment")
        self._buffers = BufferPool()
        self._no_outs = [np.empty((1, 0), dtype) for dtype in OUT_DTYPES]
        self._kernel = load()

    def to_device(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def load_params(self, params: AugmentParams) -> tuple[Any, ...]:
        if len(params) == 1:
            params = np.repeat(params, 2)  # Numba has another type for columns of one row, and would compile again
        return _columns(params, self._config.augment.rotate_degrees > 0)

    def launch(
        self,
        data: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        indices: npt.NDArray[np.int64],
        params: tuple[Any, ...],
    ) -> Callable[[], torch.Tensor]:
        num, (height, width, _) = len(indices), self._config.image_shape
        dtype = OUT_DTYPES[self._kind]
        out = self._buffers.empty(num * height * width * 3 * dtype().itemsize).view(dtype)
        outs = [*self._no_outs]
        outs[self._kind] = out.reshape(num, height * width * 3)
        data = data.view()
        data.flags.writeable = False  # one type for the compiler, whoever owns the bytes
        num_slices = max(1, min(self._num_threads, num // MIN_SLICE))
        bounds = [num * i // num_slices for i in range(num_slices + 1)]
        arguments = (data, offsets, indices, *params, *self._constants, tuple(outs))
        slices = [self._pool.submit(self._kernel, *arguments, first, last) for first, last in pairwise(bounds)]
        # views are taken in NumPy: torch releases the GIL for each of its own, and waits to acquire it again
        if self._config.channels_last:
            out = out.reshape(num, height, width, 3).transpose(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)
        else:
            out = out.reshape(num, 3, height, width)
        images = torch.from_numpy(out)
        if self._kind == pixels.BFLOAT16:
            images = images.view(torch.bfloat16)
        return functools.partial(self._wait, images, slices)

    def _wait(self, images: torch.Tensor, slices: list[Future[None]]) -> torch.Tensor:
        for future in slices:
            future.result()
        return images.to(torch.float16) if self._config.dtype == torch.float16 else images  # from float32

    def close(self) -> None:
        self._pool.close()
