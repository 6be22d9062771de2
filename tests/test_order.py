"""The order of an epoch is a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest

from fastcifar.loaders.order import WINDOW_PAGES, order


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


GOLDEN_FULL: list[int] = [0, 2, 3, 6, 5, 8, 4, 1, 7, 9]
GOLDEN_WINDOW: list[int] = [0, 13, 2, 16, 3, 6, 19, 5, 8, 4, 12, 1, 14, 11, 18, 9, 15, 17, 7, 10]
