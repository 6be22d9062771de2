"""The beton reader: opens what FFCV opens, and refuses what is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcifar.converters.synthetic import SyntheticSplit
from fastcifar.data.beton import open_beton
from fastcifar.data.manifest import manifest_path
from fastcifar.data.statistics import channel_histogram, channel_statistics
from fastcifar.data.tables import ALLOCATION, HEADER, MIN_PAGE_SIZE, RECORD, TABLES_START
from fastcifar.errors import DataError, UsageError
from tests.trust.cases import write_matching_manifest

Damage = Callable[[Any, Any, Any], None]


@pytest.mark.parametrize("in_memory", [False, True])
def test_reads_what_was_written(data_dir: Path, in_memory: bool) -> None:
    opened = open_beton(data_dir / "train.beton", in_memory=in_memory)
    expected = list(SyntheticSplit(600, 0, 0))
    assert len(opened) == 600
    assert opened.image_shape == (32, 32, 3)
    assert opened.verified
    assert opened.labels.tolist() == [sample.label for sample in expected]
    np.testing.assert_array_equal(opened.images(np.arange(600)), np.stack([sample.image for sample in expected]))
    np.testing.assert_array_equal(opened.images([5, 599, 5])[1], expected[599][0])
    assert opened.num_bytes == (data_dir / "train.beton").stat().st_size
    assert opened.in_memory == in_memory
    assert opened.read_all().tobytes() == (data_dir / "train.beton").read_bytes()
    assert not in_memory or not opened.read_all().flags.writeable


def test_images_are_selected_by_indices_or_a_mask(data_dir: Path) -> None:
    opened = open_beton(data_dir / "train.beton")
    mask = opened.labels == 3
    np.testing.assert_array_equal(opened.images(mask), opened.images(np.flatnonzero(mask)))
    assert len(opened.images([])) == len(opened.origins([])) == 0
    assert len(opened.origins(mask)) == mask.sum()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([True, False], r"indices is a mask of shape \(2,\); expected \(600,\), one bool per image"),
        ([0.0, 1.9], r"indices is float64 of shape \(2,\); expected a list of integers, or a mask"),
        (3, r"indices is int64 of shape \(\); expected a list"),
        ([-1, 3], r"indices is -1\.\.3; expected 0\.\.599"),
        ([600], r"indices is 600\.\.600; expected 0\.\.599"),
    ],
)
def test_other_indices_are_refused(data_dir: Path, indices: Any, message: str) -> None:
    opened = open_beton(data_dir / "train.beton")
    for select in (opened.images, opened.origins):
        with pytest.raises(UsageError, match=message):
            select(indices)


def test_mean_and_std_are_those_of_the_pixels(data_dir: Path) -> None:
    opened = open_beton(data_dir / "train.beton")
    pixels = opened.images(np.arange(600)).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(opened.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(opened.std, pixels.std(axis=0), rtol=1e-9)


def test_without_a_manifest_it_opens_unverified(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    verified = open_beton(path)
    manifest_path(path).unlink()
    opened = open_beton(path)
    assert not opened.verified
    assert opened.class_names == tuple("0123456789")
    np.testing.assert_allclose(opened.mean, verified.mean, rtol=1e-12)


def test_a_private_copy_does_not_follow_the_file(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    opened = open_beton(path, in_memory=True)
    before = opened.images(np.arange(30))
    path.write_bytes(b"x")
    os.unlink(path)
    np.testing.assert_array_equal(opened.images(np.arange(30)), before)
    opened.check_unchanged()


def test_a_modified_file_is_detected(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    opened = open_beton(path)
    opened.check_unchanged()
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="was modified while it was in use"):
        opened.check_unchanged()


def test_no_descriptor_is_left(data_dir: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_beton(data_dir / "test.beton", in_memory=True)
        open_beton(data_dir / "test.beton")
    assert len(os.listdir("/proc/self/fd")) == before


def rewrite(path: Path, damage: Damage) -> None:
    """Change a beton's tables through `damage(header, records, allocations)`; its manifest goes with it."""
    data = np.fromfile(path, dtype=np.uint8)
    header = data[: HEADER.itemsize].view(HEADER)
    num = int(header["num_samples"][0])
    records = data[TABLES_START : TABLES_START + num * RECORD.itemsize].view(RECORD)
    allocations = data[int(header["alloc_table_ptr"][0]) :].view(ALLOCATION)
    damage(header, records, allocations)
    data.tofile(path)


def put(table: str, name: str, value: int, row: int = 3) -> Damage:
    def damage(header: Any, records: Any, allocations: Any) -> None:
        {"header": header, "records": records, "allocations": allocations}[table][name][
            0 if table == "header" else row
        ] = value

    return damage


def both_pointers(header: Any, records: Any, allocations: Any) -> None:
    records["data_ptr"][3] = records["data_ptr"][4] - 1
    allocations["ptr"][3] = records["data_ptr"][3]


def cross_page(header: Any, records: Any, allocations: Any) -> None:
    header["page_size"] = 2**21
    records["data_ptr"][3] = 8 * 2**20 + 2**21 - 10
    allocations["ptr"][3] = records["data_ptr"][3]


def huge_sides(header: Any, records: Any, allocations: Any) -> None:
    records["height"] = records["width"] = 65_535


HOSTILE: dict[str, tuple[Damage, str]] = {
    "version": (put("header", "version", 3), "not a beton of version 2"),
    "number of fields": (put("header", "num_fields", 3), "a field has the name"),
    "page size no power of two": (put("header", "page_size", 8 * 2**20 + 1), "page size 8388609 is not a power of two"),
    "page size 0": (put("header", "page_size", 0), "page size 0 is not a power of two"),
    "no samples": (put("header", "num_samples", 0), "holds no images"),
    "too many samples": (put("header", "num_samples", 2**60), "more than fit into"),
    "one sample more": (put("header", "num_samples", 31), "does not end with the file"),
    "table beyond the file": (put("header", "alloc_table_ptr", 2**62), "does not end with the file"),
    "table at 0": (put("header", "alloc_table_ptr", 0), "does not end with the file"),
    "mode": (put("records", "mode", 7), "image 3 has mode 7"),
    "one JPEG": (put("records", "mode", 0), "image 3 has mode 0"),
    "width": (put("records", "width", 33), "image 3 is 32x33, image 0 is 32x32"),
    "height 0": (lambda h, r, a: r["height"].fill(0), "images of 0x32"),
    "too large": (huge_sides, "do not fit into its pages"),
    "pointer into the tables": (put("records", "data_ptr", 10), "image 3 is at byte 10, outside the pages"),
    "pointer beyond the file": (put("records", "data_ptr", 2**63 + 5), "outside the pages"),
    "pointer at the last byte": (put("records", "data_ptr", 16 * 2**20 - 1), "outside the pages"),
    "overlap": (both_pointers, "two images overlap"),
    "across pages": (cross_page, "crosses the end of its page"),
    "negative label": (put("records", "label", -1), "image 3 has label -1"),
    "huge label": (put("records", "label", 2**40), f"image 3 has label {2**40}"),
    "allocation size": (put("allocations", "size", 2**40), "a size that is not 1..8388608"),
    "allocation size of another image": (put("allocations", "size", 3_000), "a size that is not 3072"),
    "allocation pointer": (put("allocations", "ptr", 8 * 2**20), "disagree on the position of an image"),
    "allocation without an image": (put("allocations", "sample_id", 2**63), "does not list each image once"),
    "allocation twice": (put("allocations", "sample_id", 4), "does not list each image once"),
}


@pytest.mark.full_size
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_field_is_refused(own_data_dir: Path, name: str, in_memory: bool) -> None:
    damage, message = HOSTILE[name]
    path = own_data_dir / "train.beton"
    manifest_path(path).unlink()
    rewrite(path, damage)
    with pytest.raises(DataError) as caught:
        open_beton(path, in_memory=in_memory)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_label_beyond_the_manifest_is_refused(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    rewrite(path, put("records", "label", 10))
    write_matching_manifest(path)
    with pytest.raises(DataError, match=r"has label 10, its manifest train\.beton\.json has 10 classes"):
        open_beton(path)


def test_any_flipped_bit_is_detected_with_the_manifest(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for position in [*random.integers(0, len(good), 20), *random.integers(0, TABLES_START + 30 * 24, 40)]:
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            open_beton(path)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("length", [0, 1, 23, 24, TABLES_START, TABLES_START + 100, MIN_PAGE_SIZE, -1, -24, -720])
def test_a_truncated_file_is_refused(own_data_dir: Path, length: int, with_manifest: bool) -> None:
    path = own_data_dir / "train.beton"
    content = path.read_bytes()
    path.write_bytes(content[:length])
    if not with_manifest:
        manifest_path(path).unlink()
    with pytest.raises(DataError, match="damaged|not a beton, but (an empty file|a file of no known kind)"):
        open_beton(path, in_memory=True)


def test_noise_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for size in (0, 10, 5_000, 300_000):
        path = tmp_path / f"{size}.beton"
        path.write_bytes(random.bytes(size))
        with pytest.raises(DataError):
            open_beton(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b'{"fastcifar_manifest": 2}', "text, such as JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100_000), "a ZIP archive"),
        (bytes(100_000), "a file of zero bytes"),
    ],
)
def test_a_file_of_another_kind_is_not_called_damaged(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"not a beton, but {kind}.*; expected a beton, made with"):
        open_beton(path)


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; make it with: fastcifar convert"):
        open_beton(tmp_path / "missing.beton")
    with pytest.raises(DataError, match="not a file"):
        open_beton(tmp_path)
    os.mkfifo(tmp_path / "pipe.beton")
    with pytest.raises(DataError, match="not a file"):
        open_beton(tmp_path / "pipe.beton")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not json", "Expecting value"),
        ("[]", "does not begin with fastcifar_manifest"),
        ({"class_names": []}, "class_names is not a list of names"),
        ({"class_names": ["a", "a"]}, "has a duplicate"),
        ({"image_shape": [32, 32]}, "image_shape is not a list of three"),
        ({"mean": [1, 2]}, "mean is not a list of three"),
        ({"std": [1, 2, float("nan")]}, r"std is outside 0\.\.255"),
        ({"num_samples": "30"}, "has the wrong type"),
    ],
)
def test_a_damaged_manifest_is_refused(own_data_dir: Path, change: Any, message: str) -> None:
    file = manifest_path(own_data_dir / "train.beton")
    file.write_text(change if isinstance(change, str) else json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        open_beton(own_data_dir / "train.beton")


def test_a_manifest_of_another_beton_is_refused(own_data_dir: Path) -> None:
    manifest_path(own_data_dir / "test.beton").replace(manifest_path(own_data_dir / "train.beton"))
    with pytest.raises(DataError, match=r"damaged or replaced: SHA-256 .* its manifest train\.beton\.json says"):
        open_beton(own_data_dir / "train.beton")


def test_channel_statistics_are_exact() -> None:
    expected = np.random.default_rng(0).integers(0, 256, (3, 1, 2, 3), np.uint8).reshape(-1, 3)
    histogram = channel_histogram(expected)
    assert (histogram.sum(axis=1) == 6).all()
    mean, std = channel_statistics(histogram)
    np.testing.assert_allclose(mean, expected.mean(axis=0))
    np.testing.assert_allclose(std, expected.std(axis=0))


def test_a_beton_reads_the_file_that_it_opened_after_a_replacement(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    opened = open_beton(path)
    other = path.with_name("other")
    other.write_bytes(b"")
    other.replace(path)
    opened.check_unchanged()
