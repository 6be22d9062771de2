"""Loaders: an order of images, parameters for each, a source of pixels, and a kernel that applies the parameters.

`make_loader` builds one; the three loaders deliver the same batches from three sources.
"""

from __future__ import annotations

import logging
import os
from inspect import signature
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.config import LOADERS, MAX_SEED, NO_AUGMENT, SAMPLERS, SHUFFLES, AugmentConfig
from fastcifar.data.beton import Beton, checked_indices
from fastcifar.errors import UsageError, one_line
from fastcifar.io.checks import require_bool, require_choice, require_int, shown
from fastcifar.loaders.base import Indices, Loader, LoaderConfig, usable_device
from fastcifar.loaders.batch import Batch, Mix, MixedBatch
from fastcifar.loaders.choose import LoaderChoice, choose_loader, loader_class, missing_part, open_for
from fastcifar.loaders.dataloader_compat import INSTEAD, unknown_setting

__all__ = [
    "Batch",
    "Loader",
    "LoaderChoice",
    "Mix",
    "MixedBatch",
    "choose_loader",
    "make_loader",
    "missing_part",
    "open_for",
]

log = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
MAX_DARK = 4.0  # mean and std of dark images, 0..255: with them a mean or std below 1 is not suspicious


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
    sampler: str = "none",
    mean: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    rank: int = 0,
    world_size: int = 1,
    **unknown: NoReturn,
) -> Loader:
    """A loader of `Batch(images, labels, indices)` from a beton, or from the path of one; of `MixedBatch` if `augment`
    has mixup or cutmix.

    train=True: shuffled, augmented (by `AugmentConfig()` if not given), whole batches only. train=False: every image
    once, in the order of the file, only normalised.

    loader: 'resident', 'ffcv', 'albumentations' or 'auto'; for the same seed, all deliver the same batches.
    dtype: float32, bfloat16, float16; or uint8 for images that are augmented but not normalised.
    channels_last: the memory format of the images; if False, contiguous.
    indices: deliver only these images of the beton; their indices, or a mask with a bool for each image.
    shuffle: 'full' or 'window' (see `fastcifar.loaders.order`).
    sampler: 'balanced', with train=True: as many images in an epoch, each class equally often (see
    `fastcifar.loaders.order.balanced_images`).
    mean, std: (3,) each, 0..255, for the normalisation; those of the beton if not given. For test images, pass those
    of the training loader (`train_loader.mean`, `train_loader.std`).
    rank, world_size: of each batch, deliver the slice of this process; world_size equal slices are the whole batch.

    Raises UsageError for settings that cannot be used, DataError for a damaged beton, MissingExtraError.

    Examples:
        >>> train = make_loader("data/train.beton", AugmentConfig(crop_padding=4), batch_size=32, seed=1)
        >>> for images, labels, indices in train.epoch(0):
        ...     print(tuple(images.shape), images.dtype)
        (32, 3, 32, 32) torch.float32
        (32, 3, 32, 32) torch.float32
        >>> test = make_loader("data/test.beton", train=False, mean=train.mean, std=train.std)
        >>> sum(len(batch.labels) for batch in test)
        40
    """
    if unknown:
        raise unknown_setting(next(iter(unknown)), list(signature(make_loader).parameters)[:-1])
    require_choice("loader", loader, LOADERS)
    if isinstance(shuffle, bool):
        raise UsageError(f"shuffle is {shuffle}; expected 'full' or 'window' (train=True shuffles, train=False not)")
    require_choice("shuffle", shuffle, SHUFFLES)
    if not isinstance(sampler, str):
        raise UsageError(f"sampler is {shown(sampler)}; expected 'none' or 'balanced'; {INSTEAD['sampler']}")
    require_choice("sampler", sampler, SAMPLERS)
    require_bool("train", train)
    if not train and sampler != "none":
        raise UsageError(f"sampler is {sampler!r} with train=False; expected every image once for evaluation")
    if not train and augment is not None:
        raise UsageError("augment is given with train=False; expected no augmentation for evaluation")
    if augment is None:
        augment = AugmentConfig() if train else NO_AUGMENT
    if not isinstance(augment, AugmentConfig):
        raise UsageError(f"augment is {augment!r}; expected an AugmentConfig")
    batch_size, seed = require_int("batch_size", batch_size, 1), require_int("seed", seed, 0, MAX_SEED)
    require_int("world_size", world_size, 1)
    require_int("rank", rank, 0, world_size - 1)
    if batch_size % world_size:
        raise UsageError(f"batch_size is {batch_size} over {world_size} processes; expected a multiple of {world_size}")
    require_bool("channels_last", channels_last)
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype}; expected one of: {', '.join(map(str, DTYPES))}")
    device = usable_device(device)
    choice = choose_loader(loader, [beton], augment=augment, device=device, num_processes=world_size - rank)
    if loader == "auto":
        log.info("loader: %s", choice)
    (beton,) = choice.betons
    config = LoaderConfig(
        image_shape=beton.image_shape,
        augment=augment,
        mean=_checked_channels("mean", mean, beton.mean),
        std=_checked_channels("std", std, beton.std),
        dtype=dtype,
        channels_last=channels_last,
        device=device,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle if train else "none",
        sampler=sampler,
        drop_last=train,
        rank=rank,
        world_size=world_size,
    )
    return loader_class(choice.name)(beton, config, _distinct_indices(indices, len(beton)))


def _distinct_indices(indices: npt.ArrayLike | None, num_images: int) -> Indices:
    if indices is None:
        return np.arange(num_images)
    array = checked_indices(indices, num_images)
    if not len(array):
        raise UsageError("indices is empty; expected at least one image")
    if len(np.unique(array)) != len(array):
        raise UsageError("indices has duplicates; expected each image at most once")
    return array


def _checked_channels(name: str, values: npt.ArrayLike | None, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A mean or std: one value per channel, (3,) float64. own: that of the beton, which is the default, and which
    distinguishes values on a scale of 0..1 from those of very dark images."""
    if values is None:
        return own
    shown = one_line(values, 80)
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor that is not on a CPU
        array = np.empty(0)
    if array.shape != (3,) or not ((array >= 0) & (array <= 255)).all():  # false for NaN
        raise UsageError(f"{name} is {shown}; expected three numbers from 0 to 255, for red, green and blue")
    changes_nothing = (array == (0 if name == "mean" else 1)).all()
    if array.max() <= 1 and own.max() > MAX_DARK and not changes_nothing:
        raise UsageError(f"{name} is {shown}; expected 0..255; these look like 0..1; multiply by 255")
    return array
