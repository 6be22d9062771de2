"""Blank, constant, dark, bright, stretched images, and those unlike their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fastcifar import convert, open_beton
from fastcifar.audit.images import _outliers, check_images
from fastcifar.audit.issues import IMAGES
from fastcifar.data.image_files import FITS
from tests.test_duplicates import betons, pictures


def test_each_kind_is_found_and_an_ordinary_image_is_not(tmp_path: Path) -> None:
    train = pictures(40)
    noise = np.random.default_rng(0).integers(-5, 6, (32, 32, 3))
    train[3], train[5] = 200, np.clip(100 + noise, 0, 255)
    train[8], train[9] = np.clip(5 + 2 * noise, 0, 255), np.clip(250 + 2 * noise, 0, 255)
    issues = check_images(betons(tmp_path, train, pictures(10, 1)))
    found = {(issue.kind, issue.image.split, issue.image.index) for issue in issues}
    assert found == {("blank", "train", 3), ("constant", "train", 5), ("dark", "train", 8), ("bright", "train", 9)}
    assert all(
        issue.kind in IMAGES and 0 <= issue.score <= 1 and issue.label == "ab"[issue.image.index % 2]
        for issue in issues
    )


def test_large_images_of_one_colour_are_blank(tmp_path: Path) -> None:
    images = np.empty((12, 830, 830, 3), np.uint8)
    images[:] = np.array([10, 101, 243, 255] * 3, np.uint8)[:, None, None, None]
    issues = check_images(betons(tmp_path, images, images[:2]))
    assert {(issue.kind, issue.score) for issue in issues} == {("blank", 1.0)}
    assert len(issues) == 14


def test_an_outlier_is_far_from_its_class() -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    vectors[13] += 30
    labels = np.arange(60) % 2
    ((index, score),) = _outliers(vectors, labels)
    assert index == 13
    assert 0 < score < 1
    assert _outliers(vectors, np.arange(60)) == []  # a class of one image each


def test_copies_of_an_image_do_not_make_the_others_outliers() -> None:
    vectors = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    vectors[:120] = vectors[0]
    assert _outliers(vectors, np.zeros(200, np.int64)) == []
    vectors[150] += 30
    assert [index for index, _ in _outliers(vectors, np.zeros(200, np.int64))] == [150]


@pytest.mark.parametrize("fit", FITS)
def test_the_aspect_of_an_original_is_known(tmp_path: Path, fit: str) -> None:
    rng = np.random.default_rng(3)
    for split, number in (("train", 30), ("test", 10)):
        for index in range(number):
            shape = {4: (16, 64), 7: (90, 30), 8: (40, 60)}.get(index, (40, 40))
            path = tmp_path / "source" / split / "ab"[index % 2] / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).resize(shape[::-1]).save(path)
    convert(str(tmp_path / "source"), tmp_path / "data", size=(32, 32), fit=fit)
    beton = open_beton(tmp_path / "data" / "train.beton")
    origins = list(beton.origins())
    issues = [issue for issue in check_images({"train": beton}) if issue.kind == "aspect"]
    assert [origins[issue.image.index] for issue in issues] == ["train/a/04.png", "train/b/07.png"]
    assert [issue.score for issue in issues] == pytest.approx([3 / 4, 2 / 3])
