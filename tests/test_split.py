"""The split of the training images: a share of each class, as ever for balanced data, and said where it is small."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest

from fastcifar.errors import UsageError
from fastcifar.training.split import MIN_VAL_SIZE, hold_out, warn_of_small_validation


def held_of(counts: list[int], val_size: int | None, seed: int = 0) -> list[int]:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    rows, held = hold_out(labels, len(counts), val_size, seed)
    assert sorted([*rows, *held]) == list(range(len(labels)))
    return np.bincount(labels[held], minlength=len(counts)).tolist()


def test_the_seed_decides_which_images_are_held_out() -> None:
    labels = np.random.default_rng(0).permutation(1_000) % 10
    _, held = hold_out(labels, 10, 200, seed=3)
    assert np.bincount(labels[held]).tolist() == [20] * 10
    assert (hold_out(labels, 10, 200, seed=3)[1] == held).all()
    assert (hold_out(labels, 10, 200, seed=4)[1] != held).any()


def test_the_split_of_balanced_data_is_the_same_as_ever() -> None:
    """Golden: computed before the split of unbalanced data was one by shares."""
    _, held = hold_out(np.arange(50_000) % 10, 10, None, seed=0)
    assert len(held) == 5_000
    assert hashlib.sha256(held.tobytes()).hexdigest()[:16] == GOLDEN_TENTH
    _, held = hold_out(np.arange(5_000) % 10, 10, 1_200, seed=5)
    assert hashlib.sha256(held.tobytes()).hexdigest()[:16] == GOLDEN_1200


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([400, 1], [40, 0]),
        ([400, 2], [40, 1]),
        ([5_000, 500, 50, 5], [500, 50, 5, 1]),
        ([3] * 10, [1] * 10),
        ([19, 20, 0], [1, 2, 0]),
        ([1, 1], [0, 0]),
    ],
)
def test_a_tenth_of_each_class_is_held_out_and_one_where_it_has_two(counts: list[int], expected: list[int]) -> None:
    assert held_of(counts, None) == expected


@pytest.mark.parametrize(
    ("counts", "val_size", "expected"),
    [
        ([400, 2], 11, [10, 1]),
        ([10] * 10, 15, [2] * 5 + [1] * 5),
        ([900, 90, 9, 1], 100, [90, 9, 1, 0]),
        ([100, 3, 3], 104, [99, 2, 2]),
        ([100, 3, 3], 103, [99, 2, 2]),
        ([50, 50], 0, [0, 0]),
    ],
)
def test_any_number_can_be_held_out_of_unbalanced_data(counts: list[int], val_size: int, expected: list[int]) -> None:
    if val_size > sum(expected):
        with pytest.raises(UsageError, match=r"val_size is 104; expected 0, or 3\.\.103"):
            held_of(counts, val_size)
    else:
        assert held_of(counts, val_size) == expected


@pytest.mark.parametrize("val_size", [5, 91, 100, 1_000])
def test_a_validation_set_that_cannot_be_is_refused(val_size: int) -> None:
    with pytest.raises(UsageError, match=rf"val_size is {val_size}; expected 0, or 10\.\.90: at least one image"):
        hold_out(np.arange(100) % 10, 10, val_size, seed=0)


def test_every_size_and_imbalance_holds_out_exactly_as_many() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        counts = np.maximum(1, random.pareto(0.7, random.integers(2, 9)).astype(int) % 300 + random.integers(1, 4))
        num_two = int((counts > 1).sum())
        size = int(random.integers(num_two, (counts - 1).sum() + 1))
        held = held_of(counts.tolist(), size or None)
        if size:
            assert sum(held) == size
        assert all(h < n and (h >= 1 or n == 1) for h, n in zip(held, counts, strict=True))


def test_too_few_images_to_choose_by_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastcifar"):
        warn_of_small_validation(MIN_VAL_SIZE, [], None)
        warn_of_small_validation(0, ["cat"], 0)
        assert caplog.messages == []
        warn_of_small_validation(2, ["rare"], None)
    few, without = caplog.messages
    assert "only 2 validation images: expected at least 100" in few
    assert "no validation image of 1 classes" in without
    assert without.endswith(": rare")


GOLDEN_TENTH = "6abe01fb1a23ea4d"
GOLDEN_1200 = "9b3507ccd12c3c36"
