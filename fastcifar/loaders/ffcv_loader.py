"""FFCV's `Loader` as a source of uint8 batches, augmented by our kernels. The only importer of FFCV.

FFCV only decodes: its random operations follow no seed. Its reader trusts the file, so it gets only what
`fastcifar.data.beton` has checked. A JPEG image that libjpeg warns about stops the epoch; one with changed bytes that
still decode is only detected by the SHA-256 of the manifest.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import make_kernel
from fastcifar.augment.params import AugmentParams
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError, FastcifarError, MissingExtraError, describe
from fastcifar.loaders.base import SHARE_OF_MEMORY, Indices, Loader, LoaderConfig, free_memory
from fastcifar.loaders.batch import Batch

NUM_THREADS = torch.get_num_threads()
try:
    # importing FFCV fills a typed dictionary, which Numba compiles for 2.5 s; compiled code never reads it
    with patch("numba.typed.Dict", dict):
        import ffcv.loader
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import imdecode
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline.compiler import Compiler

    from fastcifar.loaders.ffcv_pages import patched_page_manager
except ImportError as error:
    raise MissingExtraError("the ffcv loader", "ffcv", str(error)) from error
except Exception as error:  # Numba, for one of its environment variables
    reason = describe(error)
    raise FastcifarError(f"the ffcv loader cannot be used: {reason}; use --loader resident") from error
finally:
    torch.set_num_threads(NUM_THREADS)  # importing FFCV sets it to 1

POLL_S = 0.1


class UndecodableError(Exception):
    """Its argument is the index of an image that libjpeg cannot decode without warnings."""


class JpegDecoder(SimpleRGBImageDecoder):  # type: ignore[misc] # FFCV has no types
    """FFCV's decoder ignores failures, and returns the image that was in the slot before."""

    def generate_code(self) -> Callable[..., Any]:
        read, decompress = self.memory_read, Compiler.compile(imdecode)

        def decode(indices: Any, out: Any, records: Any, state: Any) -> Any:
            for position in range(len(indices)):
                record = records[indices[position]]
                height, width = record["height"], record["width"]
                encoded = read(record["data_ptr"], state)
                size, crop, flips = (height, width, height, width), (0, 0, 1, 1), (False, False)
                if decompress(encoded, out[position], *size, *crop, *flips) != 0:  # including libjpeg's warnings
                    raise UndecodableError(indices[position])
            return out[: len(indices)]

        return decode


class FfcvLoader(Loader):
    """Images stay in the file; FFCV's thread decodes them ahead, in our order."""

    name = "ffcv"

    def __init__(self, beton: Beton, config: LoaderConfig, indices: Indices) -> None:
        super().__init__(beton, config, indices)
        num_threads, fields = torch.get_num_threads(), beton.fields
        decoder = JpegDecoder() if beton.encoding == "jpeg" else SimpleRGBImageDecoder()
        try:
            # One worker: its operations are then compiled without Numba's thread pools, which abort when two loaders
            # run, and deadlock after a fork.
            with patched_page_manager(beton, int(SHARE_OF_MEMORY * free_memory())):
                self._stream = ffcv.loader.Loader(
                    f"/dev/fd/{beton.file.descriptor}",  # the open file itself, even if it is renamed or deleted
                    config.batch_size // config.world_size,
                    num_workers=1,
                    os_cache=False,
                    drop_last=False,
                    pipelines={fields.image: [decoder], **dict.fromkeys((fields.label, *fields.unused))},
                )
        finally:
            torch.set_num_threads(num_threads)  # FFCV sets it to its number of workers
        self._kernel = make_kernel(config.unmixed)
        positions = np.arange(config.batch_size // config.world_size)
        arrays = (positions * int(np.prod(beton.image_shape)), positions)
        self._offsets, self._positions = map(self._kernel.to_device, arrays)

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        plan = self.plan(epoch)
        batches = [(slots, plan.images_in(slots)) for slots in plan.batches[start:]]
        self.beton.check_unchanged()
        if not batches:
            return
        device = self.config.device
        with torch.device("cpu"):  # whatever torch.set_default_device says
            order = np.concatenate([indices for _, indices in batches])
            stream = _Epoch(self._stream, order)  # `Loader.__iter__` would truncate the order
        try:
            for slots, indices in batches:
                wait, mix = self.mixed(self._launch(stream.get(), plan.params[slots]), plan, slots)
                images, labels = wait(), torch.from_numpy(self.beton.labels[indices]).to(device)
                yield self.make_batch(images, labels, torch.from_numpy(indices.copy()).to(device), mix)
        except UndecodableError as error:
            raise DataError(
                f"{self.beton.path}: image {error.args[0]} is a truncated or corrupt JPEG file; convert again"
            ) from error
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
            staged = torch.empty(images.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
            staged.numpy()[:] = data  # FFCV overwrites its ring during the copy to the device
            data = staged.to(device, non_blocking=True)
        return kernel.launch(data, self._offsets[:num], self._positions[:num], kernel.load_params(params))

    def close(self) -> None:
        super().close()
        self._kernel.close()


class _Epoch(EpochIterator):  # type: ignore[misc] # FFCV has no types
    """FFCV's thread, but errors reach the caller and `stop` ends it: FFCV's dies silently or outlives an epoch."""

    def run(self) -> None:
        try:
            for number, indices in enumerate(self.iter_ixes):
                slot = number % (self.loader.batches_ahead + 2)
                if not self._put(self.run_pipeline(number, indices, slot, None)):
                    return
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=POLL_S)
                return not self.terminate_event.is_set()
            except queue.Full:
                pass
        return False

    def get(self) -> npt.NDArray[np.uint8]:
        """The images of the next batch, (N, H, W, 3) uint8: a view of FFCV's ring, valid until the next call."""
        item = self.output_queue.get()
        if isinstance(item, (FastcifarError, UndecodableError)):
            raise item
        if isinstance(item, BaseException):
            raise FastcifarError(f"FFCV failed while reading ({type(item).__name__}: {item})") from item
        images: npt.NDArray[np.uint8] = item[0]
        return images

    def close(self) -> None:
        """FFCV's own cleanup, unless the start failed: then there is nothing to close."""
        if hasattr(self, "memory_context"):
            super().close()

    def stop(self) -> None:
        """End the thread, in whatever state it is."""
        self.terminate_event.set()
        self.join()
        self.close()
        self.closed = True
