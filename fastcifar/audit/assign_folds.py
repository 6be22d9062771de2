"""Which fold each training image is in: the same share of each class, and duplicates of one image together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastcifar.audit.issues import Pair
from fastcifar.augment.params import raw_bits
from fastcifar.errors import UsageError
from fastcifar.io.checks import require_int

Ints = npt.NDArray[np.int64]
MAX_FOLDS = 20
GROUPS_PER_FOLD = 10
"""A group of duplicates has at most this share of a fold: pairs that are only alike would join into one group."""


def require_folds(num_images: int, num_folds: int) -> None:
    """Raise UsageError unless the training images can be dealt to that many folds."""
    require_int("folds", num_folds, 2, MAX_FOLDS)
    if num_images < 2 * num_folds:
        raise UsageError(f"folds is {num_folds}; expected at most {num_images // 2} for {num_images} training images")


def assign_folds(labels: Ints, pairs: Sequence[Pair], num_folds: int, seed: int) -> Ints:
    """The fold of each training image, (N,) int64, 0..num_folds - 1.

    labels: (N,) int64. pairs: best first; those within 'train' are kept in one fold. Each class is spread as evenly as
    they permit: over two folds at least, if not all its images are duplicates of one. Raises UsageError if a fold would
    have no image.
    """
    group_of = _groups(len(labels), pairs, max(2, len(labels) // (num_folds * GROUPS_PER_FOLD)))
    sizes = np.bincount(group_of, minlength=len(labels))
    if (num_groups := np.count_nonzero(sizes)) < num_folds:
        raise UsageError(f"folds is {num_folds}; expected at most {num_groups}: the training images without duplicates")
    # group after group, the largest first, then in random order
    order = np.lexsort((raw_bits(seed, 0, "folds", len(labels))[group_of], -sizes[group_of]))
    folds = [-1] * len(labels)
    of_group: dict[int, int] = {}
    totals = [0] * num_folds
    counts = [[0] * num_folds for _ in range(int(labels.max()) + 1)]  # by class and fold
    for image, group, label in zip(order.tolist(), group_of[order].tolist(), labels[order].tolist(), strict=True):
        if group not in of_group:
            of_group[group] = min(range(num_folds), key=lambda fold: (counts[label][fold], totals[fold]))
        fold = of_group[group]
        folds[image] = fold
        counts[label][fold] += 1
        totals[fold] += 1
    return np.array(folds, dtype=np.int64)


def train_indices(labels: Ints, folds: Ints, fold: int) -> Ints:
    """The images that the network of `fold` is trained on, (M,) int64, sorted: those of the other folds, and all images
    of a class that no other fold has."""
    return np.flatnonzero((folds != fold) | single_fold_classes(labels, folds)[labels])


def single_fold_classes(labels: Ints, folds: Ints) -> npt.NDArray[np.bool_]:
    """Which classes have all their images in one fold, (num_classes,) bool; nothing outside them says what they are."""
    counts = np.zeros((int(labels.max()) + 1, int(folds.max()) + 1), np.int64)
    np.add.at(counts, (labels, folds), 1)
    return (counts > 0).sum(axis=1) == 1


def _groups(num_images: int, pairs: Sequence[Pair], max_size: int) -> Ints:
    """(N,) int64: images of one group have one number, that of an image of it. The best pairs join first; those that
    would make a group of more than `max_size` images do not, unless they are exact."""
    parent, size = list(range(num_images)), [1] * num_images

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    for pair in pairs:
        if pair.first.split == pair.second.split == "train":
            first, second = root(pair.first.index), root(pair.second.index)
            if first != second and (pair.exact or size[first] + size[second] <= max_size):
                parent[second] = first
                size[first] += size[second]
    return np.array([root(image) for image in range(num_images)], dtype=np.int64)
