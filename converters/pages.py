"""The parts of a beton as bytes: pages of images, header, records, allocation table."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import numpy as np
import numpy.typing as npt

from fastcifar.converters.sources import Labels
from fastcifar.data import tables
from fastcifar.data.fields import FIELD, IMAGE_FIELD, INT_FIELD
from fastcifar.data.statistics import channel_histogram


def pages_start(num_images: int) -> int:
    """Where the pages begin: at the first multiple of their size after the records."""
    tables_end = tables.TABLES_START + num_images * tables.RECORD.itemsize
    return -(-tables_end // tables.PAGE_SIZE) * tables.PAGE_SIZE


class PageWriter:
    """Appends images to the pages of a beton: none crosses the end of a page, and the rest of a page is zeros."""

    def __init__(self, out: IO[bytes], advance: Callable[[int], None], histogram: npt.NDArray[np.int64] | None) -> None:
        """histogram: (3, 256), to which the values of raw pixels are added."""
        self._out, self._advance, self._histogram = out, advance, histogram
        self._page = np.zeros(tables.PAGE_SIZE, dtype=np.uint8)
        self._used = self._num_images = 0

    def append(self, stored: npt.NDArray[np.uint8]) -> int:
        """The position of `stored`, (size,) uint8, in the file."""
        if self._used + len(stored) > len(self._page):
            self.flush()
        start = self._used
        self._used, self._num_images = start + len(stored), self._num_images + 1
        self._page[start : self._used] = stored
        return self._out.tell() + start

    def flush(self) -> None:
        """Write the page, and begin the next one."""
        self._page[self._used :] = 0
        self._out.write(self._page.data)
        if self._histogram is not None:
            self._histogram += channel_histogram(self._page[: self._used])
        self._advance(self._num_images)
        self._used = self._num_images = 0


def write_tables(
    out: IO[bytes], shape: tuple[int, int, int], is_raw: bool, pointers: Labels, sizes: Labels, labels: Labels
) -> None:
    """Write the allocation table at the end of the file `out`, and header, fields and records at its beginning.

    pointers, sizes, labels: of each image, (N,) int64.
    """
    num_images, table_start = len(labels), out.tell()
    allocations = np.zeros(num_images, dtype=tables.ALLOCATION)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = np.arange(num_images), pointers, sizes
    out.write(allocations.tobytes())
    header = np.zeros(1, dtype=tables.HEADER)
    header["version"], header["num_fields"], header["page_size"] = tables.VERSION, 2, tables.PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = num_images, table_start
    fields = np.zeros(2, dtype=FIELD)
    fields["type_id"] = IMAGE_FIELD, INT_FIELD
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = list(name)
    records = np.zeros(num_images, dtype=tables.RECORD)
    records["mode"] = tables.RAW if is_raw else tables.JPEG
    records["height"], records["width"], _ = shape
    records["data_ptr"], records["label"] = pointers, labels
    out.seek(0)
    out.write(header.tobytes() + fields.tobytes() + records.tobytes())
