"""Images that stay in the file: a thread reads them ahead, JPEG images with FFCV's decoder (`numba_jpeg`). Raw images
need no FFCV.

FFCV's `Loader` does not check the file, does not report errors of its threads, and compiles its operations again for
each loader; its random operations follow no seed. Here the file is what `fastcifar.data.beton` has checked, and the
kernels are ours. A JPEG image that libjpeg warns about stops the epoch; one with changed bytes that still decode is
only detected by the SHA-256 of the manifest.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import make_kernel, numba_module
from fastcifar.augment.params import AugmentParams
from fastcifar.data.beton import Beton, images_at
from fastcifar.errors import DataError, FastcifarError
from fastcifar.loaders.base import SHARE_OF_MEMORY, Indices, Loader, LoaderConfig, free_memory
from fastcifar.loaders.batch import Batch
from fastcifar.loaders.page_memory import PageWindow, WholeFile

BATCHES_AHEAD = 3
POLL_S = 0.1


class FfcvLoader(Loader):
    """Images stay in the file; a thread decodes them ahead."""

    name = "ffcv"

    def __init__(self, beton: Beton, config: LoaderConfig, indices: Indices) -> None:
        super().__init__(beton, config, indices)
        self._decode = jpeg_decoder() if beton.encoding == "jpeg" else None
        self._kernel = make_kernel(config.unmixed)
        positions = np.arange(min(config.batch_size // config.world_size, len(beton)))
        arrays = (positions * int(np.prod(beton.image_shape)), positions)
        self._offsets, self._positions = map(self._kernel.to_device, arrays)

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        plan = self.plan(epoch)
        batches = [(slots, plan.images_in(slots)) for slots in plan.batches[start:]]
        self.beton.check_unchanged()
        if not batches:
            return
        device = self.config.device
        num_yet_to_load = self.config.world_size - self.config.rank
        stream = _Epoch(self.beton, [indices for _, indices in batches], num_yet_to_load, self._decode)
        try:
            for slots, indices in batches:
                wait, mix = self.mixed(self._launch(stream.get(), plan.params[slots]), plan, slots)
                images, labels = wait(), torch.from_numpy(self.beton.labels[indices]).to(device)
                yield self.make_batch(images, labels, torch.from_numpy(indices.copy()).to(device), mix)
        finally:
            stream.stop()
            self.beton.check_unchanged()

    def _launch(self, images: npt.NDArray[np.uint8], params: AugmentParams) -> Callable[[], torch.Tensor]:
        """(B, H, W, 3) uint8 -> (B, 3, H, W), a new tensor; row i of `params` is for image i."""
        kernel, num, device = self._kernel, len(images), self.config.device
        data: Any = images.reshape(-1)
        if device.type == "cpu":
            data = kernel.to_device(data)
        else:
            staged = torch.empty(images.size, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
            staged.numpy()[:] = data  # the copy to the device runs while the next batch is decoded
            data = staged.to(device, non_blocking=True)
        return kernel.launch(data, self._offsets[:num], self._positions[:num], kernel.load_params(params))

    def close(self) -> None:
        super().close()
        self._kernel.close()


def jpeg_decoder() -> Callable[..., int]:
    """`fastcifar.loaders.numba_jpeg.decode_slice`, compiled. Raises FastcifarError, MissingExtraError."""
    try:
        numba_module()
    except ImportError as error:
        raise FastcifarError(f"JPEG images cannot be decoded ({error})") from error
    from fastcifar.loaders.numba_jpeg import load

    return load()


class _Epoch(threading.Thread):
    """Decodes the next batches. An error in it reaches the caller of `get`; `stop` ends it, in whatever state it is."""

    def __init__(
        self, beton: Beton, batches: list[Indices], num_processes: int, decode: Callable[..., int] | None
    ) -> None:
        """num_processes: how many share the free memory."""
        super().__init__(daemon=True)
        self._beton, self._batches, self._decode = beton, batches, decode
        self._pages: WholeFile | PageWindow
        if beton.in_memory:
            self._pages = WholeFile(beton)
        else:
            self._pages = PageWindow(beton, batches, int(SHARE_OF_MEMORY * free_memory()) // num_processes)
        self._ready: queue.Queue[Any] = queue.Queue(BATCHES_AHEAD)
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with self._pages:
                for number, indices in enumerate(self._batches):
                    if not self._put(self.images(number, indices)):
                        return
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self._put(error)

    def images(self, number: int, indices: Indices) -> npt.NDArray[np.uint8]:
        """Batch `number`, (B, H, W, 3) uint8, which has these images."""
        beton, starts = self._beton, self._pages.start_batch(number, indices)
        if self._decode is None:
            return images_at(self._pages.memory, starts, beton.image_shape)
        memory = self._pages.memory.view()
        memory.flags.writeable = False  # as it was compiled for
        images = np.empty((len(indices), *beton.image_shape), np.uint8)
        failed = self._decode(memory, starts, beton.sizes[indices], images)
        if failed >= 0:
            raise DataError(f"{beton.path}: image {indices[failed]} is a truncated or corrupt JPEG file; convert again")
        return images

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return not self._stopped.is_set()
            except queue.Full:
                pass
        return False

    def get(self) -> npt.NDArray[np.uint8]:
        """The images of the next batch, (B, H, W, 3) uint8."""
        item = self._ready.get()
        if isinstance(item, FastcifarError):
            raise item
        if isinstance(item, BaseException):
            raise FastcifarError(f"{self._beton.path}: reading failed ({type(item).__name__}: {item})") from item
        images: npt.NDArray[np.uint8] = item
        return images

    def stop(self) -> None:
        self._stopped.set()
        self.join()
