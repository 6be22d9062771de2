"""The memory that images are read from: the whole file, or only the pages that the next batches need."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt

from fastcifar.data.beton import Beton
from fastcifar.errors import UsageError
from fastcifar.loaders.base import Indices

READ_AHEAD = 1  # pages
NUM_READERS = 2


class WholeFile(nullcontext[None]):
    """A file that is in memory."""

    def __init__(self, beton: Beton) -> None:
        super().__init__()
        self.memory, self._offsets = beton.read_all(), beton.offsets

    def start_batch(self, batch: int, indices: Indices) -> npt.NDArray[np.int64]:
        """Where in `memory` each image of the batch begins, (B,) int64."""
        return self._offsets[indices]


class PageWindow:
    """Pages are read shortly before the first batch that needs them, and released after the last one."""

    def __init__(self, beton: Beton, batches: list[Indices], limit: int) -> None:
        """limit: bytes that pages may take."""
        self._beton, page_size = beton, beton.page_size
        page_of_image = beton.pages[np.concatenate(batches)]
        batch_of_image = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        pages, begins = np.unique(page_of_image, return_index=True)
        ends = len(page_of_image) - 1 - np.unique(page_of_image[::-1], return_index=True)[1]
        first, last = batch_of_image[begins], batch_of_image[ends]
        in_order = np.argsort(first, kind="stable")
        self._waiting = [int(page) for page in pages[in_order]][::-1]  # the next one at the end
        self._first = dict(zip(pages.tolist(), first.tolist(), strict=True))
        self._ending: dict[int, list[int]] = {}
        for page, batch in zip(pages.tolist(), last.tolist(), strict=True):
            self._ending.setdefault(batch, []).append(page)
        in_use = np.cumsum(
            np.bincount(first, minlength=len(batches)) - np.bincount(last + 1, minlength=len(batches) + 1)[:-1]
        )
        num_slots = min(int(in_use.max()) + READ_AHEAD, len(pages))
        if num_slots * page_size > limit:
            raise UsageError(
                f"{beton.path}: {num_slots} pages, {num_slots * page_size >> 20} MiB, would be in memory at once; "
                f"expected at most {limit >> 20} MiB; use --shuffle window, or free memory"
            )
        self.memory = np.empty(num_slots * page_size, dtype=np.uint8)
        self._slots = np.zeros(int(pages.max(initial=-1)) + 1, dtype=np.int64)
        self._free = list(range(num_slots))
        self._reads: dict[int, Future[None]] = {}

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="fastcifar-pages")

    def start_batch(self, batch: int, indices: Indices) -> npt.NDArray[np.int64]:
        """Wait until the pages of the batch are in memory; start to read the next ones.

        Returns where in `memory` each of its images begins, (B,) int64.
        """
        for page in self._ending.pop(batch - 1, []):
            self._free.append(int(self._slots[page]))
        while self._free and self._waiting:
            page, slot = self._waiting.pop(), self._free.pop()
            self._slots[page] = slot
            self._reads[page] = self._pool.submit(self._read, page, slot)
        for page in [page for page in self._reads if self._first[page] <= batch]:
            self._reads.pop(page).result()
        pages, begins = np.divmod(self._beton.offsets[indices], self._beton.page_size)
        return self._slots[pages] * self._beton.page_size + begins

    def _read(self, page: int, slot: int) -> None:
        size, begin = self._beton.page_size, page * self._beton.page_size
        num = min(size, self._beton.num_bytes - begin)
        self._beton.file.read_into(self.memory[slot * size : slot * size + num], begin)

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
