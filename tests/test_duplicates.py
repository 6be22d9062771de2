"""Exact and near-duplicates within and across splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from fastcifar import open_beton
from fastcifar.audit import duplicates
from fastcifar.audit.appearance import alignment_scores, features, to_greys
from fastcifar.audit.duplicates import find_pairs
from fastcifar.audit.issues import Pair
from fastcifar.converters import Sample, Source, convert
from fastcifar.data.beton import Beton
from fastcifar.training.progress import SilentReporter

Images = npt.NDArray[np.uint8]


def pictures(count: int, seed: int = 0, side: int = 32) -> Images:
    """(count, side, side, 3) uint8: smooth random pictures."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(PIL.Image.fromarray(image).resize((side, side), 3)) for image in coarse])


class Split:
    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self):  # type: ignore[no-untyped-def]
        for number, image in enumerate(self._images):
            yield Sample(image, number % 2)


def betons(folder: Path, train: Images, test: Images, **options: object) -> dict[str, Beton]:
    splits = {"train": Split(train), "test": Split(test)}
    convert(Source(description="pictures", class_names=("a", "b"), splits=splits), folder, **options)  # type: ignore[arg-type]
    return {split: open_beton(folder / f"{split}.beton") for split in splits}


def places(pairs: list[Pair]) -> set[tuple[str, int, str, int]]:
    return {(pair.first.split, pair.first.index, pair.second.split, pair.second.index) for pair in pairs}


def shifted(image: Images) -> Images:
    return np.roll(image, (2, -3), (0, 1))


def enlarged(image: Images) -> Images:
    return np.asarray(PIL.Image.fromarray(image[2:-2, 2:-2]).resize((32, 32), 3))


def stretched(image: Images) -> Images:
    return np.asarray(PIL.Image.fromarray(image[:, 3:-3]).resize((32, 32), 3))


def recoloured(image: Images) -> Images:
    return (image.astype(float) * 0.6 + (50, 20, 0)).astype(np.uint8)


def compressed(image: Images) -> Images:
    import io

    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "jpeg", quality=40)
    return np.asarray(PIL.Image.open(file))


def mirrored(image: Images) -> Images:
    return image[:, ::-1].copy()


@pytest.fixture(scope="module")
def images() -> Images:
    return pictures(60)


@pytest.mark.parametrize("change", [shifted, enlarged, stretched, recoloured, compressed, mirrored])
def test_the_same_shot_is_found_after_a_change(
    tmp_path: Path, images: Images, change: Callable[[Images], Images]
) -> None:
    splits = betons(tmp_path, images, np.stack([*pictures(20, 1), change(images[7])]))
    pairs = find_pairs(splits)
    assert places(pairs) == {("train", 7, "test", 20)}
    assert not pairs[0].exact
    assert 0.75 <= pairs[0].score < 1


@pytest.mark.parametrize("pixels", [(3, -2), (0, 4)])
def test_a_shift_is_found_among_many_images(tmp_path: Path, pixels: tuple[int, int]) -> None:
    train = pictures(1_100)  # so many that the features are whitened
    test = np.stack([np.roll(image, pixels, (0, 1)) for image in train[:10]])
    found = places(find_pairs(betons(tmp_path, train, test)))
    assert {("train", index, "test", index) for index in range(10)} <= found


def test_many_duplicates_in_a_small_dataset_are_found(tmp_path: Path, images: Images) -> None:
    test = np.stack([shifted(image) for image in images[:20]])
    found = places(find_pairs(betons(tmp_path, images[:30], test)))
    assert {("train", index, "test", index) for index in range(20)} <= found


def test_equal_images_have_a_pair_less_than_images(tmp_path: Path, images: Images) -> None:
    train, test = images.copy(), pictures(20, 1)
    train[10:40] = 128  # a constant image, 30 times
    train[50] = test[3] = test[5] = train[2]
    pairs = find_pairs(betons(tmp_path, train, test))
    assert all(pair.exact and pair.score == 1 for pair in pairs)
    expected = {("train", 10, "train", index) for index in range(11, 40)} | {("train", 2, "train", 50)}
    leaks = {("train", 2, "test", 3), ("train", 50, "test", 3), ("train", 2, "test", 5)}
    assert places(pairs) == expected | leaks | {("test", 3, "test", 5)}


def test_each_copy_of_a_test_image_that_leaks_is_a_leak(tmp_path: Path, images: Images) -> None:
    train, test = images.copy(), pictures(20, 1)
    train[10] = train[2]
    test[[3, 5, 7]] = train[2]
    test[[4, 6]] = compressed(train[9])
    pairs = find_pairs(betons(tmp_path, train, test))
    leaks = {(p.first.index, p.second.index, p.exact) for p in pairs if p.first.split != p.second.split}
    assert leaks == {(i, j, True) for i, j in ((2, 3), (10, 3), (2, 5), (2, 7))} | {(9, 4, False), (9, 6, False)}
    assert len({pair.score for pair in pairs if not pair.exact}) == 1


def test_each_copy_of_a_training_image_that_leaks_is_a_leak(tmp_path: Path, images: Images) -> None:
    train, test = images.copy(), pictures(20, 1)
    train[[30, 50]] = train[5]
    test[7] = compressed(train[5])
    pairs = find_pairs(betons(tmp_path, train, test))
    leaks = {(p.first.index, p.second.index, p.exact) for p in pairs if p.first.split != p.second.split}
    assert leaks == {(i, 7, False) for i in (5, 30, 50)}


def test_progress_ends_at_the_total_of_each_part(tmp_path: Path, images: Images) -> None:
    parts: list[list[Any]] = []

    class Counting(SilentReporter):
        def begin(self, name: str, total: int) -> None:
            parts.append([name, total, 0])

        def advance(self, count: int) -> None:
            parts[-1][2] += count

    find_pairs(betons(tmp_path, images, np.stack([shifted(image) for image in images[:3]])), Counting())
    assert [name for name, _, _ in parts] == ["reading images", "comparing images", "aligning images"]
    assert all(total == done >= 3 for _, total, done in parts)


def test_similar_images_are_connected_by_a_pair_less_than_images(tmp_path: Path, images: Images) -> None:
    train = images.copy()
    for index in range(1, 5):
        train[index] = np.clip(train[0].astype(int) + index, 0, 255)
    pairs = find_pairs(betons(tmp_path, train, pictures(20, 1)))
    assert len(pairs) == 4
    assert {index for pair in pairs for index in (pair.first.index, pair.second.index)} == set(range(5))
    assert all(pair.first.index < pair.second.index and not pair.exact for pair in pairs)
    assert [pair.score for pair in pairs] == sorted((pair.score for pair in pairs), reverse=True)


def test_a_copy_is_certain_and_a_frame_in_common_is_no_duplicate(tmp_path: Path, images: Images) -> None:
    train, test = images.copy(), pictures(20, 1)
    for framed in (train[3], train[4], test[1]):
        framed[:3] = framed[-3:] = framed[:, :3] = framed[:, -3:] = 0
    test[8] = compressed(train[9])
    (pair,) = find_pairs(betons(tmp_path, train, test))
    assert (pair.first.index, pair.second.index, pair.certain) == (9, 8, True)


def test_a_copy_of_a_low_score_is_a_candidate(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = betons(tmp_path, images, compressed(images[9])[None])
    for limit, is_certain in ((0.9999, False), (0.8, True)):
        monkeypatch.setattr(duplicates, "_score_limits", lambda greys, limit=limit: (0.75, limit))
        (pair,) = find_pairs(splits)
        assert (pair.certain, pair.score < 0.999) == (is_certain, True)


@pytest.mark.full_size
def test_images_that_are_alike_need_a_higher_score(images: Images) -> None:
    alike = (0.8 * images[0] + 0.2 * images).astype(np.uint8)
    listed, certain = duplicates._score_limits(to_greys(alike))
    assert duplicates._score_limits(to_greys(images)) == (0.75, 0.9)
    assert 0.75 < listed <= 0.95
    assert 0.9 < certain <= 0.999


def test_large_and_jpeg_images_are_compared_by_what_they_show(tmp_path: Path) -> None:
    large = pictures(12, 2, side=80)
    test = np.stack([*pictures(4, 3, side=80), shifted(large[5])])
    assert places(find_pairs(betons(tmp_path, large, test))) == {("train", 5, "test", 4)}


def test_two_images_and_no_test_split(tmp_path: Path, images: Images) -> None:
    splits = betons(tmp_path, images[[1, 1]], np.full((1, 32, 32, 3), 7, np.uint8))
    assert places(find_pairs(splits)) == {("train", 0, "train", 1)}
    assert len(find_pairs({"train": splits["train"]})) == 1
    assert find_pairs({"test": splits["test"]}) == []


def test_features_of_many_images_are_whitened_and_a_mirror_image_has_those_of_the_other(images: Images) -> None:
    greys = to_greys(
        np.concatenate([np.zeros((1, 32, 32, 3), np.uint8), pictures(1_050), images[:1], mirrored(images[0])[None]])
    )
    own, mirror = features(greys)
    assert own.shape == (1_053, 128)
    assert not own[0].any()
    assert np.isfinite(own).all()
    np.testing.assert_allclose(own[-1], mirror[-2], atol=1e-4)
    assert abs(float(own[-1] @ own[-2])) < 0.6
    similarities = own[1:300] @ own[301:600].T
    assert similarities.max() < 0.75


def test_alignment_is_1_for_a_copy_and_finds_the_shift(images: Images) -> None:
    greys = to_greys(np.stack([images[0], shifted(images[0]), images[1], mirrored(images[0])]))
    scores = alignment_scores(greys, np.array([(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 3, 1), (0, 3, 0)]))
    assert scores[0] == pytest.approx(1, abs=2e-3) == scores[3]
    assert scores[1] > 0.8
    assert max(scores[2], scores[4]) < 0.6
