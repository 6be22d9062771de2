"""The writer: FFCV's bytes, and a failure loses nothing."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from fastcifar import make_loader
from fastcifar.config import NO_AUGMENT
from fastcifar.converters import Broken, Sample, Source, convert, writer
from fastcifar.converters.synthetic import SyntheticSplit
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data import jpeg, tables
from fastcifar.data.beton import open_beton
from fastcifar.data.manifest import manifest_path, read_manifest
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.io.locks import lock_folder
from fastcifar.loaders import missing_part
from tests.trust.cases import write_matching_manifest


class ListSplit:
    """Images of a test."""

    def __init__(self, images: list[np.ndarray], labels: list[int], length: int | None = None) -> None:
        self.images, self.labels, self.length = images, labels, length

    def __len__(self) -> int:
        return len(self.images) if self.length is None else self.length

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(image, label) for image, label in zip(self.images, self.labels, strict=True))


def source_of(train: Any, test: Any = None) -> Source:
    if test is None:  # of the size of the training images
        images = getattr(train, "images", [])
        test = ListSplit([images[0]] * 3, [0, 1, 2]) if images else SyntheticSplit(20, 0, 1)
    splits = {"train": train, "test": test}
    return Source(description="test", class_names=tuple("abcdefghij"), splits=splits)


def random_split(num: int, side: int = 8) -> ListSplit:
    random = np.random.default_rng(num)
    return ListSplit(list(random.integers(0, 256, (num, side, side, 3), dtype=np.uint8)), [i % 10 for i in range(num)])


def write_with_ffcv(path: Path, split: Any, num_workers: int) -> None:
    ffcv_writer = pytest.importorskip("ffcv.writer", reason="FFCV is not installed")
    from ffcv.fields import IntField, RGBImageField

    fields = {"image": RGBImageField(), "label": IntField()}
    dataset = [(sample.image, int(sample.label)) for sample in split]
    ffcv_writer.DatasetWriter(str(path), fields, num_workers=num_workers).from_indexed_dataset(dataset)


@pytest.mark.full_size
@pytest.mark.parametrize(
    "num", [1, pytest.param(2_730, marks=pytest.mark.slow), 2_731, pytest.param(6_000, marks=pytest.mark.slow)]
)
def test_writes_byte_for_byte_what_ffcv_writes(tmp_path: Path, num: int) -> None:
    split = SyntheticSplit(num, 1, 0)
    convert(source_of(split), tmp_path)
    write_with_ffcv(tmp_path / "ffcv.beton", split, num_workers=1)
    assert (tmp_path / "train.beton").read_bytes() == (tmp_path / "ffcv.beton").read_bytes()


@pytest.mark.slow
def test_opens_what_ffcv_wrote_with_several_workers(tmp_path: Path) -> None:
    split = SyntheticSplit(6_000, 1, 0)
    write_with_ffcv(tmp_path / "ffcv.beton", split, num_workers=2)
    opened = open_beton(tmp_path / "ffcv.beton", in_memory=True)
    assert not opened.verified
    expected = list(split)
    assert opened.labels.tolist() == [sample.label for sample in expected]
    np.testing.assert_array_equal(opened.images(np.arange(6_000)), np.stack([sample.image for sample in expected]))


def test_ffcv_reads_what_fastcifar_wrote(data_dir: Path) -> None:
    reader = pytest.importorskip("ffcv.reader", reason="FFCV is not installed").Reader(str(data_dir / "train.beton"))
    assert int(reader.num_samples) == 600
    assert reader.field_names == ["image", "label"]


@pytest.mark.full_size
@pytest.mark.parametrize("shape", [(5, 9, 3), (1, 1, 3), (1672, 1672, 3)])
def test_images_of_any_one_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8))
    convert(source_of(ListSplit(images, [2, 0, 1])), tmp_path)
    opened = open_beton(tmp_path / "train.beton")
    assert opened.image_shape == shape
    np.testing.assert_array_equal(opened.images([2, 0]), np.stack([images[2], images[0]]))


@pytest.mark.parametrize("quality", [None, 90])
def test_images_may_be_transposed_in_memory(tmp_path: Path, quality: int | None) -> None:
    split = random_split(3)
    transposed = ListSplit([image.transpose(1, 0, 2).copy().transpose(1, 0, 2) for image in split.images], split.labels)
    for name, each in (("as they are", split), ("transposed", transposed)):
        convert(source_of(each), tmp_path / name, jpeg_quality=quality)
    assert contents(tmp_path / "transposed") == contents(tmp_path / "as they are")


def test_the_manifest_describes_the_file(own_data_dir: Path) -> None:
    manifest = read_manifest(own_data_dir / "train.beton")
    assert manifest is not None
    assert manifest.num_samples == 30
    assert manifest.image_shape == (32, 32, 3)
    assert manifest.class_names[:2] == ("disc", "ring")
    assert manifest.sha256 == hashlib.sha256((own_data_dir / "train.beton").read_bytes()).hexdigest()
    assert manifest.source == "synthetic, seed 0"
    assert set(manifest.versions) == {"fastcifar", "numpy", "pillow", "python"}


def test_the_same_source_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with synthetic_source(50, 20) as source:
            convert(source, tmp_path / name)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 4


def test_replacing_another_dataset_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastcifar")
    for num in (20, 20, 30):
        assert "replaced" not in caplog.text
        convert(source_of(random_split(num)), tmp_path)
    assert f"{tmp_path}: replaced 10 classes, 23 images, from test" in caplog.text
    caplog.clear()
    (tmp_path / "train.beton.json").write_text("damaged")
    (tmp_path / "test.beton.json").unlink()
    convert(source_of(random_split(20)), tmp_path)
    assert "replaced" not in caplog.text


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Raises(ListSplit):
    def __iter__(self) -> Iterator[Sample]:
        yield from list(super().__iter__())[:5]
        raise RuntimeError("the cable was pulled")


class Breaks(ListSplit):
    def __iter__(self) -> Iterator[Any]:
        yield from list(super().__iter__())[:5]
        yield Broken("cat.png", "it is a PDF document")


GOOD = random_split(20)
ODD = ListSplit([*GOOD.images[:7], np.zeros((8, 9, 3), np.uint8)], list(range(8)))
FAILURES = {
    "raises": (Raises(GOOD.images, GOOD.labels), RuntimeError, "the cable was pulled"),
    "another size": (ODD, DataError, r"image 7 is 8x9, train image 0 is 8x8 \(height x width\); expected one size"),
    "grey": (ListSplit([GOOD.images[0][..., 0]], [0]), DataError, r"image 0 is uint8 \(8, 8\); expected uint8"),
    "broken": (Breaks(GOOD.images, GOOD.labels), DataError, "cat.png: it is a PDF document; replace or remove it, or"),
    "floats": (ListSplit([GOOD.images[0] / 2], [0]), DataError, "image 0 is float64"),
    "fewer": (ListSplit(GOOD.images, GOOD.labels, 21), DataError, "yields 20 images, its length is 21"),
    "more": (ListSplit(GOOD.images, GOOD.labels, 19), DataError, "more images than its length, 19"),
    "none": (ListSplit([], []), DataError, "yields 0 images, its length is 0"),
    "too large": (ListSplit([np.zeros((2_000, 2_000, 3), np.uint8)], [0]), DataError, "image 0 is 2000x2000"),
}


@pytest.mark.parametrize("place", ["train", "test"])
@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_leaves_the_good_files(own_data_dir: Path, name: str, place: str) -> None:
    split, error, message = FAILURES[name]
    before = contents(own_data_dir)
    source = source_of(split) if place == "train" else source_of(GOOD, split)
    with pytest.raises(error, match=message):
        convert(source, own_data_dir)
    assert contents(own_data_dir) == before


def named(num: int, prefix: str) -> list[Sample]:
    """Random images with origins."""
    images = np.random.default_rng(len(prefix) + num).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
    return [Sample(image, i % 10, f"{prefix}/{i}.png") for i, image in enumerate(images)]


def test_origins_are_read_only_on_request_and_belong_to_their_beton(
    own_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source_of(named(20, "a"), named(10, "b")), own_data_dir)
    opened, file = open_beton(own_data_dir / "train.beton"), own_data_dir / "train.beton.origins.txt"
    assert opened.origins() == [f"a/{i}.png" for i in range(20)]
    good = file.read_bytes()
    for content in (good[:-1], good.replace(b"a/3", b"a/4"), b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train\.beton\.origins\.txt: damaged: .*; convert again, or remove"):
            open_beton(own_data_dir / "train.beton").origins()
    file.unlink()
    assert open_beton(own_data_dir / "train.beton").origins([3]) == [""]
    convert(source_of(named(20, "a"), named(10, "b")), own_data_dir)
    convert(source_of(GOOD), own_data_dir)  # without origins: none of others are left
    assert not list(own_data_dir.glob("*.origins.txt"))


def test_an_origin_is_one_line_whatever_its_characters(tmp_path: Path) -> None:
    odd = ["a\nb", "\x1b[31m", "caf\udce9", "é" * 5_000, "", "é\u2028"]
    images = [Sample(image, 0, name) for image, name in zip(GOOD.images, odd, strict=False)]
    convert(source_of(images, ListSplit(GOOD.images[:1], [0])), tmp_path)
    origins = open_beton(tmp_path / "train.beton").origins()
    assert origins == [r"a\nb", r"\x1b[31m", r"caf\udce9", "é" * 2_047, "", r"é\u2028"]


def test_a_full_disk_leaves_the_good_files(own_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(own_data_dir)
    real = os.fsync

    def full(descriptor: int) -> None:
        if ".test.beton.partial" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FastcifarError, match="cannot be written .No space left on device.; nothing was replaced"):
        convert(source_of(GOOD), own_data_dir)
    assert contents(own_data_dir) == before


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("place", ["image", "label", "pointer"])
def test_damage_between_writing_and_comparing_is_found(
    own_data_dir: Path, monkeypatch: pytest.MonkeyPatch, place: str, quality: int | None
) -> None:
    """As by a disk that does not keep what was written."""
    before, real, damaged = contents(own_data_dir), writer.fsync, []

    def damage(out: Any, file: Path) -> None:
        real(out, file)
        if file.name == ".train.beton.partial" and not damaged:
            damaged.append(file)
            with file.open("r+b") as opened:
                content = bytearray(opened.read())
                records = np.frombuffer(content, tables.RECORD, 20, tables.TABLES_START)
                if place == "image":
                    content[int(records["data_ptr"][7]) + 100] ^= 1
                elif place == "label":
                    records["label"][7] = 0
                else:
                    records["data_ptr"][7] = records["data_ptr"][6]
                opened.seek(0)
                opened.write(content)

    monkeypatch.setattr(writer, "fsync", damage)
    with pytest.raises(DataError, match=r"\.train\.beton\.partial: "):
        convert(source_of(GOOD), own_data_dir, jpeg_quality=quality)
    assert contents(own_data_dir) == before


@pytest.mark.parametrize("step", range(5))
def test_at_no_moment_does_a_manifest_lie_next_to_another_beton(
    own_data_dir: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A kill between two renames, played by an exception without clean-up."""
    calls = 0
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt
        real(source, target)

    convert(source_of(named(20, "old"), named(10, "old")), own_data_dir)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source_of(named(20, "new"), named(10, "new")), own_data_dir)
    for name in ("train", "test"):
        opened = open_beton(own_data_dir / f"{name}.beton")
        assert not any(opened.origins()) or len(set(opened.origins())) == len(opened)


@pytest.mark.parametrize("name", ["train.beton", "test.beton", "test.beton.json", "train.beton.origins.txt"])
def test_a_folder_in_place_of_a_file_is_an_error_before_anything_is_replaced(own_data_dir: Path, name: str) -> None:
    (own_data_dir / name).unlink(missing_ok=True)
    (own_data_dir / name).mkdir()
    before = {file.name: file.read_bytes() for file in own_data_dir.iterdir() if file.is_file()}
    with pytest.raises(FastcifarError, match=f"{name}: a folder; expected a file or nothing"):
        convert(source_of(GOOD), own_data_dir)
    assert {file.name: file.read_bytes() for file in own_data_dir.iterdir() if file.is_file()} == before


def test_two_conversions_at_once_do_not_mix(own_data_dir: Path) -> None:
    before = contents(own_data_dir)
    with lock_folder(own_data_dir, "in use"), pytest.raises(FastcifarError, match="another conversion is writing here"):
        convert(source_of(GOOD), own_data_dir)
    assert contents(own_data_dir) == before
    convert(source_of(GOOD), own_data_dir)


def test_progress_counts_each_image_twice(tmp_path: Path) -> None:
    counts = {"train": 0, "test": 0}

    def advance(name: str, count: int) -> None:
        counts[name] += count

    with synthetic_source(5_000, 10) as source:
        convert(source, tmp_path, advance)
    assert counts == {"train": 10_000, "test": 20}


def test_jpeg_betons_hold_what_was_encoded(tmp_path: Path) -> None:
    with synthetic_source(300, 20) as source:
        manifests = convert(source, tmp_path / "jpeg", jpeg_quality=95)
        convert(source, tmp_path / "raw")
    encoded, raw = (open_beton(tmp_path / kind / "train.beton") for kind in ("jpeg", "raw"))
    assert (encoded.encoding, raw.encoding) == ("jpeg", "raw")
    assert encoded.sizes.max() < 3_072
    rows = np.arange(300)
    difference = np.abs(encoded.images(rows).astype(int) - raw.images(rows))
    assert difference.mean() < 6
    assert np.abs(encoded.mean - raw.mean).max() < 2
    assert manifests["train"].sha256 == encoded.sha256
    (tmp_path / "jpeg" / "train.beton.json").unlink()
    without = open_beton(tmp_path / "jpeg" / "train.beton")
    np.testing.assert_allclose(without.mean, encoded.mean)


def test_a_jpeg_larger_than_a_page_is_refused(tmp_path: Path) -> None:
    """Noise of the highest quality takes more bytes than its pixels."""
    split = random_split(2, side=836)
    message = r"train image 0 takes \d+ bytes as JPEG; expected at most 2097152, a page: lower --quality, or resize it"
    with pytest.raises(DataError, match=message):
        convert(source_of(split), tmp_path, jpeg_quality=100)
    assert list(tmp_path.iterdir()) == []


def test_ffcv_reads_the_jpeg_betons_of_fastcifar(tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    with synthetic_source(300, 20) as source:
        convert(source, tmp_path, jpeg_quality=90)
    for opened in (open_beton(tmp_path / "train.beton"), open_beton(tmp_path / "train.beton", in_memory=True)):
        loader = make_loader(opened, batch_size=50, loader="auto", dtype=torch.uint8, augment=NO_AUGMENT)
        assert loader.name == "ffcv"
        seen = 0
        for images, labels, indices in loader.epoch(0):
            expected = opened.images(indices.numpy())
            difference = np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - expected)
            assert difference.mean() < 1.5  # FFCV decodes with the fast transform
            assert labels.tolist() == opened.labels[indices].tolist()
            seen += len(labels)
        assert seen == 300
        loader.close()
    for name in ("resident", "albumentations"):
        if missing_part(name) is None:
            with pytest.raises(UsageError, match=f"has JPEG images, which loader '{name}' cannot read; use 'ffcv'"):
                make_loader(tmp_path / "train.beton", loader=name, batch_size=50)


def test_a_jpeg_of_another_size_never_reaches_ffcv(tmp_path: Path) -> None:
    """FFCV writes as many pixels as the JPEG header says, beyond its buffer."""
    with synthetic_source(300, 20) as source:
        convert(source, tmp_path, jpeg_quality=90)
    path = tmp_path / "train.beton"
    opened = open_beton(path)
    begin = int(opened.offsets[7])
    at = begin + opened.file.read(begin, int(opened.sizes[7])).tobytes().index(b"\xff\xc0")
    whole = path.read_bytes()
    manifest_path(path).unlink()
    for place, value in ((at + 5, 1), (at + 7, 1), (begin, 0), (at + 9, 1)):  # height, width, marker, components
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        with pytest.raises(DataError, match="image 7 is not a JPEG file of 32x32"):
            open_beton(path)


def test_a_jpeg_of_many_scans_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes as long as the whole image."""

    def of_many_scans(image: Any, quality: int) -> Any:
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "jpeg", progressive=True)
        whole = file.getvalue()
        at = whole.rindex(b"\xff\xda")
        return np.frombuffer(whole[:at] + 101 * whole[at:-2] + whole[-2:], np.uint8)

    monkeypatch.setattr(jpeg, "encode", of_many_scans)
    convert(source_of(random_split(3)), tmp_path, jpeg_quality=90)
    with pytest.raises(DataError, match=r"train\.beton: damaged beton: image 0 has over 100 scans; convert again"):
        open_beton(tmp_path / "train.beton")


def test_a_jpeg_that_cannot_be_decoded_is_an_error_and_not_another_image(tmp_path: Path) -> None:
    """FFCV ignores the error, and returns the previous image of the slot."""
    pytest.importorskip("ffcv")
    with synthetic_source(300, 20) as source:
        convert(source, tmp_path, jpeg_quality=90)
    path = tmp_path / "train.beton"
    opened, whole = open_beton(path), path.read_bytes()
    begin, end = int(opened.offsets[7]), int(opened.offsets[7] + opened.sizes[7])
    scan, table = whole.index(b"\xff\xda", begin), whole.index(b"\xff\xc4", begin)
    half = bytes((end - scan) // 2)
    for place, new in ((scan, b"\xff\xd9"), (table + 2, b"\0\3"), (end - len(half), half)):  # the last: cut off
        damaged = whole[:place] + new + whole[place + len(new) :]
        path.write_bytes(damaged)
        write_matching_manifest(path)
        loader = make_loader(path, batch_size=50, augment=NO_AUGMENT)
        with pytest.raises(DataError, match=r"train\.beton: image 7 is a truncated or corrupt JPEG file"):
            list(loader.epoch(0))
        loader.close()


def test_a_pipeline_and_jpeg_images_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    with synthetic_source(30, 20) as source:
        convert(source, tmp_path, jpeg_quality=90)
    augment = replace(NO_AUGMENT, pipeline="{}")
    for name in ("auto", "resident", "ffcv", "albumentations"):
        if name == "auto" or missing_part(name) is None:
            with pytest.raises(UsageError, match="pipeline of Albumentations needs raw ones; convert without --encode"):
                make_loader(tmp_path / "train.beton", augment, loader=name, batch_size=5)


def test_a_marker_without_a_length_hides_no_header() -> None:
    """To libjpeg RST0 has no length; a parser that reads one skips the true header."""
    true, false = (jpeg.encode(np.zeros((side, side, 3), np.uint8), 90).tobytes() for side in (64, 32))
    for marker in (b"\xff\xd0", b"\xff\x01"):
        jump = 4 + int.from_bytes(true[2:4], "big")
        evil = (true[:2] + marker + true[2:]).ljust(jump, b"\0") + false[false.index(b"\xff\xc0") :]
        assert jpeg.read_shape(evil) is None


def test_a_comment_that_looks_like_a_header_is_not_one() -> None:
    fake = b"\xff\xc0\x00\x11\x08\x00\x20\x00\x20\x03"
    comment = b"\xff\xfe" + (len(fake) + 2).to_bytes(2, "big") + fake
    encoded = jpeg.encode(np.zeros((64, 64, 3), np.uint8), 90).tobytes()
    whole = encoded[:2] + comment + encoded[2:]
    assert jpeg.read_shape(whole) == (64, 64, 3)


@pytest.mark.parametrize(
    ("values", "warning"),
    [((0, 1), "the images are almost black"), ((7,), "all pixels of all images are equal"), ((0, 60), "")],
)
def test_almost_constant_images_are_warned_of(
    values: tuple[int, ...], warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [Sample(np.full((8, 8, 3), values[i % len(values)], np.uint8), i % 2) for i in range(20)]
    with Source(description="made", class_names=("a", "b"), splits={"train": images, "test": images}) as source:
        convert(source, tmp_path)
    assert (warning in caplog.text) if warning else not caplog.text
