"""Choices are a pure function of (seed, epoch, column), for ever."""

from __future__ import annotations

import numpy as np
import pytest

from fastcifar.augment.draws import CHOICES, below, check_choices, draws, raw_bits
from fastcifar.config import NO_AUGMENT, AugmentConfig
from fastcifar.errors import UsageError

SHAPE = (32, 32, 3)


def test_golden_rows() -> None:
    table = draws(AugmentConfig(), seed=0, epoch=0, num_images=4)
    assert table.tolist() == GOLDEN_0_0
    table = draws(AugmentConfig(), seed=2**40 + 7, epoch=12, num_images=4)
    assert table.tolist() == GOLDEN_LARGE


def test_golden_bits() -> None:
    assert raw_bits(0, 0, "flip", 3).tolist() == GOLDEN_BITS


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    assert (draws(AugmentConfig(), 3, 5, 1_000)[:10] == draws(AugmentConfig(), 3, 5, 10)).all()


@pytest.mark.parametrize("changed", [{"seed": 2}, {"epoch": 3}])
def test_seed_and_epoch_change_the_choices(changed: dict[str, int]) -> None:
    base = {"seed": 1, "epoch": 2, "num_images": 100}
    assert (draws(AugmentConfig(), **base) != draws(AugmentConfig(), **{**base, **changed})).mean() > 0.9


def test_turning_cutout_on_does_not_change_the_crops() -> None:
    with_it = draws(AugmentConfig(cutout_size=8), 0, 0, 100)
    without = draws(AugmentConfig(cutout_size=0), 0, 0, 100)
    for column in ("crop_y", "crop_x", "flip"):
        assert (with_it[column] == without[column]).all()
    assert not without["cutout_y"].any()


def test_every_allowed_value_comes_up_and_no_other() -> None:
    table = draws(AugmentConfig(crop_padding=2, cutout_size=8), 0, 0, 20_000, (16, 24, 3))
    assert np.unique(table["crop_y"]).tolist() == np.unique(table["crop_x"]).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(table["cutout_y"]).tolist() == list(range(-4, 12))
    assert np.unique(table["cutout_x"]).tolist() == list(range(-4, 20))
    assert abs(table["flip"].mean() - 0.5) < 0.02


def test_columns_do_not_follow_each_other() -> None:
    table = draws(AugmentConfig(), 0, 0, 20_000)
    columns = np.array([table[name] for name in CHOICES.names], dtype=float)
    assert np.abs(np.corrcoef(columns) - np.eye(5)).max() < 0.03


def test_nothing_turned_on_draws_no_change() -> None:
    assert not np.frombuffer(draws(NO_AUGMENT, 0, 0, 5).tobytes(), np.uint8).any()


def test_no_images_give_an_empty_table() -> None:
    table = draws(AugmentConfig(), 0, 0, 0)
    assert table.shape == (0,)
    check_choices(table, AugmentConfig(), 0, SHAPE)


def test_below_keeps_within_its_bound() -> None:
    bits = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    assert below(bits, 9).tolist() == [0, 4, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutout_size": 33}, "cutout_size is 33; the images are 32x32: expected 0..32"),
        (
            {"crop_padding": 32, "crop_mode": "reflect"},
            "crop_padding is 32 with crop_mode 'reflect'; the images are 32x32: expected 0..31",
        ),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        draws(AugmentConfig(**settings), 0, 0, 10)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding is -1; expected 0..16383"),
        ({"crop_padding": 1.5}, "crop_padding is 1.5; expected a whole number, 0..16383"),
        ({"crop_mode": "wrap"}, "crop_mode is 'wrap'; expected one of: zero, reflect"),
        ({"flip": 1}, "flip is 1; expected True or False"),
        ({"cutout_fill": "grey"}, "cutout_fill is 'grey'; expected one of: mean, zero"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        AugmentConfig(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_table_of_the_wrong_length_or_range_is_refused() -> None:
    table = draws(AugmentConfig(), 0, 0, 10)
    with pytest.raises(UsageError, match=r"expected .* of shape \(11,\)"):
        check_choices(table, AugmentConfig(), 11, SHAPE)
    table["crop_x"][3] = 9
    with pytest.raises(UsageError, match=r"crop_x is \d+\.\.9; expected 0\.\.8"):
        check_choices(table, AugmentConfig(), 10, SHAPE)


GOLDEN_0_0: list[tuple[int, int, bool, int, int]] = [
    (0, 4, False, -1, 23),
    (7, 5, False, 25, 1),
    (2, 8, False, 11, 1),
    (1, 0, False, 2, 1),
]
GOLDEN_LARGE: list[tuple[int, int, bool, int, int]] = [
    (1, 3, True, 25, 11),
    (2, 4, False, -3, -3),
    (1, 0, False, 22, 27),
    (3, 1, False, 2, 27),
]
GOLDEN_BITS: list[int] = [116674938722351966, 3181766316009878827, 7861124141090463352]
