"""What the loaders have in common: what they deliver, their settings, the order and parameters of each epoch."""

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import KernelConfig
from fastcifar.augment.mixing import NUM_PARTS, MixPlan, make_mixer, plan_mix, require_mixable
from fastcifar.augment.params import AugmentParams, sample_params
from fastcifar.config import LOADERS, MAX_SEED
from fastcifar.data.beton import Beton
from fastcifar.data.statistics import fitting_batch_size
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.io.checks import require_int
from fastcifar.loaders.batch import Batch, Mix, MixedBatch
from fastcifar.loaders.dataloader_compat import Conventions
from fastcifar.loaders.order import balanced_images, order
from fastcifar.system import memory
from fastcifar.system.thread_pool import Threads

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]
SHARE_OF_MEMORY = 0.7  # of the free memory: what the datasets of all processes of a machine may take


@dataclass(frozen=True, kw_only=True, eq=False)
class LoaderConfig(KernelConfig):
    """What to deliver: the checked settings of `make_loader`."""

    batch_size: int
    seed: int
    shuffle: str
    sampler: str
    drop_last: bool
    rank: int
    world_size: int
    """Processes that share each batch: `batch_size` is that of all together, and `rank` delivers its slice of it."""

    @property
    def unmixed(self) -> LoaderConfig:
        """What a kernel makes: the batches, but float32 where they are mixed and then rounded to half precision."""
        halves = self.augment.mixes and self.dtype != torch.uint8
        return replace(self, dtype=torch.float32) if halves else self


class EpochPlan(NamedTuple):
    """The batches of an epoch. They consist of slots, numbered as the images of the beton: slot i has row i of the
    parameters, and image i unless the sampler puts another one there."""

    batches: list[Indices]
    """(batch_size // world_size,) int64 each: the slots of the batches of this rank."""
    images: Indices | None
    """(N,) int64: the image in each slot; None: slot i holds image i."""
    params: AugmentParams
    """One row for each slot."""

    def images_in(self, slots: Indices) -> Indices:
        """The indices of the images in these slots."""
        return slots if self.images is None else self.images[slots]


def loaders_for(beton: Beton) -> tuple[str, ...]:
    """The loaders that can read its images."""
    return ("ffcv",) if beton.encoding == "jpeg" else LOADERS[1:]


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


def epoch_params(beton: Beton, config: LoaderConfig, epoch: int) -> AugmentParams:
    """The augmentation parameters of an epoch, one row per image of the beton."""
    return sample_params(config.augment, config.seed, epoch, len(beton), beton.image_shape)


def plan_epoch(beton: Beton, config: LoaderConfig, selected: npt.NDArray[np.bool_], epoch: int) -> EpochPlan:
    """The batches of an epoch. selected: the images that are delivered, (len(beton),) bool."""
    images, pages = None, beton.pages
    if config.sampler == "balanced":
        images = balanced_images(config.seed, epoch, beton.labels, selected)
        pages = pages[images]
    everything = order(config.seed, epoch, len(beton), shuffle=config.shuffle, pages=pages)
    slots = everything[selected[everything]]
    starts = range(0, len(slots), config.batch_size)
    batches = [
        np.array_split(slots[start : start + config.batch_size], config.world_size)[config.rank] for start in starts
    ]
    if config.drop_last:
        batches = batches[: len(slots) // config.batch_size]
    return EpochPlan(batches, images, epoch_params(beton, config, epoch))


def _too_large(config: LoaderConfig, num_images: int) -> str:
    """The message for a batch size above the number of training images."""
    per_process = fitting_batch_size(num_images // config.world_size)
    suggested = max(config.world_size * per_process, 2 * NUM_PARTS if config.augment.mixes else 0)
    remedy = f"; give --batch-size {suggested} (in Python batch_size={suggested})" if suggested <= num_images else ""
    return (
        f"batch_size is {config.batch_size}; expected at most {num_images}, the number of training images "
        f"(incomplete batches are dropped){remedy}"
    )


class Loader(Conventions, ABC):
    """Batches of a beton: `epoch(n)` iterates over epoch n; plain iteration over epoch 0, then 1, and so on.

    `len` is the number of batches in an epoch.

    Examples:
        >>> loader = make_loader("data/train.beton", AugmentConfig(crop_padding=4), batch_size=32)
        >>> len(loader), loader.num_images
        (2, 64)
        >>> batches = list(loader.epoch(3, start=1))  # the last batch of epoch 3
        >>> offsets = loader.params(3)["crop_x"][batches[0].indices]  # how it was cropped
        >>> loader.close()
    """

    name: str
    """Its name for `--loader`."""

    def __init__(self, beton: Beton, config: LoaderConfig, indices: Indices) -> None:
        config.augment.check_fits(beton.image_shape)
        if beton.encoding == "jpeg" and config.augment.pipeline is not None:
            raise UsageError(
                f"{beton.path}: has JPEG images, and a pipeline of Albumentations needs raw ones; "
                "convert without --encode jpeg"
            )
        if self.name not in loaders_for(beton):
            raise UsageError(
                f"{beton.path}: has JPEG images, which loader {self.name!r} cannot read; use {loaders_for(beton)[0]!r}"
            )
        if config.augment.pipeline is not None and self.name != "albumentations":
            raise UsageError(f"a pipeline of Albumentations is for loader 'albumentations'; this is {self.name!r}")
        if config.drop_last and len(indices) < config.batch_size:
            raise UsageError(_too_large(config, len(indices)))
        if config.augment.mixes:
            require_mixable(config.batch_size, config.world_size)
        self.beton, self.config = beton, config
        self.mean, self.std = config.mean, config.std
        self._selected = np.zeros(len(beton), dtype=bool)
        self._selected[indices] = True
        self._num_selected = len(indices)
        self._next_epoch = 0
        self._plans: dict[tuple[int, int], Future[EpochPlan]] = {}  # by process and epoch
        self._planner = Threads(1, "plan")
        self._mixer = make_mixer(config) if config.augment.mixes else None
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
        """The augmentation parameters of an epoch, one row per image of the beton: see
        `fastcifar.augment.params.sample_params`.

        Raises UsageError for numbers below 0, and for the sampler 'balanced': an image that is delivered twice is
        augmented in two ways.
        """
        epoch = require_int("epoch", epoch, 0, MAX_SEED)
        if self.config.sampler == "balanced":
            raise UsageError(
                "params are of one image each, and sampler 'balanced' delivers some images twice; use sampler 'none'"
            )
        return epoch_params(self.beton, self.config, epoch)

    def plan(self, epoch: int) -> EpochPlan:
        """The batches of an epoch, and its parameters; computed during the epoch before it, if any."""
        process = os.getpid()  # a thread of the parent does not run in a forked child
        needed = (self.beton, self.config, self._selected)  # not the loader: the thread would keep it alive
        ready = self._plans.pop((process, epoch), None)
        self._plans = {(process, epoch + 1): self._planner.submit(plan_epoch, *needed, epoch + 1)}
        return plan_epoch(*needed, epoch) if ready is None else ready.result()

    def mixed(
        self, wait: Callable[[], torch.Tensor], plan: EpochPlan, slots: Indices
    ) -> tuple[Callable[[], torch.Tensor], MixPlan | None]:
        """Start to mix the batch of `slots`, if images are mixed: a function that waits for it, and how it is mixed.

        wait: returns the images, by `config.unmixed`.
        """
        if self._mixer is None:
            return wait, None
        config = self.config
        mix = plan_mix(plan.params[slots], config.batch_size, config.rank, config.world_size)
        return self._mixer.launch(wait, mix), mix

    def make_batch(
        self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, mix: MixPlan | None
    ) -> Batch:
        """A batch of tensors on the device, mixed as `mix` says."""
        if mix is None:
            return Batch(images, labels, indices)
        partners, weights = (torch.from_numpy(array).to(self.config.device) for array in mix[:2])
        return MixedBatch(images, labels, indices, Mix(labels[partners], weights))

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
        if self._mixer is not None:
            self._mixer.close()
