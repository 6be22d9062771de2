"""Loaders: an order of images, parameters for each, a source of pixels, and a kernel that applies the parameters.

`make_loader` builds one; the three loaders deliver the same batches from three sources.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import threading
from collections.abc import Sequence
from inspect import signature
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import numba_module
from fastcifar.config import LOADERS, NO_AUGMENT, SHUFFLES, AugmentConfig
from fastcifar.data.beton import Beton, empty_classes, open_beton
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.io.checks import require_bool, require_choice
from fastcifar.io.paths import user_path
from fastcifar.loaders.base import (
    SHARE_OF_MEMORY,
    Batch,
    Indices,
    Loader,
    LoaderConfig,
    free_memory,
    usable_device,
)
from fastcifar.loaders.dataloader_compat import unknown_setting
from fastcifar.loaders.resident import ResidentLoader

__all__ = [
    "Batch",
    "Loader",
    "LoaderChoice",
    "LoaderConfig",
    "choose_loader",
    "make_loader",
    "missing_part",
    "open_for",
]

log = logging.getLogger(__name__)


def make_loader(
    beton: Beton | str | os.PathLike[str],
    augment: AugmentConfig | None = None,
    *,
    batch_size: int = 512,
    train: bool = True,
    loader: str = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    indices: npt.ArrayLike | None = None,
    shuffle: str = "full",
    mean: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    rank: int = 0,
    world_size: int = 1,
    **unknown: NoReturn,
) -> Loader:
    """A loader of `Batch(images, labels, indices)` from a beton, or from the path of one.

    train=True: shuffled, augmented (by `AugmentConfig()` if not given), whole batches only. train=False: every image
    once, in the order of the file, only normalised.

    loader: 'resident', 'ffcv', 'albumentations' or 'auto'; for the same seed, all deliver the same batches.
    dtype: float32, bfloat16, float16; or uint8 for images that are augmented but not normalised.
    channels_last: the memory format of the images; if False, contiguous.
    indices: deliver only these images of the beton; their indices, or a mask with a bool for each image.
    shuffle: 'full' or 'window' (see `fastcifar.loaders.order`).
    mean, std: (3,) each, 0..255, for the normalisation; those of the beton if not given. For test images, pass those
    of the training loader (`train_loader.mean`, `train_loader.std`).
    rank, world_size: of each batch, deliver the slice of this process; world_size equal slices are the whole batch.

    Raises UsageError for settings that cannot be used, DataError for a damaged beton, MissingExtraError.
    """
    if unknown:
        raise unknown_setting(next(iter(unknown)), list(signature(make_loader).parameters)[:-1])
    require_choice("loader", loader, LOADERS)
    if isinstance(shuffle, bool):
        raise UsageError(f"shuffle is {shuffle}; expected 'full' or 'window' (train=True shuffles, train=False not)")
    require_choice("shuffle", shuffle, SHUFFLES)
    require_bool("train", train)
    if not train and augment is not None:
        raise UsageError("augment is given with train=False; expected no augmentation for evaluation")
    if augment is None:
        augment = AugmentConfig() if train else NO_AUGMENT
    config = LoaderConfig(
        augment=augment,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle if train else "none",
        drop_last=train,
        device=usable_device(device),
        dtype=dtype,
        channels_last=channels_last,
        rank=rank,
        world_size=world_size,
    )
    choice = choose_loader(loader, [beton], augment=config.augment, device=config.device)
    if loader == "auto":
        log.info("loader: %s", choice)
    (beton,) = choice.betons
    return _loader_class(choice.name)(
        beton,
        config,
        _checked_indices(indices, len(beton)),
        beton.mean if mean is None else mean,
        beton.std if std is None else std,
    )


class LoaderChoice(NamedTuple):
    """A loader, and the betons opened for it."""

    name: str
    reason: str
    betons: list[Beton]

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_loader(
    loader: str,
    betons: Sequence[Beton | str | os.PathLike[str]],
    *,
    augment: AugmentConfig | None = None,
    device: torch.device | str = "cpu",
) -> LoaderChoice:
    """The loader for betons that are used together, and the betons, opened as it needs them.

    loader 'auto': 'albumentations' for a pipeline of Albumentations, 'ffcv' for JPEG images, 'resident' where the
    betons fit into the memory of `device`, else 'ffcv' (or 'albumentations', where FFCV is not installed).
    """
    name, reason, has_pipeline = loader, "by request", augment is not None and augment.pipeline is not None
    if loader == "auto" and has_pipeline:
        name, reason = "albumentations", "augment is a pipeline of Albumentations"
    elif loader == "auto":
        name, reason = _loader_for_size(sum(map(_size_of, betons)), usable_device(device))
    opened = [beton if isinstance(beton, Beton) else open_for(name, beton, device) for beton in betons]
    if loader == "auto" and not has_pipeline and any(beton.encoding == "jpeg" for beton in opened):
        name, reason = "ffcv", "the images are JPEG"
    return LoaderChoice(name, reason, opened)


def _loader_for_size(num_bytes: int, device: torch.device) -> tuple[str, str]:
    if num_bytes < SHARE_OF_MEMORY * free_memory(device):
        return "resident", f"{num_bytes / 2**20:.0f} MiB fit into the memory of {device}"
    reason = f"{num_bytes / 2**20:.0f} MiB do not fit into the memory of {device}"
    if importlib.util.find_spec("ffcv") is not None:
        return "ffcv", reason
    return "albumentations", f"{reason}, and FFCV is not installed"


def open_for(loader: str, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Beton:
    """Open a beton as the loader needs it: as a private copy in memory if it fits there.

    The CPU kernel, if the loader will use it on `device`, is loaded while the file is copied and hashed.
    """
    path = user_path(path, "beton")
    size = _size_of(path)
    if size and loader != "albumentations" and usable_device(device).type == "cpu":
        threading.Thread(target=_load_cpu_kernel, name="fastcifar-load").start()
    free = free_memory()
    if loader == "resident" and size > free:
        raise UsageError(
            f"{path}: {size >> 20:,} MiB do not fit into {free >> 20:,} MiB of free memory; use --loader ffcv"
        )
    beton = open_beton(path, in_memory=loader == "resident" or size < SHARE_OF_MEMORY * free)
    if not beton.verified:
        log.warning("%s has no manifest: its structure was checked, its pixels cannot be", beton.path)
    if warning := empty_classes(beton):
        log.warning("%s", warning)
    return beton


def _load_cpu_kernel() -> None:
    with contextlib.suppress(Exception):  # the loader loads it again, and reports it
        numba_module().load()


def _size_of(beton: Beton | str | os.PathLike[str]) -> int:
    if isinstance(beton, Beton):
        return beton.num_bytes
    path = user_path(beton, "beton")
    return os.path.getsize(path) if os.path.isfile(path) else 0  # opening it reports a missing file


def _loader_class(name: str) -> type[Loader]:
    if name == "ffcv":
        from fastcifar.loaders.ffcv_loader import FfcvLoader

        return FfcvLoader
    if name == "albumentations":
        from fastcifar.loaders.albumentations_loader import AlbumentationsLoader

        return AlbumentationsLoader
    return ResidentLoader


def missing_part(name: str) -> FastcifarError | None:
    """Why the loader `name` cannot be used, or None if it can."""
    try:
        _loader_class(name)
    except FastcifarError as error:
        return error
    return None


def _checked_indices(indices: npt.ArrayLike | None, num_images: int) -> Indices:
    if indices is None:
        return np.arange(num_images)
    try:
        array = np.asarray(indices)
    except (TypeError, ValueError, RuntimeError):  # of tensors that are not on the CPU, or lists of unequal length
        raise UsageError(
            f"indices is a {type(indices).__name__}; expected integers or a boolean mask, on the CPU"
        ) from None
    if array.dtype.kind == "b":
        if array.shape != (num_images,):
            raise UsageError(f"indices is a mask of shape {array.shape}; expected ({num_images},), one bool per image")
        if not array.any():
            raise UsageError("indices is a mask that selects no image; expected at least one")
        array = np.flatnonzero(array)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise UsageError(f"indices is {array.dtype} of shape {array.shape}; expected a list of integers, at least one")
    array = array.astype(np.int64)
    if array.min() < 0 or array.max() >= num_images:
        raise UsageError(f"indices is {array.min()}..{array.max()}; expected 0..{num_images - 1}")
    if len(np.unique(array)) != len(array):
        raise UsageError("indices has duplicates; expected each image at most once")
    return array
