"""Which training images are held out for validation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastcifar.augment.draws import raw_bits
from fastcifar.errors import UsageError

DEFAULT_SHARE = 10  # one in ten, which is 5,000 of CIFAR's 50,000


def hold_out(
    labels: npt.NDArray[np.int64], num_classes: int, val_size: int | None, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows to train on and rows to validate on, each sorted (M,) int64; the same number of each class is held out.

    `val_size` None holds out a tenth. The rows depend on the labels and the seed alone.
    Raises UsageError if a class has too few images for that.
    """
    smallest = int(np.bincount(labels, minlength=num_classes).min())
    if val_size is None:
        val_size = min(len(labels) // DEFAULT_SHARE // num_classes, max(smallest - 1, 0)) * num_classes
    if val_size % num_classes:
        raise UsageError(f"val_size is {val_size}; expected a multiple of {num_classes}, the number of classes")
    each = val_size // num_classes
    if each and each >= smallest:
        raise UsageError(
            f"val_size is {val_size}, {each} of each class, and a class has {smallest} training images; "
            f"expected at most {max(smallest - 1, 0) * num_classes}"
        )
    keys = raw_bits(seed, 0, "validation", len(labels))
    by_class = np.lexsort((keys, labels))  # class after class, each in random order
    starts = np.searchsorted(labels[by_class], np.arange(num_classes))
    held = np.zeros(len(labels), dtype=bool)
    for start in starts:
        held[by_class[start : start + each]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
