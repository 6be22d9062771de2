"""`preview`: the augmentations of a recipe, on images of every class, as the loader delivers them."""

from __future__ import annotations

import os
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastcifar import plotting
from fastcifar.augment.params import raw_bits
from fastcifar.config import AugmentConfig, TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError, describe
from fastcifar.io.checks import require_int
from fastcifar.io.paths import make_folder, require_file_path, user_path
from fastcifar.loaders import make_loader, open_for
from fastcifar.training.split import hold_out

MAX_PARTNERS = 256
"""Images in the batch in which those that are shown are mixed, with MixUp or CutMix."""


def preview(config: TrainConfig, path: str | os.PathLike[str], *, n: int = 8, each: int = 1) -> int:
    """Draw `each` training images of every class next to `n` augmented versions, of the first n epochs, to `path`.

    Returns the number of images. Raises DataError (4) if train.beton is missing or damaged; UsageError (2);
    FastcifarError (1) if the figure cannot be drawn or written.
    """
    path = user_path(path, "out")
    require_file_path(path, "PNG", "preview.png")
    make_folder(path.parent)
    n, each = require_int("n", n, 1, 200), require_int("each", each, 1)
    beton = open_for(config.data.loader, Path(config.data.data_dir) / "train.beton")
    train_indices, _ = hold_out(beton.labels, len(beton.class_names), config.data.val_size, config.seed)
    indices = images_of_each_class(beton, each, config.seed, train_indices)
    versions = augmented_versions(beton, indices, config, n, train_indices)
    of_recipe = f" of {config.recipe}" if config.recipe else ""
    heading = f"Augmentation{of_recipe}: {in_words(config.augment)}\nseed {config.seed}, {beton.path.name}"
    for side, until in config.progressive:
        heading += f"\nreduced to {side} pixels until {until:.0%} of the steps"
    images = beton.images(indices)
    try:
        labels = plotting.class_labels(beton.class_names)
        figure = plotting.preview(images, versions, [labels[label] for label in beton.labels[indices]], heading)
        plotting.write_png(path, figure)
    except FastcifarError:
        raise
    except Exception as error:  # whatever matplotlib, Pillow or the memory fail with
        raise FastcifarError(f"{path}: cannot be drawn ({describe(error)})") from error
    return len(indices)


def in_words(augment: AugmentConfig) -> str:
    """What happens to a training image, in a few words: 'crop padding 4, flip, cutout 8'."""
    parts = {
        f"crop padding {augment.crop_padding}": augment.crop_padding,
        "flip": augment.flip,
        f"rotation up to {augment.rotate_degrees:g}°": augment.rotate_degrees,
        "colour": augment.shifts_colour or augment.adjusts_tone,
        f"cutout {augment.cutout_size}": augment.cutout_size,
        str(augment.pipeline): augment.pipeline,
        "MixUp": augment.mixup,
        "CutMix": augment.cutmix,
    }
    return ", ".join(part for part, is_on in parts.items() if is_on) or "none"


def images_of_each_class(
    beton: Beton, each: int, seed: int, candidates: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Indices, (M,): up to `each` of the candidates of every class, class by class, drawn with `seed`."""
    keys = raw_bits(seed, 0, "preview", len(beton))
    by_class = candidates[np.lexsort((keys[candidates], beton.labels[candidates]))]
    starts = np.searchsorted(beton.labels[by_class], np.arange(len(beton.class_names) + 1))
    return np.concatenate([by_class[a : min(a + each, b)] for a, b in pairwise(starts)])


def augmented_versions(
    beton: Beton,
    indices: npt.NDArray[np.int64],
    config: TrainConfig,
    n: int,
    candidates: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.uint8]:
    """(M, n, H, W, 3) uint8: the batches of the loader, not normalised.

    candidates: with MixUp or CutMix, images of which some are in the batches too, to be mixed with.
    """
    in_batch = indices
    if config.augment.mixes and candidates is not None:
        others = np.setdiff1d(candidates, indices)
        keys = raw_bits(config.seed, 0, "preview_partner", len(others))
        others = others[np.argsort(keys, kind="stable")][: max(MAX_PARTNERS - len(indices), 0)]
        in_batch = np.concatenate([indices, others])
    loader = make_loader(
        beton,
        augment=config.augment,
        batch_size=len(in_batch),  # an epoch is one batch
        loader=config.data.loader,
        seed=config.seed,
        indices=in_batch,
        dtype=torch.uint8,
    )
    versions = []
    with closing(loader):
        for batch in (batch for epoch in range(n) for batch in loader.epoch(epoch)):
            places = batch.indices.numpy()
            shown = np.argsort(places)[np.searchsorted(np.sort(places), indices)]
            versions.append(batch.images.numpy()[shown])
    return np.stack(versions, axis=1).transpose(0, 1, 3, 4, 2)  # n of (M, 3, H, W) -> (M, n, H, W, 3)
