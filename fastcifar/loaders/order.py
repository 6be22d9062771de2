"""The order of the images in an epoch: a pure function of (seed, epoch), the same for every loader and process."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastcifar.augment.params import raw_bits
from fastcifar.data.statistics import draw_by_class

WINDOW_PAGES = 16


def order(
    seed: int,
    epoch: int,
    num_images: int,
    *,
    shuffle: str = "full",
    pages: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """The indices 0 .. num_images - 1 in the order of one epoch, (num_images,) int64.

    shuffle 'full': shuffled. 'window', for betons larger than memory: the pages of the file are shuffled, then the
    images within each window of 16 pages; `pages`, (num_images,) int64, is the page of each image.
    'none': the order of the file.
    """
    if shuffle == "none":
        return np.arange(num_images)
    keys = raw_bits(seed, epoch, "order", num_images)
    if shuffle == "full":
        # the index is in the low bits of its key: sort is several times faster than argsort, and there are no ties
        low = np.uint64((1 << max(num_images - 1, 1).bit_length()) - 1)
        return (np.sort(keys & ~low | np.arange(num_images, dtype=np.uint64)) & low).astype(np.int64)
    assert pages is not None
    distinct, page_of_image = np.unique(pages, return_inverse=True)
    shuffled = np.argsort(raw_bits(seed, epoch, "page_order", len(distinct)), kind="stable")
    position = np.empty(len(distinct), dtype=np.int64)
    position[shuffled] = np.arange(len(distinct))
    window = position[page_of_image] // WINDOW_PAGES
    return np.lexsort((keys, window))


def balanced_images(
    seed: int, epoch: int, labels: npt.NDArray[np.int64], selected: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """The image in each slot of one epoch, (N,) int64: as many as are selected, each class equally often.

    labels, selected: (N,) int64 and bool, of the images; slots that are not selected keep their own image. The numbers
    of images per class differ by at most one, and so do those of the images of a class: none occurs a third time before
    each other one has occurred twice. An image that occurs is in its own slot; further occurrences take the slots of
    those that do not. A pure function of (seed, epoch).
    """
    candidates = np.flatnonzero(selected)
    counts = np.bincount(labels[candidates])
    classes = np.flatnonzero(counts)
    each, rest = divmod(len(candidates), len(classes))
    wanted = np.zeros_like(counts)
    wanted[classes] = each
    wanted[classes[np.argsort(raw_bits(seed, epoch, "sampler_class", len(classes)), kind="stable")[:rest]]] += 1
    rounds, more = np.divmod(wanted, np.maximum(counts, 1))
    keys = raw_bits(seed, epoch, "sampler", len(labels))[candidates]
    occurs = rounds[labels[candidates]] + draw_by_class(labels[candidates], more, keys)
    images = np.arange(len(labels))
    images[candidates[occurs == 0]] = np.repeat(candidates, np.maximum(occurs - 1, 0))
    return images
