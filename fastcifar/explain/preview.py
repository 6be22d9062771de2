"""`preview`: the augmentations of a recipe, on images of every class, as the loader delivers them."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.params import raw_bits
from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError, UsageError, describe
from fastcifar.io.checks import require_int
from fastcifar.io.paths import make_folder, user_path
from fastcifar.loaders import make_loader, open_for
from fastcifar.training.split import hold_out


def preview(config: TrainConfig, path: str | os.PathLike[str], *, n: int = 8, each: int = 1) -> int:
    """Draw `each` training images of every class beside `n` augmented versions, those of the first n epochs, to `path`.

    Returns the number of images. Raises DataError (4) if train.beton is missing or damaged; UsageError (2);
    FastcifarError (1) if the picture cannot be drawn or written.
    """
    path = user_path(path, "the picture")
    if path.is_dir():
        raise UsageError(f"{path}: a folder; expected the name of a picture, e.g. {path / 'preview.png'}")
    make_folder(path.parent)
    n, each = require_int("n", n, 1, 200), require_int("each", each, 1)
    beton = open_for(config.data.loader, Path(config.data.data_dir) / "train.beton")
    train_rows, _ = hold_out(beton.labels, len(beton.class_names), config.data.val_size, config.seed)
    rows = images_of_each_class(beton, each, config.seed, train_rows)
    versions = augmented_versions(beton, rows, config, n)
    what = config.recipe or "the settings given"
    heading = f"Augmentations of {what}, seed {config.seed}: as training sees {beton.path.name}"
    for side, until in config.progressive:
        heading += f"\nuntil {until:.0%} of the steps are done, then reduced to {side} pixels"
    images = beton.images(rows)
    try:
        from fastcifar import plotting

        labels = plotting.class_labels(beton.class_names)
        figure = plotting.preview(images, versions, [labels[label] for label in beton.labels[rows]], heading)
        plotting.write_png(path, figure)
    except FastcifarError:
        raise
    except Exception as error:  # whatever matplotlib, Pillow or the memory fail with
        raise FastcifarError(f"{path}: cannot be drawn ({describe(error)})") from error
    return len(rows)


def images_of_each_class(beton: Beton, each: int, seed: int, of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(M,): of the rows `of`, up to `each` of every class that has some, class after class, drawn with `seed`."""
    keys = raw_bits(seed, 0, "preview", len(beton))
    by_class = of[np.lexsort((keys[of], beton.labels[of]))]
    starts = np.searchsorted(beton.labels[by_class], np.arange(len(beton.class_names) + 1))
    return np.concatenate([by_class[a : min(a + each, b)] for a, b in pairwise(starts)])


def augmented_versions(beton: Beton, rows: npt.NDArray[np.int64], config: TrainConfig, n: int) -> npt.NDArray[np.uint8]:
    """(M, n, H, W, 3) uint8: the batches of the loader, not normalised."""
    loader = make_loader(
        beton,
        augment=config.augment,
        batch_size=len(rows),
        loader=config.data.loader,
        seed=config.seed,
        indices=rows,
        dtype=torch.uint8,
    )
    place = {row: i for i, row in enumerate(rows.tolist())}
    made = np.empty((len(rows), n, *beton.image_shape), np.uint8)
    try:
        for epoch in range(n):
            for batch in loader.epoch(epoch):
                pixels = batch.images.permute(0, 2, 3, 1).numpy()  # (M, 3, H, W) -> (M, H, W, 3)
                made[[place[row] for row in batch.indices.tolist()], epoch] = pixels
    finally:
        loader.close()
    return made
