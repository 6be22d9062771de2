"""The order of an epoch is a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest

from fastcifar.loaders.order import WINDOW_PAGES, balanced_images, order


def test_golden_rows() -> None:
    assert order(0, 0, 10).tolist() == GOLDEN_FULL
    assert order(0, 0, 20, shuffle="window", pages=np.arange(20)).tolist() == GOLDEN_WINDOW


@pytest.mark.parametrize("shuffle", ["full", "window", "none"])
def test_every_index_occurs_once(shuffle: str) -> None:
    rows = order(1, 2, 10_000, shuffle=shuffle, pages=np.arange(10_000) // 30)
    assert np.sort(rows).tolist() == list(range(10_000))


def test_epochs_differ() -> None:
    assert (order(0, 0, 1_000) != order(0, 1, 1_000)).mean() > 0.9


def test_none_is_the_order_of_the_file() -> None:
    assert order(5, 5, 7, shuffle="none").tolist() == list(range(7))


def test_a_window_never_holds_more_than_16_pages() -> None:
    pages = np.random.default_rng(0).permutation(np.arange(3_000) // 50)  # 60 pages, rows anywhere in them
    rows = order(0, 3, 3_000, shuffle="window", pages=pages)
    seen_in_order = pages[rows]
    first = {page: int(np.argmax(seen_in_order == page)) for page in range(60)}
    last = {page: 2_999 - int(np.argmax(seen_in_order[::-1] == page)) for page in range(60)}
    open_at = [sum(first[p] <= i <= last[p] for p in range(60)) for i in range(0, 3_000, 7)]
    assert max(open_at) <= WINDOW_PAGES
    assert (np.diff(rows) == 1).mean() < 0.1


def test_the_pages_of_a_window_are_others_in_each_epoch_and_for_each_seed() -> None:
    pages = np.arange(3_000) // 50

    def first_window(seed: int, epoch: int) -> set[int]:
        rows = order(seed, epoch, len(pages), shuffle="window", pages=pages)
        return set(pages[rows[: WINDOW_PAGES * 50]].tolist())

    windows = [first_window(0, 0), first_window(0, 1), first_window(1, 0)]
    assert all(len(window) == WINDOW_PAGES for window in windows)
    assert windows[0] != windows[1] != windows[2] != windows[0]


def unbalanced(num: int = 1_000) -> np.ndarray:
    """Labels of four classes, one of them without images: about 900, 90 and 10 images."""
    return np.random.default_rng(0).choice([0, 1, 3], num, p=[0.9, 0.09, 0.01])


def test_each_class_is_drawn_equally_often_and_each_of_its_images_too() -> None:
    labels = unbalanced()
    for epoch in range(3):
        drawn = balanced_images(5, epoch, labels, np.ones(1_000, bool))
        assert sorted(np.bincount(labels[drawn], minlength=4)) == [0, 333, 333, 334]
        for label in (0, 1, 3):
            times = np.bincount(drawn, minlength=1_000)[labels == label]
            assert times.max() - times.min() <= 1, "an image is repeated before others of its class were used"


def test_the_draws_are_a_function_of_seed_and_epoch() -> None:
    labels, every = unbalanced(), np.ones(1_000, bool)
    drawn = balanced_images(5, 2, labels, every)
    assert (drawn == balanced_images(5, 2, labels, every)).all()
    for seed, epoch in ((5, 3), (6, 2)):
        other = balanced_images(seed, epoch, labels, every)
        both = set(other[labels[other] == 0]) & set(drawn[labels[drawn] == 0])
        assert len(both) < 180, "of the 900 images of the large class, most of the 333 are drawn again"
    counts = [np.bincount(labels[balanced_images(5, epoch, labels, every)], minlength=4) for epoch in range(20)]
    assert set(np.argmax(counts, axis=1)) == {0, 1, 3}, "the same class has the one image more in each epoch"
    assert balanced_images(0, 0, np.array([0, 0, 0, 0, 0, 1, 2, 2]), np.ones(8, bool)).tolist() == GOLDEN_BALANCED


def test_only_selected_images_are_drawn_and_the_others_keep_their_slots() -> None:
    labels, selected = unbalanced(), np.arange(1_000) % 3 != 0
    drawn = balanced_images(1, 0, labels, selected)
    assert selected[drawn[selected]].all()
    assert (drawn[~selected] == np.flatnonzero(~selected)).all()
    occurs = np.isin(np.arange(1_000), drawn)
    assert (drawn[occurs] == np.flatnonzero(occurs)).all(), "an image that is drawn is not in its own slot"


def test_balanced_classes_stay_as_they_are() -> None:
    assert balanced_images(3, 4, np.arange(600) % 10, np.ones(600, bool)).tolist() == list(range(600))


GOLDEN_FULL: list[int] = [0, 2, 3, 6, 5, 8, 4, 1, 7, 9]
GOLDEN_WINDOW: list[int] = [0, 13, 2, 16, 3, 6, 19, 5, 8, 4, 12, 1, 14, 11, 18, 9, 15, 17, 7, 10]
GOLDEN_BALANCED: list[int] = [0, 5, 5, 3, 7, 5, 6, 7]
