"""Blank, constant, dark, bright, stretched images, and those unlike their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastcifar.audit.images import check_images
from fastcifar.audit.issues import IMAGES
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


def test_an_outlier_is_far_from_its_class_in_the_given_features(tmp_path: Path) -> None:
    splits = betons(tmp_path, pictures(60), pictures(10, 1))
    vectors = {
        split: np.random.default_rng(1).normal(size=(len(beton), 8)).astype(np.float32)
        for split, beton in splits.items()
    }
    vectors["train"][13] += 30
    (issue,) = check_images(splits, vectors)
    assert (issue.kind, issue.image.index, issue.label) == ("outlier", 13, "b")
    assert 0 < issue.score < 1


def test_the_aspect_of_a_padded_image_is_known(tmp_path: Path) -> None:
    train = pictures(30)
    train[4, :12] = train[4, 20:] = 255
    wide = betons(tmp_path / "pad", train, pictures(10, 1), size=(32, 32), fit="pad")
    assert [(issue.kind, issue.image.index) for issue in check_images(wide)] == [("aspect", 4)]
    assert check_images(betons(tmp_path / "crop", train, pictures(10, 1))) == []
