"""FFCV's `Loader` as a stream of uint8 batches, augmented here. The only importer of FFCV.

FFCV decodes; what it would do at random (its operations follow no seed) is done by our params instead. Nothing
reaches it that `fastcifar.data.beton` has not checked: its own reader trusts the file. A JPEG image that libjpeg
complains of stops the epoch; one whose bytes were changed for others that decode too is found by the manifest's
SHA-256 alone.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.params import AugmentParams
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError, FastcifarError, MissingExtraError
from fastcifar.loaders.base import Batch, Indices, Loader, LoaderConfig
from fastcifar.loaders.memory import SHARE_OF_MEMORY, free_memory

NUM_THREADS = torch.get_num_threads()
try:
    import ffcv.loader
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import imdecode
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline.compiler import Compiler

    from fastcifar.loaders.ffcv_pages import instead_of_theirs
except ImportError as error:
    raise MissingExtraError("the ffcv loader", "ffcv", str(error)) from error
except Exception as error:  # as Numba's, for one of its environment variables
    raise FastcifarError(f"the ffcv loader cannot be used: {describe(error)}; use --loader resident") from error
finally:
    torch.set_num_threads(NUM_THREADS)  # importing FFCV sets it to 1

POLL_S = 0.1


class UndecodableError(Exception):
    """Its argument is the row of an image that is no whole JPEG file."""


class JpegDecoder(SimpleRGBImageDecoder):  # type: ignore[misc] # FFCV has no types
    """FFCV's decoder takes no notice of a failure, and hands out the image that lay in the slot before."""

    def generate_code(self) -> Callable[..., Any]:
        read, decompress = self.memory_read, Compiler.compile(imdecode)

        def decode(indices: Any, out: Any, records: Any, state: Any) -> Any:
            for place in range(len(indices)):
                record = records[indices[place]]
                height, width = record["height"], record["width"]
                encoded = read(record["data_ptr"], state)
                size, whole, as_it_is = (height, width, height, width), (0, 0, 1, 1), (False, False)
                if decompress(encoded, out[place], *size, *whole, *as_it_is) != 0:  # libjpeg's warnings too
                    raise UndecodableError(indices[place])
            return out[: len(indices)]

        return decode


class FfcvLoader(Loader):
    """Images stay in the file; FFCV's thread decodes ahead in our order."""

    name = "ffcv"
    reads_jpeg = True

    def __init__(
        self, beton: Beton, config: LoaderConfig, indices: Indices, mean: npt.ArrayLike, std: npt.ArrayLike
    ) -> None:
        super().__init__(beton, config, indices, mean, std)
        num_threads = torch.get_num_threads()
        fields = beton.fields
        decoder = JpegDecoder() if beton.encoding == "jpeg" else SimpleRGBImageDecoder()
        try:
            # One worker: its operations are then compiled without Numba's thread pools, which abort the process
            # beside a second loader and die after a fork.
            with instead_of_theirs(beton, int(SHARE_OF_MEMORY * free_memory())):
                self._stream = ffcv.loader.Loader(
                    beton.file.path,
                    config.batch_size // config.world_size,
                    num_workers=1,
                    os_cache=False,
                    drop_last=False,
                    pipelines={fields.image: [decoder], fields.label: [IntDecoder()], **dict.fromkeys(fields.unused)},
                )
        finally:
            torch.set_num_threads(num_threads)  # FFCV sets it to its number of workers
        self._on_cpu = self.cpu_kernel()
        if self._on_cpu is None:
            self._on_device = self.device_kernel()

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        batches, table = self.plan(epoch)
        batches = batches[start:]
        self.beton.check_unchanged()
        if not batches:
            return
        with torch.device("cpu"):  # whatever torch.set_default_device says
            stream = _Epoch(self._stream, np.concatenate(batches))
        try:
            for batch_indices in batches:
                images, labels = stream.get()
                device = self.config.device
                indices = torch.from_numpy(batch_indices.copy()).to(device)
                delivered = self._augmented(images, table[batch_indices])
                yield Batch(delivered, torch.from_numpy(labels).to(device, copy=True), indices)
        except UndecodableError as error:
            raise DataError(
                f"{self.beton.path}: image {error.args[0]} is damaged: it is no whole JPEG file; convert again"
            ) from error
        finally:
            stream.stop()
            self.beton.check_unchanged()

    def _augmented(self, images: npt.NDArray[np.uint8], params: AugmentParams) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W), new, in channels_last memory; row i of `params` is for image i."""
        which = np.arange(len(images))
        offsets = which * images[0].size
        if self._on_cpu is not None:
            columns = self._on_cpu.columns(params)
            return self._on_cpu.finished(self._on_cpu.begin(images.reshape(-1), offsets, which, columns))
        device = self.config.device
        staged = torch.empty(images.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        staged.numpy()[:] = images.reshape(-1)  # FFCV writes to its ring again while the copy is under way
        begins, indices = (torch.from_numpy(array).to(device) for array in (offsets, which))
        return self._on_device(staged.to(device, non_blocking=True), begins, indices, self._on_device.columns(params))

    def close(self) -> None:
        super().close()
        if self._on_cpu is not None:
            self._on_cpu.close()


class _Epoch(EpochIterator):  # type: ignore[misc] # FFCV has no types
    """FFCV's thread, with an end that is told: its own dies in silence at an error, and outlives an early exit."""

    def __init__(self, loader: Any, indices: Indices) -> None:
        super().__init__(loader, indices)  # takes the order as it is; through `Loader.__iter__` it would be cut

    def run(self) -> None:
        try:
            for number, indices in enumerate(self.iter_ixes):
                slot = number % (self.loader.batches_ahead + 2)
                if not self._put(self.run_pipeline(number, indices, slot, None)):
                    return
        except BaseException as error:  # noqa: BLE001 (handed to the caller, whose thread raises it)
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=POLL_S)
                return not self.terminate_event.is_set()
            except queue.Full:
                pass
        return False

    def get(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The next batch: (N, H, W, 3) uint8 and (N,) int64, views of FFCV's ring: copy them before the next call."""
        while True:
            try:
                item = self.output_queue.get(timeout=POLL_S)
                break
            except queue.Empty:
                if not self.is_alive() and self.output_queue.empty():
                    raise FastcifarError("FFCV's loader thread ended without a word; try --loader resident") from None
        if isinstance(item, (FastcifarError, UndecodableError)):
            raise item
        if isinstance(item, BaseException):
            raise FastcifarError(f"FFCV failed while reading ({type(item).__name__}: {item})") from item
        images, labels = item if item[0].ndim == 4 else item[::-1]  # in the order of the file's fields
        return images, labels.reshape(-1)

    def close(self) -> None:
        """What FFCV does at the end; not after a failed start, which leaves nothing to close."""
        if hasattr(self, "memory_context"):
            super().close()

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self.terminate_event.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self.output_queue.get_nowait()  # room for the batch that the thread waits to hand over
        self.join()
        self.close()
        self.closed = True
