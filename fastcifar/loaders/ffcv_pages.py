"""The memory that FFCV decodes from: pages of a beton, all at once or only those that the next batches need.

FFCV's own managers are not used: the one for files in memory marks types that Numba shares across the process as
read-only, so that other kernels no longer compile; the one for large files ignores short reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
from ffcv.loader import loader as ffcv_loader
from ffcv.memory_managers.process_cache.manager import ProcessCacheManager

from fastcifar.data.beton import Beton
from fastcifar.errors import UsageError
from fastcifar.loaders.base import Indices

READ_AHEAD = 1  # pages
NUM_READERS = 2
_PATCHING = threading.Lock()


class Pages(ProcessCacheManager):  # type: ignore[misc] # FFCV has no types
    """Gives `ffcv.loader.EpochIterator` the memory of an epoch. FFCV compiles the reader of its own manager."""

    def __init__(self, reader: Any, beton: Beton, limit: int) -> None:
        # without `super().__init__`, which creates a dictionary and a set per image
        self.reader, self.beton, self._limit = reader, beton, limit  # limit: bytes that pages may take
        in_order = np.argsort(beton.offsets, kind="stable")
        self.ptrs, self.sizes = (values[in_order].astype(np.uint64) for values in (beton.offsets, beton.sizes))
        self._all: npt.NDArray[np.uint8] | None = None
        num_pages = int(beton.pages.max()) + 1
        if beton.in_memory and num_pages * beton.page_size <= beton.num_bytes:
            self._all = beton.read_all()[: num_pages * beton.page_size].reshape(num_pages, beton.page_size)

    def schedule_epoch(self, batches: list[Indices]) -> _AllPages | _PageWindow:
        if self._all is not None:
            return _AllPages(self, self._all)
        return _PageWindow(self, batches, self._limit)


@contextmanager
def patched_page_manager(beton: Beton, limit: int) -> Iterator[None]:
    """Within the context, an `ffcv.loader.Loader` with os_cache=False gets its memory from `Pages`."""
    with _PATCHING:
        original = ffcv_loader.ProcessCacheManager
        ffcv_loader.ProcessCacheManager = lambda reader: Pages(reader, beton, limit)
        try:
            yield
        finally:
            ffcv_loader.ProcessCacheManager = original


class _AllPages(nullcontext[None]):
    """All pages are in memory."""

    def __init__(self, manager: Pages, memory: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self.state = (memory, manager.ptrs, manager.sizes, np.arange(len(memory), dtype=np.uint32))

    def start_batch(self, batch: int) -> None:
        pass


class _PageWindow:
    """Pages are read shortly before the first batch that needs them, and released after the last one."""

    def __init__(self, manager: Pages, batches: list[Indices], limit: int) -> None:
        beton = manager.beton
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
                f"{limit >> 20} MiB are free; use --shuffle window"
            )
        self._memory = np.empty((num_slots, page_size), dtype=np.uint8)
        self._slots = np.zeros(int(pages.max()) + 1, dtype=np.uint32)
        self._free = list(range(num_slots))
        self._reads: dict[int, Future[None]] = {}
        self.state = (self._memory, manager.ptrs, manager.sizes, self._slots)

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="fastcifar-pages")

    def start_batch(self, batch: int) -> None:
        """Wait until the pages of the batch are in memory; start to read the next ones."""
        for page in self._ending.pop(batch - 1, []):
            self._free.append(int(self._slots[page]))
        while self._free and self._waiting:
            page, slot = self._waiting.pop(), self._free.pop()
            self._slots[page] = slot
            self._reads[page] = self._pool.submit(self._read, page, slot)
        for page in [page for page in self._reads if self._first[page] <= batch]:
            self._reads.pop(page).result()

    def _read(self, page: int, slot: int) -> None:
        begin = page * self._beton.page_size
        self._beton.file.read_into(self._memory[slot][: self._beton.num_bytes - begin], begin)

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
