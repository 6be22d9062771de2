"""Sources: what they read, in which order, and what they refuse."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.converters import Broken, Sample, convert, open_source
from fastcifar.converters.archives import MAX_FILE_BYTES
from fastcifar.converters.synthetic import CLASS_NAMES, SyntheticSplit
from fastcifar.data.image_files import quiet_pillow
from fastcifar.errors import DataError
from tests.conftest import ImageFolder

Pixels = dict[str, list[tuple[bytes, int]]]


def pixels(spec: Path | str) -> Pixels:
    with quiet_pillow(), open_source(spec) as source:
        return {name: [pixels_of(sample) for sample in split] for name, split in source.splits.items()}


def pixels_of(sample: Sample | Broken) -> tuple[bytes, int]:
    if isinstance(sample, Broken):
        raise DataError(f"{sample.origin}: {sample.reason}")
    return sample.image.tobytes(), sample.label


def pack(folder: Path, kind: str, prefix: str = "", skip: str = "") -> Path:
    """The folder as an archive, its files in no helpful order."""
    target = folder.with_suffix(f".{kind}")
    files = sorted((p for p in folder.rglob("*") if p.is_file() and p.name != skip), key=lambda p: p.name, reverse=True)
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for file in files:
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    else:
        mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}[kind]
        with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
            for file in files:
                archive.add(file, prefix + file.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("is_old", [False, True])
def test_a_tar_whose_last_file_is_a_zip_is_a_tar(image_folder: ImageFolder, is_old: bool) -> None:
    """It ends as that zip, e.g. as a workbook of Excel."""
    folder = image_folder()
    path, expected = pack(folder, "tar"), pixels(folder)
    with zipfile.ZipFile(folder / "labels.xlsx", "w") as workbook:
        workbook.writestr("sheet.xml", "<sheet/>")
    with tarfile.open(path, "a") as archive:
        archive.add(folder / "labels.xlsx", "labels.xlsx")
    if is_old:
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as archive:
            headers = [member.offset for member in archive]
        for at in headers:  # without the name of the format
            content[at + 257 : at + 265] = bytes(8)
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        path.write_bytes(content)
    assert zipfile.is_zipfile(path)
    assert pixels(path) == expected


def test_a_zip_behind_a_program_is_a_zip(image_folder: ImageFolder) -> None:
    folder = image_folder()
    path = pack(folder, "zip")
    path.write_bytes(b"#!/bin/sh\nexec unzip $0\n" + path.read_bytes())
    assert pixels(path) == pixels(folder)


@pytest.mark.parametrize("prefix", ["", "./", "cifar-images/"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_an_archive_gives_what_its_folder_gives(image_folder: ImageFolder, kind: str, prefix: str) -> None:
    folder = image_folder()
    expected = pixels(folder)
    assert [label for _, label in expected["train"]] == [0, 0, 0, 1, 1, 1]
    assert pixels(pack(folder, kind, prefix)) == expected


def test_pixels_and_class_names_are_those_of_the_files(image_folder: ImageFolder) -> None:
    folder = image_folder(classes=("zebra", "ant"))
    with open_source(folder) as source:
        assert source.class_names == ("ant", "zebra")
        image, label = list(source.splits["test"])[4][:2]
    assert label == 1
    np.testing.assert_array_equal(image, np.asarray(PIL.Image.open(folder / "test/zebra/01.png")))


def test_a_class_may_have_no_test_images(image_folder: ImageFolder) -> None:
    folder = image_folder()
    shutil.rmtree(folder / "test/cat")
    assert [label for _, label in pixels(folder)["test"]] == [1, 1, 1]


def test_system_files_are_ignored(image_folder: ImageFolder) -> None:
    folder = image_folder()
    expected = pixels(folder)
    for name in ("train/cat/.DS_Store", "train/cat/Thumbs.db", "README.txt", "__MACOSX/train/cat/._00.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert pixels(folder) == expected
    assert pixels(pack(folder, "zip")) == expected


def save(path: Path, image: PIL.Image.Image, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)


def test_images_of_two_sizes_are_refused_with_a_command_that_works(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder("two sizes", side=32)
    save(folder / "train/dog/odd.png", PIL.Image.new("RGB", (48, 64)))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["convert", "--source", "two sizes", "--background", "black"])
    assert done.exit_code == 4
    problem = "train/dog/odd.png is 64x48, train/cat/00.png is 32x32 (height x width); expected one size for all"
    command = "fastcifar convert --source 'two sizes' --background 0,0,0 --size 32"
    assert done.stderr.splitlines()[-1] == f"Error: two sizes: {problem}; resize them with: {command}"
    assert not list(tmp_path.rglob("*.beton"))
    again = CliRunner().invoke(main, shlex.split(command)[1:])
    assert again.exit_code == 0, again.output
    assert "train: original sizes (height x width), most frequent first: 32x32 (6), 64x48 (1)" in again.output
    assert "train: 1 image resized" in again.output
    with pytest.raises(DataError, match=r"one size for all; resize them, e\.g\. to 32x32, with size=32"):
        convert(folder, tmp_path / "data")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "cifar100"], "dataset is 'cifar100', and source 'images'; expected the source 'download'"),
        (["--quality", "50"], "--quality is 50, and --encode raw; expected --encode jpeg"),
    ],
)
def test_a_flag_without_effect_is_refused(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(image_folder("images").parent)
    failed = CliRunner().invoke(main, ["convert", "--source", "images", *flags])
    assert (failed.exit_code, failed.stderr) == (2, f"Error: {message}\n")


def test_a_class_only_in_test_is_refused(image_folder: ImageFolder) -> None:
    folder = image_folder()
    save(folder / "test/zebra/0.png", PIL.Image.new("RGB", (8, 8)))
    with pytest.raises(DataError) as caught:
        pixels(folder)
    assert str(caught.value) == f"{folder}: test/zebra is a class that train/ does not have; expected one of: cat, dog"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIL.Image.fromarray(np.zeros((8, 8), np.float32)), "has mode 'F'; expected 8 or 16 bits a channel"),
        (PIL.Image.fromarray(np.zeros((8, 8), np.int32)), "has mode 'I'; expected 8 or 16 bits a channel"),
        (PIL.Image.new("LAB", (8, 8)), "has mode 'LAB'; expected 8 or 16 bits a channel"),
        (PIL.Image.new("RGB", (1_673, 1)), "is 1x1673; expected at most 1672 pixels a side: resize it with --size"),
    ],
)
def test_an_image_that_rgb_cannot_represent_is_refused(
    image_folder: ImageFolder, image: PIL.Image.Image, message: str
) -> None:
    folder = image_folder()
    save(folder / "train/cat/01.tif", image)
    with pytest.raises(DataError, match=message):
        pixels(folder)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a" + bytes(50)])
def test_a_file_that_is_not_an_image_is_refused(image_folder: ImageFolder, content: bytes) -> None:
    folder = image_folder()
    (folder / "train/cat/01.png").write_bytes(content)
    with pytest.raises(DataError, match=r"train/cat/01\.png: not a readable image"):
        pixels(folder)


def test_a_truncated_image_is_refused(image_folder: ImageFolder) -> None:
    folder = image_folder()
    for name in ("cut.jpg", "cut.png"):
        path = folder / "train/cat" / name
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(DataError, match=f"train/cat/{name}: not a readable image"):
            pixels(folder)
        path.unlink()


def test_a_gigantic_image_is_refused_before_it_is_decoded(image_folder: ImageFolder) -> None:
    folder = image_folder()
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    png += struct.pack(">I", 9) + b"IDAT" + bytes(13)
    (folder / "train/cat/01.png").write_bytes(png)
    with pytest.raises(DataError, match=r"train/cat/01\.png: (is 60000x60000|has over 100,000,000 pixels)"):
        pixels(folder)


def test_empty_and_missing_places_are_refused(tmp_path: Path, image_folder: ImageFolder) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; expected 'download', 'synthetic'"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images; expected train/<class>/\*"):
        open_source(tmp_path / "empty")
    folder = image_folder()
    image = next((folder / "train/cat").iterdir())
    with pytest.raises(DataError, match=f"{image.name}: one image; expected a folder or an archive of images, in a"):
        open_source(image)
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match=r"has no test images; .* with --test-share 0\.2"):
        open_source(folder)
    shutil.rmtree(folder / "train")
    (folder / "test").mkdir()
    with pytest.raises(DataError, match=r"images: no images; expected"):
        open_source(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/deep/0.png"], "cat/deep/0.png: in a folder within a class folder; expected <class>/*: move it to the"),
        (["cat/a.txt"], "cat/a.txt: not an image; expected JPEG, PNG, WebP, BMP, GIF or TIFF: remove it"),
        (["dog/z.mov", "cat/a.txt"], "cat/a.txt (and 1 more): not an image; expected JPEG, PNG"),
        (["cat/a.mov", "dog/0.HEIC"], "dog/0.HEIC: not JPEG, PNG, WebP, BMP, GIF or TIFF; convert HEIC to JPEG first"),
    ],
)
@pytest.mark.parametrize("splits", [True, False])
def test_a_file_outside_the_layout_is_an_error_that_names_it(
    image_folder: ImageFolder, names: list[str], message: str, splits: bool
) -> None:
    folder = image_folder()
    for name in names:
        (folder / "train" / name).parent.mkdir(exist_ok=True)
        (folder / "train" / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        pixels(folder if splits else folder / "train")
    assert f": {'train/' if splits else ''}{message}" in str(caught.value)


def test_an_image_without_a_class_is_an_error_that_names_it(image_folder: ImageFolder) -> None:
    folder = image_folder()
    (folder / "train/stray.png").touch()
    with pytest.raises(DataError, match="train/stray.png: expected train/<class>"):
        pixels(folder)


def test_a_folder_of_heic_images_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.HEIC").touch()
    with pytest.raises(DataError, match=r"no images; .*; found in cat/ 0.HEIC; convert HEIC to JPEG first"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_a_truncated_archive_is_refused(image_folder: ImageFolder, kind: str) -> None:
    archive = pack(image_folder(), kind)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive"):
        pixels(archive)


@pytest.mark.parametrize("cut", [1, 20, 40, 300, 700, 1_500, 9_000])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_tar_that_lost_its_end_is_refused(image_folder: ImageFolder, kind: str, cut: int) -> None:
    archive = pack(image_folder(), kind)
    content = archive.read_bytes()
    if kind == "tar":
        end = content.rstrip(b"\0")  # a tar ends with empty blocks; without the first of them it is cut
        content = end + bytes(-len(end) % 512)
        cut -= 1
    archive.write_bytes(content[: len(content) - min(cut, len(content) - 30)])
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive"):
        pixels(archive)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_tar_behind_a_tar_is_refused(image_folder: ImageFolder, kind: str) -> None:
    """Its images would be lost without a message."""
    archive = pack(image_folder(), kind)
    archive.write_bytes(2 * archive.read_bytes())
    with pytest.raises(DataError, match="data follows the end of the archive, such as a second archive; unpack all"):
        pixels(archive)


def test_a_damaged_header_in_a_tar_is_not_its_end(image_folder: ImageFolder) -> None:
    archive = pack(image_folder(), "tar")
    content = bytearray(archive.read_bytes())
    with tarfile.open(archive) as opened:
        header = opened.getmembers()[4].offset
    content[header + 10] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive .bad checksum"):
        pixels(archive)


def test_a_folder_that_cannot_be_read_is_an_error(image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder()
    real = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("test/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"test/dog: cannot be read \(Permission denied\)"):
        open_source(folder)


@pytest.mark.parametrize("name", ["\x1b[31mred", "new\nline", "\udcff\udcfe"])
def test_a_class_name_that_is_not_printable_is_refused(image_folder: ImageFolder, name: str) -> None:
    folder = image_folder()
    os.rename(folder / "train/cat", folder / "train" / name)
    shutil.rmtree(folder / "test/cat")
    with pytest.raises(DataError, match="has characters that are not printable; rename it"):
        pixels(folder)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: truncated or corrupt tar or zip archive"):
        open_source(tmp_path / "notes.txt")


def add(archive: tarfile.TarFile, name: str, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() and member.size < 2**20 else None)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("../train/cat/x.png", {}, "points outside"),
        ("train/../../x.png", {}, "points outside"),
        ("/train/cat/x.png", {}, None),
        ("train/cat/x.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link, a device"),
        ("train/cat/x.png", {"type": tarfile.LNKTYPE, "linkname": "train/cat/00.png"}, "is a link, a device"),
        ("train/cat/x.png", {"type": tarfile.CHRTYPE}, "is a link, a device"),
        ("train/cat/00.png", {}, "is a duplicate"),
        ("train/cat/x.png", {"size": MAX_FILE_BYTES + 1}, "expected at most"),
        ("other/train/cat/x.png", {}, "next to another dataset"),
    ],
)
def test_a_hostile_tar_is_refused(
    image_folder: ImageFolder, name: str, fields: dict[str, object], message: str | None
) -> None:
    path = pack(image_folder(), "tar")
    with tarfile.open(path, "a") as archive:
        add(archive, name, **fields)
    before = set(path.parent.rglob("*"))
    with pytest.raises(DataError, match=message):
        pixels(path)
    assert set(path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../train/cat/x.png", "train/../x/x.png", "train/cat/..\\..\\x.png"])
def test_a_hostile_zip_is_refused(image_folder: ImageFolder, name: str) -> None:
    path = pack(image_folder(), "zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DataError, match="points outside|has a backslash in its name"):
        pixels(path)


def test_a_pipe_or_a_loop_in_a_folder_does_not_hang(image_folder: ImageFolder) -> None:
    folder = image_folder()
    expected = pixels(folder)
    os.symlink(folder, folder / "train/cat/loop")
    assert pixels(folder) == expected
    (folder / "train/cat/loop").unlink()
    os.mkfifo(folder / "train/cat/pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        pixels(folder)


# ---- synthetic --------------------------------------------------------------------------------------------------


def test_synthetic_images_are_the_same_everywhere() -> None:
    images = np.stack([image for image, *_ in SyntheticSplit(100, 0, 0)])
    assert hashlib.sha256(images.tobytes()).hexdigest() == GOLDEN_SYNTHETIC


def test_synthetic_classes_are_balanced_and_splits_differ() -> None:
    with open_source("synthetic") as source:
        assert source.class_names == CLASS_NAMES
        assert {name: len(split) for name, split in source.splits.items()} == {"train": 20_000, "test": 4_000}
        first = [next(iter(split))[0] for split in source.splits.values()]
    assert not np.array_equal(first[0], first[1])
    labels = np.array([label for _, label, *_ in SyntheticSplit(4_004, 0, 1)])
    assert np.count_nonzero(labels != np.arange(4_004) % 1_000 % 10) == 12  # wrong labels
    assert 395 <= np.bincount(labels).min() <= np.bincount(labels).max() <= 405


GOLDEN_SYNTHETIC = "925e84851d085060886d7b8430b4a6f13a20038603e7d2a480973ce06b9ac6b2"
