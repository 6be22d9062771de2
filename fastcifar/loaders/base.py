"""What the loaders have in common: their settings, and the order and parameters of each epoch."""

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import KernelConfig
from fastcifar.augment.params import AugmentParams, sample_params
from fastcifar.config import MAX_SEED, AugmentConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError, UsageError, one_line
from fastcifar.io.checks import require_bool, require_int
from fastcifar.loaders.batch import Batch as Batch
from fastcifar.loaders.dataloader_compat import Conventions
from fastcifar.loaders.order import order
from fastcifar.system import memory
from fastcifar.system.thread_pool import Threads

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]
MIN_STD = 1e-6  # of values 0..255; that of a beton in which one byte differs is larger; 1 / 1e-39 overflows float32
MAX_DARK = 4.0  # mean and std of dark images, 0..255: with them a mean or std below 1 is not suspicious
SHARE_OF_MEMORY = 0.7  # of the free memory: what a dataset may take
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What to deliver: the same settings for every loader."""

    augment: AugmentConfig
    batch_size: int
    seed: int = 0
    shuffle: str = "full"
    drop_last: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    rank: int = 0
    world_size: int = 1
    """Processes that share each batch: `batch_size` is that of all together, and `rank` delivers its slice of it."""

    def __post_init__(self) -> None:
        if not isinstance(self.augment, AugmentConfig):
            raise UsageError(f"augment is {self.augment!r}; expected an AugmentConfig")
        object.__setattr__(self, "batch_size", require_int("batch_size", self.batch_size, 1))
        object.__setattr__(self, "seed", require_int("seed", self.seed, 0, MAX_SEED))
        require_int("world_size", self.world_size, 1)
        require_int("rank", self.rank, 0, self.world_size - 1)
        if self.batch_size % self.world_size:
            raise UsageError(
                f"batch_size is {self.batch_size} over {self.world_size} processes; "
                f"expected a multiple of {self.world_size}"
            )
        require_bool("channels_last", self.channels_last)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is {self.dtype}; expected one of: {', '.join(map(str, DTYPES))}")


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that can still be used: of the GPU's memory, or of this machine's."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_memory()


def usable_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises UsageError if torch does not know it, or cannot use it on this machine."""
    try:
        usable = torch.device(device)
        torch.zeros(1, dtype=torch.float32, device=usable).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"device is {str(device)!r} ({reason}); expected an available device, e.g. cpu") from error
    return usable


def _channel_values(name: str, values: npt.ArrayLike, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A mean or std, checked: one value per channel, (3,) float64. The kernels trust it after this. own: that of the
    beton, which distinguishes values on a scale of 0..1 from those of very dark images."""
    shown = one_line(values, 80)
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor that is not on a CPU
        array = np.empty(0)
    if array.shape == (3,) and name == "std" and ((array > 0) & (array < MIN_STD)).any():
        raise UsageError(f"std is {shown}; expected 0 (a constant channel) or at least {MIN_STD:g}")
    if array.shape != (3,) or not ((array >= 0) & (array <= 255)).all():  # false for NaN
        raise UsageError(f"{name} is {shown}; expected three numbers from 0 to 255, for red, green and blue")
    if own.max() <= MAX_DARK:
        return array
    if name == "std" and not array.any():
        raise UsageError(
            f"std is {shown}; expected 0 only for constant channels; leave std out to use that of the data"
        )
    changes_nothing = (array == (0 if name == "mean" else 1)).all()
    if array.max() <= 1 and not changes_nothing:
        raise UsageError(f"{name} is {shown}; expected 0..255; these look like 0..1; multiply by 255")
    return array


def epoch_params(beton: Beton, config: LoaderConfig, epoch: int) -> AugmentParams:
    """The augmentation parameters of an epoch, one row per image of the beton."""
    return sample_params(config.augment, config.seed, epoch, len(beton), beton.image_shape)


def epoch_batches(beton: Beton, config: LoaderConfig, selected: npt.NDArray[np.bool_], epoch: int) -> list[Indices]:
    """The indices of each batch of an epoch, (batch_size // world_size,) int64: the slice of this rank.

    selected: the images that are delivered, (len(beton),) bool.
    """
    everything = order(config.seed, epoch, len(beton), shuffle=config.shuffle, pages=beton.pages)
    indices = everything[selected[everything]]
    starts = range(0, len(indices), config.batch_size)
    batches = [
        np.array_split(indices[start : start + config.batch_size], config.world_size)[config.rank] for start in starts
    ]
    return batches[: len(indices) // config.batch_size] if config.drop_last else batches


def _plan(
    beton: Beton, config: LoaderConfig, selected: npt.NDArray[np.bool_], epoch: int
) -> tuple[list[Indices], AugmentParams]:
    return epoch_batches(beton, config, selected, epoch), epoch_params(beton, config, epoch)


class Loader(Conventions, ABC):
    """Batches of a beton: `epoch(n)` iterates over epoch n; plain iteration over epoch 0, then 1, and so on."""

    name: str
    """Its name for `--loader`."""
    reads_jpeg = False

    def __init__(
        self, beton: Beton, config: LoaderConfig, indices: Indices, mean: npt.ArrayLike, std: npt.ArrayLike
    ) -> None:
        config.augment.check_fits(beton.image_shape)
        if beton.encoding == "jpeg" and config.augment.pipeline is not None:
            raise UsageError(
                f"{beton.path}: has JPEG images, and a pipeline of Albumentations needs raw ones; "
                "convert without --encode jpeg"
            )
        if beton.encoding == "jpeg" and not self.reads_jpeg:
            raise UsageError(f"{beton.path}: has JPEG images, which loader {self.name!r} cannot read; use 'ffcv'")
        if config.augment.pipeline is not None and self.name != "albumentations":
            raise UsageError(f"a pipeline of Albumentations is for loader 'albumentations'; this is {self.name!r}")
        if config.drop_last and len(indices) < config.batch_size:
            raise UsageError(
                f"batch_size is {config.batch_size} and only whole batches are delivered; "
                f"expected at most {len(indices)}, the number of images"
            )
        self.beton, self.config = beton, config
        self.mean = _channel_values("mean", mean, beton.mean)
        self.std = _channel_values("std", std, beton.std)
        self.kernel_config = KernelConfig(
            image_shape=beton.image_shape,
            augment=config.augment,
            mean=self.mean,
            std=self.std,
            dtype=config.dtype,
            channels_last=config.channels_last,
            device=config.device,
        )
        self._selected = np.zeros(len(beton), dtype=bool)
        self._selected[indices] = True
        self._num_selected = len(indices)
        self._next_epoch = 0
        self._plans: dict[tuple[int, int], Future[tuple[list[Indices], AugmentParams]]] = {}  # by process and epoch
        self._planner = Threads(1, "plan")
        self._closed, self._process = False, os.getpid()

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self._num_selected, self.config.batch_size)
        return whole if self.config.drop_last else whole + bool(rest)

    @property
    def num_images(self) -> int:
        """Images in an epoch, over all ranks."""
        return len(self) * self.config.batch_size if self.config.drop_last else self._num_selected

    def __iter__(self) -> Iterator[Batch]:
        number, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(number)

    def params(self, epoch: int) -> AugmentParams:
        """The augmentation parameters of an epoch, one row per image of the beton."""
        return epoch_params(self.beton, self.config, epoch)

    def plan(self, epoch: int) -> tuple[list[Indices], AugmentParams]:
        """The indices of each batch of an epoch, and its parameters; computed during the epoch before it, if any."""
        process = os.getpid()  # a thread of the parent does not run in a forked child
        needed = (self.beton, self.config, self._selected)  # not the loader: the thread would keep it alive
        ready = self._plans.pop((process, epoch), None)
        self._plans = {(process, epoch + 1): self._planner.submit(_plan, *needed, epoch + 1)}
        return _plan(*needed, epoch) if ready is None else ready.result()

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch, from the batch `start` on.

        Raises UsageError for numbers below 0; FastcifarError if the loader is closed, or if a forked process continues
        an epoch of its parent. A forked process may begin epochs of its own, with one thread in torch.
        """
        epoch, start = require_int("epoch", epoch, 0, MAX_SEED), require_int("start", start, 0)
        self._require_open()
        if self._process != os.getpid():
            self._process = os.getpid()
            self._after_fork()
        return self._guarded(self._epoch(epoch, start))

    def _after_fork(self) -> None:
        """Called in a forked child before its first epoch."""
        log.info("a forked process continues with one thread in torch: those of OpenMP do not survive a fork")
        torch.set_num_threads(1)  # as in the workers of torch's DataLoader; else the next copy may hang

    def _guarded(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        process = os.getpid()
        with contextlib.closing(batches):
            while True:
                self._require_open()
                if os.getpid() != process:
                    raise FastcifarError("an epoch cannot continue in a forked process; begin a new one there")
                try:
                    yield next(batches)
                except StopIteration:
                    return

    def _require_open(self) -> None:
        if self._closed:
            raise FastcifarError("the loader is closed; create a new one with make_loader")

    @abstractmethod
    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """The batches of an epoch, from the batch `start` on; `epoch` checks the state of the loader between them."""

    def close(self) -> None:
        """End threads and processes, and free memory. Using the loader afterwards is an error."""
        self._closed = True
        self._planner.close()
