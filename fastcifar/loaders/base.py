"""What every loader is: an order and a table of params per epoch, delivered as batches."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.params import AugmentParams, check_params, sample_params
from fastcifar.augment.torch_kernel import TorchAugment, fill_values, normalisation
from fastcifar.config import MAX_SEED, SHUFFLES, AugmentConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError, UsageError, one_line
from fastcifar.io.checks import require_bool, require_choice, require_int
from fastcifar.loaders.batch import Batch as Batch
from fastcifar.loaders.dataloader_compat import Conventions
from fastcifar.loaders.order import order
from fastcifar.system.thread_pool import Threads

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]
LEAST_STD = 1e-6  # of values 0..255: that of a beton in which one byte differs is above it; 1 / 1e-39 overflows float32
LARGEST_DARK = 4.0  # of a mean or std, 0..255: for images that are darker a mean or std below 1 is not suspicious
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What to deliver: the same settings for every loader, so that each delivers the same."""

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
        require_choice("shuffle", self.shuffle, SHUFFLES)
        for name in ("drop_last", "channels_last"):
            require_bool(name, getattr(self, name))
        if not isinstance(self.device, torch.device):
            raise UsageError(f"device is {self.device!r}; expected a torch.device")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is {self.dtype}; expected one of: {', '.join(map(str, DTYPES))}")


class CpuKernel(Protocol):
    """`fastcifar.augment.numba_kernel.NumbaAugment`, which is loaded only when it is used."""

    def columns(self, params: AugmentParams) -> tuple[Any, ...]: ...

    def begin(
        self, data: npt.NDArray[np.uint8], offsets: Indices, indices: Indices, columns: tuple[Any, ...]
    ) -> Any: ...

    def finished(self, pending: Any) -> torch.Tensor: ...

    def close(self) -> None: ...


class DeviceKernel(Protocol):
    """`TritonAugment` or `TorchAugment`."""

    def columns(self, params: AugmentParams) -> Any: ...

    def __call__(
        self, data: torch.Tensor, offsets: torch.Tensor, indices: torch.Tensor, columns: Any
    ) -> torch.Tensor: ...


def numba_module() -> Any:
    """`fastcifar.augment.numba_kernel`. Raises ImportError where Numba is not installed, switched off by
    NUMBA_DISABLE_JIT, or refuses its environment variables."""
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", 0):
            raise ImportError("NUMBA_DISABLE_JIT is set; unset it to use the compiled kernel")
        return importlib.import_module("fastcifar.augment.numba_kernel")
    except ImportError:
        raise
    except Exception as error:  # a variable such as NUMBA_NUM_THREADS=0 is a ValueError while Numba is imported
        raise ImportError(f"Numba failed: {one_line(error)}") from error


@functools.cache  # once: a run has three loaders
def _warn_of_slow_pixels(reason: str) -> None:
    log.warning("the CPU kernel cannot be used (%s): torch operations augment the images, slower", reason)


def usable_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises UsageError if torch has none, or cannot put numbers on it here."""
    try:
        found = torch.device(device)
        torch.zeros(1, dtype=torch.float32, device=found).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"device is {str(device)!r} ({reason}); expected one that is here, such as cpu") from error
    return found


def _three(name: str, values: npt.ArrayLike, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A value for each channel, (3,) float64. The kernels trust it after this. own: the statistic of the beton itself,
    by which values of the scale 0..1 are told from those of very dark images."""
    shown = one_line(values)
    shown = shown if len(shown) < 80 else f"{shown[:70]}…"
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # torch raises that one for tensors that are on no CPU
        array = np.empty(0)
    if array.shape == (3,) and name == "std" and ((array > 0) & (array < LEAST_STD)).any():
        raise UsageError(f"std is {shown}; expected 0 (a channel that never varies) or at least {LEAST_STD:g}")
    if array.shape != (3,) or not ((array >= 0) & (array <= 255)).all():  # a NaN is within nothing
        raise UsageError(f"{name} is {shown}; expected three numbers from 0 to 255, for red, green and blue")
    if own.max() <= LARGEST_DARK:
        return array
    if name == "std" and not array.any():
        raise UsageError(
            f"std is {shown}; expected 0 only for a channel that never varies; leave std out for the data's own"
        )
    changes_nothing = (array == (0 if name == "mean" else 1)).all()
    if array.max() <= 1 and not changes_nothing:
        raise UsageError(f"{name} is {shown}; expected 0..255; these look like 0..1; multiply by 255")
    return array


def params_of(beton: Beton, config: LoaderConfig, epoch: int) -> AugmentParams:
    """The table of params of an epoch, a row for each image of the beton, checked."""
    table = sample_params(config.augment, config.seed, epoch, len(beton), beton.image_shape)
    check_params(table, config.augment, len(beton), beton.image_shape)
    return table


def batches_of(beton: Beton, config: LoaderConfig, chosen: npt.NDArray[np.bool_], epoch: int) -> list[Indices]:
    """The indices of each batch of an epoch in this rank, of the images that are `chosen`, (len(beton),) bool."""
    everything = order(config.seed, epoch, len(beton), shuffle=config.shuffle, pages=beton.pages)
    indices = everything[chosen[everything]]
    starts = range(0, len(indices), config.batch_size)
    batches = [
        np.array_split(indices[start : start + config.batch_size], config.world_size)[config.rank] for start in starts
    ]
    return batches[: len(indices) // config.batch_size] if config.drop_last else batches


def _plan(
    beton: Beton, config: LoaderConfig, chosen: npt.NDArray[np.bool_], epoch: int
) -> tuple[list[Indices], AugmentParams]:
    return batches_of(beton, config, chosen, epoch), params_of(beton, config, epoch)


class Loader(Conventions, ABC):
    """Batches of a beton. `epoch(n)` gives those of epoch n; plain iteration gives epoch 0, then 1, and so on."""

    name: str
    """The `--loader` that chooses it."""
    reads_jpeg = False

    def __init__(
        self, beton: Beton, config: LoaderConfig, indices: Indices, mean: npt.ArrayLike, std: npt.ArrayLike
    ) -> None:
        config.augment.check_fits(beton.image_shape)
        if beton.encoding == "jpeg" and config.augment.pipeline is not None:
            raise UsageError(
                f"{beton.path}: holds JPEG images, and a pipeline of Albumentations needs raw ones; "
                "convert without --encode jpeg"
            )
        if beton.encoding == "jpeg" and not self.reads_jpeg:
            raise UsageError(f"{beton.path}: holds JPEG images, which loader {self.name!r} cannot read; use 'ffcv'")
        if config.augment.pipeline is not None and self.name != "albumentations":
            raise UsageError(f"a pipeline of Albumentations is for loader 'albumentations'; this is {self.name!r}")
        if config.drop_last and len(indices) < config.batch_size:
            raise UsageError(
                f"batch_size is {config.batch_size} and only whole batches are delivered; "
                f"expected at most {len(indices)}, the number of images"
            )
        self.beton, self.config = beton, config
        self.mean, self.std = _three("mean", mean, beton.mean), _three("std", std, beton.std)
        self.mean32, self.inv_std32 = normalisation(self.mean, self.std)
        self.fill = fill_values(config.augment, self.mean)
        self._chosen = np.zeros(len(beton), dtype=bool)
        self._chosen[indices] = True
        self._num_chosen = len(indices)
        self._next_epoch = 0
        self._plans: dict[tuple[int, int], Future[tuple[list[Indices], AugmentParams]]] = {}  # by process and epoch
        self._planner = Threads(1, "plan")
        self._closed, self._process = False, os.getpid()

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self._num_chosen, self.config.batch_size)
        return whole if self.config.drop_last else whole + bool(rest)

    @property
    def num_images(self) -> int:
        """Images in an epoch, over all ranks."""
        return len(self) * self.config.batch_size if self.config.drop_last else self._num_chosen

    def __iter__(self) -> Iterator[Batch]:
        number, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(number)

    def batches(self, epoch: int) -> list[Indices]:
        """The indices of each batch of an epoch, each (batch_size // world_size,) int64: the slice of this rank."""
        return batches_of(self.beton, self.config, self._chosen, epoch)

    def params(self, epoch: int) -> AugmentParams:
        """The table of params of an epoch, a row for each image of the beton, checked."""
        return params_of(self.beton, self.config, epoch)

    def plan(self, epoch: int) -> tuple[list[Indices], AugmentParams]:
        """`batches` and `params` of an epoch, made during the epoch before it if there was one."""
        process = os.getpid()  # what a parent began is never done in its forked child
        needed = (self.beton, self.config, self._chosen)  # not the loader: a thread would keep it from being collected
        ready = self._plans.pop((process, epoch), None)
        self._plans = {(process, epoch + 1): self._planner.submit(_plan, *needed, epoch + 1)}
        return _plan(*needed, epoch) if ready is None else ready.result()

    def cpu_kernel(self) -> CpuKernel | None:
        """The one-pass kernel for this loader's settings; None where torch does the same (a GPU, or no Numba)."""
        if self.config.device.type != "cpu":
            return None
        try:
            NumbaAugment = numba_module().NumbaAugment  # noqa: N806 (a class)
        except ImportError as error:
            _warn_of_slow_pixels(str(error))
            return None
        shape, config = self.beton.image_shape, self.config
        statistics = (self.fill, self.mean32, self.inv_std32)
        return NumbaAugment(shape, config.augment, *statistics, config.dtype, config.channels_last)

    def device_kernel(self) -> DeviceKernel:
        """What makes batches where `cpu_kernel` does not: Triton on CUDA, torch operations anywhere."""
        kernel: Any = TorchAugment
        if self.config.device.type == "cuda":
            try:
                from fastcifar.augment.triton_kernel import TritonAugment

                kernel = TritonAugment
            except ImportError as error:
                log.info("the GPU kernel cannot be used (%s): torch operations make the pixels, slower", error)
        config, statistics = self.config, (self.fill, self.mean32, self.inv_std32)
        layout = (config.dtype, config.channels_last, config.device)
        return kernel(self.beton.image_shape, config.augment, *statistics, *layout)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch, from the batch `start` on.

        Raises UsageError for numbers below 0, FastcifarError if the loader is closed, or once it is; or in a forked
        process that goes on with an epoch of its parent's. It can begin epochs of its own, with one thread in torch.
        """
        epoch, start = require_int("epoch", epoch, 0, MAX_SEED), require_int("start", start, 0)
        self._require_open()
        if self._process != os.getpid():
            self._process = os.getpid()
            self._after_fork()
        return self._watched(self._epoch(epoch, start))

    def _after_fork(self) -> None:
        """In a forked child, before its first epoch."""
        log.info("a forked process goes on with one thread in torch: those of OpenMP do not survive a fork")
        torch.set_num_threads(1)  # as torch does in the workers of its DataLoader; else the next copy may hang

    def _watched(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        process = os.getpid()
        with contextlib.closing(batches):
            while True:
                self._require_open()
                if os.getpid() != process:
                    raise FastcifarError("an epoch cannot go on in a forked process; begin a new one in that process")
                try:
                    yield next(batches)
                except StopIteration:
                    return

    def _require_open(self) -> None:
        if self._closed:
            raise FastcifarError("the loader is closed; make a new one with make_loader")

    @abstractmethod
    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """The batches of an epoch, from the batch `start` on, for `epoch` to watch over."""

    def close(self) -> None:
        """Give back threads, processes and memory. The loader is not used afterwards: that is an error."""
        self._closed = True
        self._planner.close()
