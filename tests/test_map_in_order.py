"""Decoding on several threads: results in order, errors raised, and an iterator that is left holds nothing up."""

from __future__ import annotations

import threading

import pytest

from fastcifar.converters.sources import CHUNK_IMAGES, map_in_order


def test_results_come_in_the_order_of_the_items() -> None:
    items = list(range(10 * CHUNK_IMAGES + 3))
    assert list(map_in_order(lambda item: item * item, items, lambda item: 1, num_threads=4)) == [i * i for i in items]


def test_items_are_taken_only_a_few_chunks_ahead() -> None:
    taken = []
    items = (taken.append(i) or i for i in range(100 * CHUNK_IMAGES))  # type: ignore[func-returns-value]
    results = map_in_order(lambda item: item, items, lambda item: 1, num_threads=2)
    next(results)
    assert len(taken) <= 4 * CHUNK_IMAGES


def test_an_error_is_raised_where_its_result_would_come() -> None:
    results = map_in_order(lambda item: 1 // item, [1, 2, 0], lambda item: 2**30, num_threads=2)
    assert [next(results), next(results)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_iterator_that_is_left_does_not_wait_for_its_threads() -> None:
    """The garbage collector may close it, in any thread."""
    is_released = threading.Event()

    def decode(item: int) -> int:
        if item:
            is_released.wait()
        return item

    results = map_in_order(decode, range(10), lambda item: 2**30, num_threads=2)
    assert next(results) == 0
    try:
        results.close()  # type: ignore[attr-defined]
        assert not is_released.is_set()
    finally:
        is_released.set()
