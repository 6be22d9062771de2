"""The params applied on a CPU in one pass over the pixels, compiled by Numba: uint8 in, normalised floats out.

Slices of a batch run on threads of our own, without the GIL: Numba's parallel layers abort beside a second loader and
die after a fork. The steps are in `numba_pixels`; `torch_kernel` does the same with torch.
"""

from __future__ import annotations

import contextlib
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
from fastcifar.augment.params import AugmentParams, rotation_terms, sample_params
from fastcifar.config import NO_AUGMENT, AugmentConfig
from fastcifar.errors import describe
from fastcifar.system.thread_pool import Threads

log = logging.getLogger(__name__)
LEAST_IN_SLICE = 64  # images; handing over less costs more than it brings
KEPT_BLOCKS = 4
_LOADING = threading.Lock()  # a loader asks for the kernel while the thread that `open_for` began makes it
WRITTEN = (np.float32, np.uint16, np.uint8)  # by kind: FLOAT32, BFLOAT16, UINT8


def load() -> Callable[..., None]:
    """The kernel, compiled or read from Numba's cache on disk."""
    with _LOADING:
        return _load()


@functools.cache  # once a process: a dispatcher of Numba's does not take being collected well
def _load() -> Callable[..., None]:
    remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
    try:
        cached = numba.njit(nogil=True, cache=True)(pixels.augment_slice)
        remedy = f"delete {cached.stats.cache_path}, or see that it can be written"
        return _tried(cached)
    except Exception as error:  # noqa: BLE001 (a full disk; or a damaged file, which unpickled can raise anything)
        log.warning(
            "the CPU kernel is compiled in each process: its cache cannot be used (%s); %s", describe(error), remedy
        )
    return _tried(numba.njit(nogil=True)(pixels.augment_slice))


def _tried(kernel: Callable[..., None]) -> Callable[..., None]:
    """Compiled for the types that `NumbaAugment` gives it, which is when a cache is read and written."""
    data, none = np.zeros(3, np.uint8), np.zeros(0, np.int64)
    data.flags.writeable = False
    row, outs = np.zeros((1, 3), np.float32), tuple(np.empty((1, 0), kind) for kind in WRITTEN)
    settings = ((1, 1), 0, False, data.copy(), row, row, pixels.FLOAT32)  # as those of `NumbaAugment`
    kernel(data, none, none, *_columns(sample_params(NO_AUGMENT, 0, 0, 2), True), *settings, outs, 0, 0)
    return kernel


def _columns(params: AugmentParams, rotates: bool) -> tuple[Any, ...]:
    rotation = rotation_terms(params["rotation"] if rotates else params["rotation"][:0])
    crop, colour = ("crop_y", "crop_x"), ("hue", "saturation", "value")
    cutout = ("cutout_y", "cutout_x", "cutout_height", "cutout_width")
    of_crop, of_colour, of_cutout = (tuple(params[name] for name in group) for group in (crop, colour, cutout))
    return of_crop, params["flip"], rotation, of_colour, of_cutout


class Recycler:
    """Memory for tensors, fresh from the caller's side: a block comes back when nothing uses the tensor any more.

    Fresh pages from the system cost more than the pixels: each 4 KiB is a fault and is zeroed.
    """

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=KEPT_BLOCKS)  # its methods are atomic

    def empty(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Uninitialised bytes; a tensor made of them keeps them."""
        block = None
        for _ in range(len(self._free)):
            with contextlib.suppress(IndexError):  # another thread took the last one
                block = self._free.pop()  # the one that was used last: it may still be in the cache
            if block is not None and len(block) == num_bytes:
                break
            if block is not None:
                self._free.appendleft(block)
                block = None
        if block is None:
            block = np.empty(num_bytes, np.uint8)
        used = np.frombuffer(block.data, np.uint8)  # what further views keep; of a slice they keep the block
        weakref.finalize(used, self._free.append, block).atexit = False
        return used


class Pending:
    """A batch that is being made."""

    def __init__(self, tensor: torch.Tensor, parts: list[Future[None]]) -> None:
        self._tensor, self._parts = tensor, parts

    def result(self) -> torch.Tensor:
        """Wait for it."""
        for part in self._parts:
            part.result()
        return self._tensor


class NumbaAugment:
    """Augments and normalises batches on a CPU, with several threads and without the GIL."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        augment: AugmentConfig,
        fill: npt.NDArray[np.uint8],
        mean32: npt.NDArray[np.float32],
        inv_std32: npt.NDArray[np.float32],
        dtype: torch.dtype,
        channels_last: bool = True,
        num_threads: int | None = None,
    ) -> None:
        height, width, _ = image_shape
        kind = {torch.bfloat16: pixels.BFLOAT16, torch.uint8: pixels.UINT8}.get(dtype, pixels.FLOAT32)
        self._shape, self._dtype, self._kind, self._channels_last = (height, width), dtype, kind, channels_last
        rows = [
            np.tile(values, width)[None] if channels_last else np.repeat(values[:, None], width, axis=1)
            for values in (mean32, inv_std32)
        ]
        self._settings = ((height, width), augment.crop_padding, augment.padding_mode == "reflect", fill, *rows, kind)
        self._rotates = augment.rotate_degrees > 0
        self._num_threads = num_threads or torch.get_num_threads()
        self._pool = Threads(self._num_threads, "augment")
        self._memory = Recycler()
        self._no_outs = [np.empty((1, 0), kind) for kind in WRITTEN]
        self._kernel = load()

    def columns(self, params: AugmentParams) -> tuple[Any, ...]:
        """The columns of a checked table, as the kernel takes them: views of it, and the terms of the rotations."""
        if len(params) == 1:
            params = np.repeat(params, 2)  # Numba would take a column of one for another type, and compile anew
        return _columns(params, self._rotates)

    def begin(
        self,
        data: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        columns: tuple[Any, ...],
    ) -> Pending:
        """Begin to make images `rows` of `data`, each at its offset, with the params of the same rows.

        columns: those of a table with a row for each offset. The result is a new tensor (B, 3, H, W), in
        channels_last memory or contiguous, of the dtype that was asked for; nothing given here is written to.
        """
        num, (height, width) = len(rows), self._shape
        kind = WRITTEN[self._kind]
        out = self._memory.empty(num * height * width * 3 * kind().itemsize).view(kind)
        outs = [*self._no_outs]
        outs[self._kind] = out.reshape(num, height * width * 3)
        data = data.view()
        data.flags.writeable = False  # one type for the compiler, whoever owns the bytes
        num_slices = max(1, min(self._num_threads, num // LEAST_IN_SLICE))
        bounds = [num * i // num_slices for i in range(num_slices + 1)]
        arguments = (data, offsets, rows, *columns, *self._settings, tuple(outs))
        parts = [self._pool.submit(self._kernel, *arguments, a, b) for a, b in pairwise(bounds)]
        return Pending(self._shaped(out), parts)

    def _shaped(self, out: npt.NDArray[Any]) -> torch.Tensor:
        # views are taken in NumPy: torch gives the GIL away for each of its own, and waits to get it back
        height, width = self._shape
        num = len(out) // (height * width * 3)
        if self._channels_last:
            out = out.reshape(num, height, width, 3).transpose(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)
        else:
            out = out.reshape(num, 3, height, width)
        tensor = torch.from_numpy(out)
        return tensor.view(torch.bfloat16) if self._kind == pixels.BFLOAT16 else tensor

    def __call__(self, *arguments: Any) -> torch.Tensor:
        """`begin`, and wait."""
        return self.finished(self.begin(*arguments))

    def finished(self, pending: Pending) -> torch.Tensor:
        """The tensor, when it is made; float16 is rounded from float32 here."""
        images = pending.result()
        return images.to(torch.float16) if self._dtype == torch.float16 else images

    def close(self) -> None:
        """End the threads."""
        self._pool.close()
