"""The choices applied on a CPU in one pass over the pixels, compiled by Numba: uint8 in, normalised floats out.

An image goes row by row through a buffer of one row, which stays in the nearest cache: copied, turned round, cut out,
normalised, written. The slow twin is `tests/reference.py`; `torch_ops` does the same with torch. The only importer of
Numba.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from fastcifar.config import AugmentConfig

log = logging.getLogger(__name__)
FLOAT32, BFLOAT16, UINT8 = 0, 1, 2  # what the kernel writes


def _augment_slice(
    data: Any,  # (size,) uint8, read-only: images of H*W*3 bytes
    offsets: Any,  # (N,) int64: where each image of the dataset begins
    rows: Any,  # (B,) int64: the images of this batch
    crop_y: Any,  # (N,) int16 each, and so on: the columns of the table of choices
    crop_x: Any,
    flip: Any,
    cutout_y: Any,
    cutout_x: Any,
    size: Any,  # (H, W, padding, cutout_size)
    reflect: bool,
    fill: Any,  # (3,) uint8
    mean: Any,  # (W * 3,) float32: the channels' values, repeated along a row
    inv_std: Any,
    kind: int,
    floats: Any,  # (B, H, W * 3) float32, uint16 and uint8: `kind` names the one that is written
    halves: Any,
    bytes_: Any,
    first: int,
    last: int,
) -> None:
    """Images first .. last - 1 of a batch. The table has been checked, the offsets too: no bound is looked at here."""
    height, width, padding, cutout_size = size
    length = width * 3
    line = np.empty(length, np.uint8)
    real = np.empty(length, np.float32)
    words = real.view(np.uint32)
    for i in range(first, last):
        row = rows[i]
        left, top = crop_x[row] - padding, crop_y[row] - padding
        hole_y, hole_x = cutout_y[row], cutout_x[row]
        image = data[offsets[row] : offsets[row] + height * length]
        for y in range(height):
            source_y = y + top
            if reflect:
                source_y = (height - 1) - abs((height - 1) - abs(source_y))
            if source_y < 0 or source_y >= height:
                line[:] = 0
            else:
                source = image[source_y * length : (source_y + 1) * length]
                if left == 0:
                    line[:] = source
                elif reflect:
                    for x in range(width):
                        source_x = (width - 1) - abs((width - 1) - abs(x + left))
                        for channel in range(3):
                            line[x * 3 + channel] = source[source_x * 3 + channel]
                elif left >= width or left <= -width:
                    line[:] = 0
                elif left > 0:
                    line[: length - left * 3] = source[left * 3 :]
                    line[length - left * 3 :] = 0
                else:
                    line[: -left * 3] = 0
                    line[-left * 3 :] = source[: length + left * 3]
            if flip[row]:
                for x in range(width // 2):
                    other = width - 1 - x
                    for channel in range(3):
                        kept = line[x * 3 + channel]
                        line[x * 3 + channel] = line[other * 3 + channel]
                        line[other * 3 + channel] = kept
            if hole_y <= y < hole_y + cutout_size:
                for x in range(max(hole_x, 0), min(hole_x + cutout_size, width)):
                    for channel in range(3):
                        line[x * 3 + channel] = fill[channel]
            if kind == UINT8:
                bytes_[i, y, :] = line
            elif kind == FLOAT32:
                out = floats[i, y]
                for k in range(length):
                    out[k] = (np.float32(line[k]) - mean[k]) * inv_std[k]
            else:
                half = halves[i, y]
                for k in range(length):
                    real[k] = (np.float32(line[k]) - mean[k]) * inv_std[k]
                for k in range(length):  # to the nearest bfloat16, half to even
                    word = words[k]
                    odd = (word >> np.uint32(16)) & np.uint32(1)
                    half[k] = np.uint16((word + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@functools.cache  # once a process: a dispatcher of Numba's does not take being collected well
def _compile() -> Callable[..., None]:
    """The kernel, compiled or read from Numba's cache on disk at its first call."""
    try:
        return numba.njit(nogil=True, cache=True)(_augment_slice)
    except RuntimeError as error:  # no folder for the cache can be written
        log.info("the CPU kernel is compiled anew in each process: %s", error)
        return numba.njit(nogil=True)(_augment_slice)


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
        num_threads: int | None = None,
    ) -> None:
        height, width, _ = image_shape
        self._size = (height, width, augment.crop_padding, augment.cutout_size)
        self._reflect = augment.crop_mode == "reflect"
        self._fill = fill
        self._mean, self._inv_std = np.tile(mean32, width), np.tile(inv_std32, width)
        self._dtype = dtype
        self._num_threads = num_threads or torch.get_num_threads()
        # threads of our own: Numba's parallel layers abort beside a second loader and die after a fork
        self._pool = ThreadPoolExecutor(max(self._num_threads - 1, 1), thread_name_prefix="fastcifar-augment")
        self._kernel = _compile()

    def __call__(
        self,
        data: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        columns: dict[str, npt.NDArray[Any]],
    ) -> torch.Tensor:
        """Images `rows` of `data`, each at its offset, with the choices of the same rows: a new tensor
        (B, 3, H, W) in channels_last memory, of the dtype that was asked for.

        columns: those of a checked table (see `draws.columns_of`), with a row for each offset.
        """
        num, (height, width, _, _) = len(rows), self._size
        out = torch.empty((num, height, width, 3), dtype=_WRITTEN.get(self._dtype, torch.float32))
        views = [np.empty((0, height, width * 3), dtype) for dtype in (np.float32, np.uint16, np.uint8)]
        kind = {torch.bfloat16: BFLOAT16, torch.uint8: UINT8}.get(self._dtype, FLOAT32)
        views[kind] = out.numpy().reshape(num, height, width * 3)
        data = data.view()
        data.flags.writeable = False  # one type for the compiler, whoever owns the bytes
        table = (columns["crop_y"], columns["crop_x"], columns["flip"], columns["cutout_y"], columns["cutout_x"])
        settings = (self._size, self._reflect, self._fill, self._mean, self._inv_std, kind)

        def work(first: int, last: int) -> None:
            self._kernel(data, offsets, rows, *table, *settings, *views, first, last)

        bounds = [num * i // self._num_threads for i in range(self._num_threads + 1)]
        others = [self._pool.submit(work, a, b) for a, b in pairwise(bounds[1:])]
        work(bounds[0], bounds[1])
        for other in others:
            other.result()
        if self._dtype == torch.bfloat16:
            out = out.view(torch.bfloat16)
        # (N, H, W, 3) -> (N, 3, H, W), channels_last memory
        return out.permute(0, 3, 1, 2).to(self._dtype)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


_WRITTEN = {torch.bfloat16: torch.uint16, torch.uint8: torch.uint8}
