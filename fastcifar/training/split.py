"""Which training images are held out for validation."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from fastcifar.augment.params import raw_bits
from fastcifar.data.statistics import draw_by_class, held_out_by_default
from fastcifar.errors import UsageError, join_names

log = logging.getLogger(__name__)
MIN_VAL_SIZE = 100
"""With fewer images the standard error of an accuracy of 50% exceeds 5 points: too much to select weights by."""


def hold_out(
    labels: npt.NDArray[np.int64], num_classes: int, val_size: int | None, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and validation indices, each (M,) int64, sorted; the same share of each class is held out.

    val_size: the number of images to hold out; None: a tenth of each class, rounded down, but at least one image of a
    class with two. At least one image of each class stays for training. The split depends on labels and seed alone.
    Raises UsageError if `val_size` is not possible.
    """
    counts = np.bincount(labels, minlength=num_classes)
    high = np.maximum(counts - 1, 0)
    low = np.minimum(high, 1)
    if val_size is None:
        num_held = held_out_by_default(counts)
    elif val_size == 0:
        num_held = np.zeros_like(counts)
    else:
        if not high.any():
            raise UsageError(f"val_size is {val_size}; expected 0: no class has two training images")
        if not low.sum() <= val_size <= high.sum():
            raise UsageError(
                f"val_size is {val_size}; expected 0, or {low.sum()}..{high.sum()}: at least one image of each class "
                "to validate on, and one to train on"
            )
        num_held = _shares(counts, low, high, val_size)
    held = draw_by_class(labels, num_held, raw_bits(seed, 0, "validation", len(labels)))
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shares(
    counts: npt.NDArray[np.int64], low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], total: int
) -> npt.NDArray[np.int64]:
    """(num_classes,) int64: integers from `low` to `high` with the sum `total`, nearly in proportion to `counts`."""
    quota = total * counts / counts.sum()
    num = np.clip(total * counts // counts.sum(), low, high)
    while difference := total - int(num.sum()):
        step = 1 if difference > 0 else -1
        movable = num < high if step > 0 else num > low
        lacking = np.where(movable, (quota - num) * step, -np.inf)
        first = np.argsort(-lacking, kind="stable")[: min(abs(difference), int(movable.sum()))]
        num[first] += step
    return num


def warn_of_small_validation(num_val: int, classes_without: list[str], val_size: int | None) -> None:
    """Warn if there are too few validation images to select weights by, or none of some classes; not if `val_size`
    is 0."""
    if val_size == 0:
        return
    if not num_val:
        log.warning("no validation images: no class has two training images; the weights of the last epoch are kept")
        return
    if num_val < MIN_VAL_SIZE:
        log.warning(
            "only %d validation images: expected at least %d to select weights by (--val-size N); "
            "--val-size 0 trains on all",
            num_val,
            MIN_VAL_SIZE,
        )
    if classes_without:
        names = join_names(classes_without)
        log.warning("no validation image of %d classes with at most one image: %s", len(classes_without), names)
