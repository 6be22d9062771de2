"""Augmentation parameters are a pure function of (seed, epoch, column), in every version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastcifar.augment.params import below, happens, raw_bits, rotation_terms, sample_params, tone_table
from fastcifar.config import NO_AUGMENT, AugmentConfig
from fastcifar.errors import UsageError


def test_golden_rows() -> None:
    table = sample_params(AugmentConfig(), seed=0, epoch=0, num_images=4)
    assert simple(table) == GOLDEN_0_0
    table = sample_params(AugmentConfig(), seed=2**40 + 7, epoch=12, num_images=4)
    assert simple(table) == GOLDEN_LARGE


def simple(table: np.ndarray) -> list[tuple[int, int, bool, int, int]]:
    """The columns of crop, flip and one hole; the others hold no change."""
    assert table["rotation"].tolist() == table["hue"].tolist() == table["value"].tolist() == [0] * len(table)
    assert table["cutout_height"].tolist() == table["cutout_width"].tolist() == [[8]] * len(table)
    columns = (table[name].ravel().tolist() for name in ("crop_y", "crop_x", "flip", "cutout_y", "cutout_x"))
    return list(zip(*columns, strict=True))


EVERYTHING = AugmentConfig(
    rotate_degrees=15.0,
    rotate_p=0.5,
    hue_shift=20,
    saturation_shift=30,
    value_shift=40,
    brightness=50,
    contrast=0.3,
    colour_p=0.25,
    cutout_size=16,
    cutout_min_size=4,
    cutout_p=0.75,
    cutout_holes=2,
)


COLOURS = ("hue", "saturation", "value", "brightness", "contrast")


def test_golden_rows_of_every_column() -> None:
    table = sample_params(EVERYTHING, seed=5, epoch=2, num_images=200)
    for name, expected in GOLDEN_EVERYTHING.items():
        got = table[name][:6].tolist()
        assert got == pytest.approx(expected) if name == "rotation" else got == expected, name


def test_probabilities_are_respected() -> None:
    table = sample_params(EVERYTHING, 0, 0, 20_000)
    assert abs((table["rotation"] != 0).mean() - 0.5) < 0.02
    assert abs((table["saturation"] != 0).mean() - 0.25 * 60 / 61) < 0.02
    assert abs((table["cutout_height"][:, 1] != 0).mean() - 0.75) < 0.02
    assert np.unique(table["cutout_width"]).tolist() == [0, *range(4, 17)]
    assert np.unique(table["hue"]).tolist() == list(range(-20, 21))
    assert np.unique(table["brightness"]).tolist() == list(range(-50, 51))
    assert np.unique(table["contrast"]).tolist() == list(range(-77, 78))  # round(0.3 * 256)
    changed = np.any([table[name] != 0 for name in COLOURS], axis=0)
    assert abs(changed.mean() - 0.25) < 0.02, "not all of them, or none"
    assert 14.9 < table["rotation"].max() <= 15
    assert -15 <= table["rotation"].min() < -14.9
    cut = table["cutout_height"][:, 0] > 0
    assert abs(np.corrcoef(table["cutout_y"][cut].T)[0, 1]) < 0.03, "the holes follow each other"


def test_alternating_flip_flips_every_image_every_second_epoch() -> None:
    augment = AugmentConfig(flip_mode="alternating")
    flips = [sample_params(augment, 1, epoch, 1_000)["flip"] for epoch in range(4)]
    assert (flips[0] != flips[1]).all()
    assert (flips[0] == flips[2]).all()
    assert (flips[1] == flips[3]).all()
    assert abs(flips[0].mean() - 0.5) < 0.05
    assert (sample_params(augment, 2, 0, 1_000)["flip"] != flips[0]).any()


def test_probabilities_0_and_1_are_never_and_always() -> None:
    bits = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    assert happens(bits, 0).tolist() == [False] * 3
    assert happens(bits, 1).tolist() == [True] * 3
    assert happens(bits, 0.5).tolist() == [True, False, False]


def test_terms_of_a_rotation() -> None:
    degrees = np.array([0, 90, -90, 180, 30], dtype=np.float32)
    expected = [[65536, 0], [0, 65536], [0, -65536], [-65536, 0], [56756, 32768]]
    assert rotation_terms(degrees).tolist() == expected


def test_terms_of_brightness_and_contrast() -> None:
    assert tone_table(0, 0).tolist() == list(range(256))
    assert tone_table(10, 128)[[0, 100, 128, 250]].tolist() == [0, 101, 143, 255]  # 128 + 1.5 * (x + 10 - 128)
    assert tone_table(0, 128)[[127, 129]].tolist() == [127, 130]  # 126.5 and 129.5: a half is rounded up
    assert tone_table(255, -256).tolist() == [128] * 256
    assert tone_table(-255, 0).tolist() == [0] * 256


def test_golden_bits() -> None:
    assert raw_bits(0, 0, "flip", 3).tolist() == GOLDEN_BITS


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    assert (sample_params(AugmentConfig(), 3, 5, 1_000)[:10] == sample_params(AugmentConfig(), 3, 5, 10)).all()


@pytest.mark.parametrize("changed", [{"seed": 2}, {"epoch": 3}])
def test_seed_and_epoch_change_the_params(changed: dict[str, int]) -> None:
    base = {"seed": 1, "epoch": 2, "num_images": 100}
    assert (
        sample_params(AugmentConfig(), **base) != sample_params(AugmentConfig(), **{**base, **changed})
    ).mean() > 0.9


def test_turning_cutout_on_does_not_change_the_crops() -> None:
    with_it = sample_params(AugmentConfig(cutout_size=8), 0, 0, 100)
    without = sample_params(AugmentConfig(cutout_size=0), 0, 0, 100)
    for column in ("crop_y", "crop_x", "flip"):
        assert (with_it[column] == without[column]).all()
    assert not without["cutout_y"].any()


def test_turning_brightness_on_changes_no_other_column() -> None:
    table = sample_params(EVERYTHING, 5, 2, 200)
    for name, off in (("brightness", 0), ("contrast", 0.0), ("hue", 0)):
        setting = "hue_shift" if name == "hue" else name
        without = sample_params(replace(EVERYTHING, **{setting: off}), 5, 2, 200)
        assert not without[name].any()
        assert all((without[other] == table[other]).all() for other in table.dtype.names or () if other != name)


def test_all_allowed_values_occur_and_no_others() -> None:
    table = sample_params(AugmentConfig(crop_padding=2, cutout_size=8), 0, 0, 20_000, (16, 24, 3))
    assert np.unique(table["crop_y"]).tolist() == np.unique(table["crop_x"]).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(table["cutout_y"]).tolist() == list(range(-4, 12))
    assert np.unique(table["cutout_x"]).tolist() == list(range(-4, 20))
    assert abs(table["flip"].mean() - 0.5) < 0.02


def test_columns_are_independent() -> None:
    table = sample_params(AugmentConfig(), 0, 0, 20_000)
    names = ("crop_y", "crop_x", "flip", "cutout_y", "cutout_x")
    columns = np.array([table[name].ravel() for name in names], dtype=float)
    assert np.abs(np.corrcoef(columns) - np.eye(5)).max() < 0.03


def test_no_augmentation_gives_parameters_of_no_change() -> None:
    assert not np.frombuffer(sample_params(NO_AUGMENT, 0, 0, 5).tobytes(), np.uint8).any()


def test_no_images_give_an_empty_table() -> None:
    assert sample_params(AugmentConfig(), 0, 0, 0).shape == (0,)


def test_below_stays_below_its_bound() -> None:
    bits = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    assert below(bits, 9).tolist() == [0, 4, 8]


def test_images_too_large_for_16_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="the images are 1x16384; expected at most 16383x16383"):
        sample_params(NO_AUGMENT, 0, 0, 1, (1, 16_384, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutout_size": 33}, "cutout_size is 33; the images are 32x32: expected 0..32"),
        (
            {"crop_padding": 32, "padding_mode": "reflect"},
            "crop_padding is 32 with padding_mode 'reflect'; the images are 32x32: expected 0..31",
        ),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample_params(AugmentConfig(**settings), 0, 0, 10)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding is -1; expected 0..16383"),
        ({"crop_padding": 1.5}, "crop_padding is 1.5; expected a whole number, 0..16383"),
        ({"padding_mode": "wrap"}, "padding_mode is 'wrap'; expected one of: zero, reflect"),
        ({"flip": 1}, "flip is 1; expected True or False"),
        ({"cutout_fill": "grey"}, "cutout_fill is 'grey'; expected one of: mean, zero"),
        ({"flip_mode": "often"}, "flip_mode is 'often'; expected one of: random, alternating"),
        ({"rotate_degrees": float("nan")}, "rotate_degrees is nan; expected a number, 0..180"),
        ({"rotate_degrees": -1}, "rotate_degrees is -1; expected a number, 0..180"),
        ({"rotate_p": 1.1}, "rotate_p is 1.1; expected a number, 0..1"),
        ({"hue_shift": 91}, "hue_shift is 91; expected 0..90"),
        ({"saturation_shift": 1.5}, "saturation_shift is 1.5; expected a whole number, 0..255"),
        ({"value_shift": -1}, "value_shift is -1; expected 0..255"),
        ({"brightness": 256}, "brightness is 256; expected 0..255"),
        ({"contrast": 1.5}, "contrast is 1.5; expected a number, 0..1"),
        ({"colour_p": "often"}, "colour_p is 'often'; expected a number, 0..1"),
        ({"cutout_size": 4, "cutout_min_size": 5}, "cutout_min_size is 5; expected 1..4"),
        ({"cutout_p": -0.1}, "cutout_p is -0.1; expected a number, 0..1"),
        ({"cutout_holes": 0}, "cutout_holes is 0; expected 1..64"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        AugmentConfig(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == message


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
GOLDEN_EVERYTHING: dict[str, list[object]] = {
    "crop_y": [5, 1, 4, 4, 3, 3],
    "crop_x": [5, 4, 1, 7, 6, 7],
    "flip": [False, False, False, False, False, True],
    "rotation": [0.0, 8.16578483581543, 0.0, 0.0, 1.1631006002426147, 10.551193237304688],
    "hue": [0, 0, 0, -19, -16, 0],
    "saturation": [0, 0, 0, 12, 8, 0],
    "value": [0, 0, 0, 28, 2, 0],
    "brightness": [0, 0, 0, 16, 45, 0],
    "contrast": [0, 0, 0, 54, 22, 0],
    "cutout_y": [[18, 17], [1, 4], [9, 9], [12, 16], [-6, 27], [4, 27]],
    "cutout_x": [[-3, -1], [10, 12], [10, 21], [26, -5], [20, 4], [16, 7]],
    "cutout_height": [[7, 13], [9, 9], [16, 4], [14, 13], [16, 5], [9, 5]],
    "cutout_width": [[16, 16], [8, 8], [13, 16], [4, 16], [15, 11], [9, 9]],
}


def test_numbers_of_numpy_become_plain() -> None:
    config = AugmentConfig(crop_padding=np.int64(3), rotate_degrees=np.float64(5.0))  # type: ignore[arg-type]
    assert type(config.crop_padding) is int
    assert type(config.rotate_degrees) is float
