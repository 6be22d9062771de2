"""Which training images are held out for validation."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from fastcifar.augment.params import raw_bits
from fastcifar.errors import UsageError, join_names

log = logging.getLogger(__name__)
DEFAULT_SHARE = 10  # one in ten, which is 5,000 of CIFAR's 50,000
MIN_VAL_SIZE = 100
"""With fewer images the standard error of an accuracy of a half is over 5 points: too much to choose weights by."""


def hold_out(
    labels: npt.NDArray[np.int64], num_classes: int, val_size: int | None, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices to train on and indices to validate on, each sorted (M,) int64; the same share of each class is held out.

    `val_size` None holds out a tenth of each class, rounded down, and at least one image where a class has two; a
    number holds out so many in all. Of each class one image or more stays to train on. The indices depend on the labels
    and the seed alone. Raises UsageError if so many cannot be held out.
    """
    counts = np.bincount(labels, minlength=num_classes)
    most = np.maximum(counts - 1, 0)
    least = np.minimum(most, 1)
    if val_size is None:
        num_held = np.clip(counts // DEFAULT_SHARE, least, most)
    elif val_size == 0:
        num_held = np.zeros_like(counts)
    else:
        if not most.any():
            raise UsageError(f"val_size is {val_size}; expected 0: no class has two training images")
        if not least.sum() <= val_size <= most.sum():
            raise UsageError(
                f"val_size is {val_size}; expected 0, or {least.sum()}..{most.sum()}: at least one image of each class "
                "to validate on, and one to train on"
            )
        num_held = _shares(counts, least, most, val_size)
    keys = raw_bits(seed, 0, "validation", len(labels))
    by_class = np.lexsort((keys, labels))  # class after class, each in random order
    starts = np.searchsorted(labels[by_class], np.arange(num_classes))
    held = np.zeros(len(labels), dtype=bool)
    for start, num in zip(starts.tolist(), num_held.tolist(), strict=True):
        held[by_class[start : start + num]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shares(
    counts: npt.NDArray[np.int64], least: npt.NDArray[np.int64], most: npt.NDArray[np.int64], total: int
) -> npt.NDArray[np.int64]:
    """How many of each class, (num_classes,) int64, `total` together, in proportion to `counts` as far as whole numbers
    from `least` to `most` allow."""
    quota = total * counts / counts.sum()
    num = np.clip(total * counts // counts.sum(), least, most)
    while difference := total - int(num.sum()):
        step = 1 if difference > 0 else -1
        movable = num < most if step > 0 else num > least
        lacking = np.where(movable, (quota - num) * step, -np.inf)
        first = np.argsort(-lacking, kind="stable")[: min(abs(difference), int(movable.sum()))]
        num[first] += step
    return num


def warn_of_few(num_val: int, without: list[str], val_size: int | None) -> None:
    """Log a warning if the weights of a run are chosen by too few validation images, or by none of the classes
    `without`; not if none was asked for."""
    if val_size == 0:
        return
    if not num_val:
        log.warning("no validation images: no class has two training images; the weights are those of the last epoch")
        return
    if num_val < MIN_VAL_SIZE:
        log.warning(
            "only %d validation images: expected at least %d to choose weights and rates by (--val-size N); "
            "--val-size 0 trains on all",
            num_val,
            MIN_VAL_SIZE,
        )
    if without:
        names = join_names(without)
        log.warning("no validation image of %d classes, which have one training image or none: %s", len(without), names)
