"""Layouts of datasets: which files are images, of which class; probable mistakes are errors."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.converters import SourceOptions, open_source
from fastcifar.errors import DataError
from tests.conftest import ImageFolder
from tests.test_sources import pack, pixels

Names = dict[str, bytes]


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def names_of(source: Path, **more: Any) -> tuple[str, ...]:
    with open_source(source, SourceOptions(**more)) as opened:
        return opened.class_names


def refusal(source: Path) -> str:
    with pytest.raises(DataError) as caught:
        pixels(source)
    return str(caught.value)


# ---- class folders without an image ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (["train/aaa"], "train/aaa"),
        (["test/aaa"], "test/aaa"),
        (["train/aaa", "test/aaa"], "test/aaa, train/aaa"),
        (["train/aaa/deeper/still"], "train/aaa"),
    ],
)
def test_an_empty_class_folder_is_an_error_unless_it_is_skipped(
    image_folder: ImageFolder, made: list[str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = image_folder()
    expected = pixels(folder)
    for name in made:
        (folder / name).mkdir(parents=True)
    message = refusal(folder)
    assert f"class folders without images: {named}; add images, remove the folders" in message
    assert "--skip-empty-classes" in message
    with caplog.at_level(logging.WARNING, "fastcifar"):
        assert names_of(folder, skip_empty_classes=True) == ("cat", "dog")
    assert f"skipped class folders without images: {named}" in caplog.text
    with open_source(folder, SourceOptions(skip_empty_classes=True)) as source:
        assert [sample.label for sample in source.splits["train"]] == [label for _, label in expected["train"]]


@pytest.mark.parametrize("name", ["test", "val"])
def test_without_test_images_the_message_says_what_helps(image_folder: ImageFolder, name: str) -> None:
    """Not --skip-empty-classes: all would be skipped."""
    folder = image_folder()
    shutil.rmtree(folder / "test")
    for class_name in ("cat", "dog"):
        (folder / name / class_name).mkdir(parents=True)
    assert refusal(folder).endswith(f": no images in {name}/; remove it, and divide the others by --test-share")
    shutil.rmtree(folder / name)
    with open_source(folder, SourceOptions(test_share=0.5)) as source:
        assert set(source.splits) == {"train", "test"}


def test_a_class_folder_of_system_files_alone_is_empty(image_folder: ImageFolder) -> None:
    folder = image_folder()
    (folder / "train/bird").mkdir()
    (folder / "train/bird/Thumbs.db").touch()
    assert "without images: train/bird" in refusal(folder)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_empty_class_folder_in_an_archive_is_an_error_too(image_folder: ImageFolder, kind: str) -> None:
    path = pack(image_folder(), kind)
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as zipped:
            zipped.writestr("train/aaa/", b"")
    else:
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("train/aaa")
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
    assert "without images: train/aaa" in refusal(path)


def test_a_class_with_test_images_only_is_not_skipped(image_folder: ImageFolder) -> None:
    folder = image_folder()
    for file in (folder / "train/cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="test/cat is a class that train/ does not have"):
        open_source(folder, SourceOptions(skip_empty_classes=True))


def test_convert_has_the_flag_and_names_it(image_folder: ImageFolder, tmp_path: Path) -> None:
    folder = image_folder()
    (folder / "train/aaa").mkdir()
    line = ["convert", "--source", str(folder), "--data-dir", str(tmp_path / "data")]
    failed = CliRunner().invoke(main, line)
    assert failed.exit_code == 4
    assert "--skip-empty-classes" in failed.output
    done = CliRunner().invoke(main, [*line, "--skip-empty-classes"])
    assert done.exit_code == 0, done.output
    assert "2 classes" in done.output


# ---- names that a reader cannot tell apart -----------------------------------------------------------------------

ALIKE = {
    "normalisation": (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
    "case": ("Cat", "cat"),
    "case folding": ("straße", "STRASSE"),
    "space at the end": ("owl", "owl "),
    "space within": ("barn owl", "barn  owl"),
    "ligature": ("finch", "ﬁnch"),
    "full width": ("owl", "ｏｗｌ"),
    "variation selector": ("heart", "heart\ufe0f"),
    "Hangul filler": ("owl", "owl\u3164"),
    "blank braille": ("owl", "owl\u2800"),
}


@pytest.mark.parametrize("kind", list(ALIKE))
def test_two_classes_that_look_alike_are_refused_with_escapes(image_folder: ImageFolder, kind: str) -> None:
    one, other = ALIKE[kind]
    folder = image_folder(classes=(one, other))
    message = refusal(folder)
    assert f"{f'train/{one}'!a}" in message
    assert f"{f'train/{other}'!a}" in message
    assert message.isascii()
    assert "rename or merge them" in message


@pytest.mark.parametrize("kind", ["normalisation", "case", "space at the end"])
def test_train_and_test_that_spell_a_class_differently_are_refused(image_folder: ImageFolder, kind: str) -> None:
    one, other = ALIKE[kind]
    folder = image_folder(classes=(one, "dog"))
    os.rename(folder / "test" / one, folder / "test" / other)
    message = refusal(folder)
    assert f"{f'train/{one}'!a} and {f'test/{other}'!a} differ only in case, spaces or Unicode form" in message


def test_an_empty_folder_that_looks_like_a_class_is_an_error(image_folder: ImageFolder) -> None:
    folder = image_folder()
    (folder / "train/CAT").mkdir()
    assert "differ only in case" in refusal(folder)


def test_names_in_one_unicode_form_are_accepted(image_folder: ImageFolder) -> None:
    names = (unicodedata.normalize("NFD", "café"), "größe", "猫", "a1", "a2")
    assert set(names_of(image_folder(classes=names))) == set(names)


# ---- names in archives that are not UTF-8 ------------------------------------------------------------------------


def zip_of(path: Path, names: list[bytes]) -> Path:
    """A zip with these names as bytes, without the UTF-8 flag."""

    class Raw(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 (zipfile's name)
            return self.raw, self.flag_bits  # type: ignore[attr-defined]

        __slots__ = ("raw",)

    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            member = Raw(f"{number}.png")
            member.raw = name  # type: ignore[attr-defined]
            archive.writestr(member, png(number))
    return path


def tar_of(path: Path, names: list[bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            content = png(number)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PACKERS = pytest.mark.parametrize("packer", [zip_of, tar_of])
HONEST = [b"train/dog/0.png", b"test/dog/0.png", b"test/cat/0.png"]


@PACKERS
def test_a_class_whose_name_is_not_utf_8_is_refused(packer: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("café".encode("latin-1"), "猫".encode("shift-jis"), "кот".encode("cp866")):
        message = refusal(packer(tmp_path / "a.archive", [*HONEST, b"train/cat/0.png", b"train/" + name + b"/0.png"]))
        assert f"the class folder {name.decode('utf-8', 'surrogateescape')!a} is not UTF-8" in message
        assert message.endswith("rename it")


@PACKERS
def test_a_file_whose_name_is_not_utf_8_is_read_with_a_warning(
    packer: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = packer(tmp_path / "a.archive", [*HONEST, b"train/cat/caf\xe9.png", b"train/cat/caf\xe8.png"])
    with caplog.at_level(logging.WARNING, "fastcifar"):
        found = pixels(path)
    assert len(found["train"]) == 3
    assert r"2 file names are not printable UTF-8, e.g. train/cat/caf\udce8.png" in caplog.text


def test_utf_8_in_a_zip_without_its_flag_is_read_as_such(tmp_path: Path) -> None:
    names = [*HONEST, "train/größe/0.png".encode(), b"train/cat/0.png"]
    assert names_of(zip_of(tmp_path / "a.zip", names)) == ("cat", "dog", "größe")


# ---- system files ------------------------------------------------------------------------------------------------

OF_SYSTEMS = (
    "train/cat/desktop.ini",
    "train/cat/Desktop.INI",
    "train/cat/Thumbs.db",
    "train/cat/ehthumbs.db",
    "train/cat/.DS_Store",
    "train/cat/._00.png",
    "train/cat/.hidden.png",
    "train/cat/@eaDir/00.png/SYNOFILE_THUMB_M.jpg",
    "train/.ipynb_checkpoints/00-checkpoint.png",
    "train/@Recycle/00.png",
    "#recycle/train/cat/00.png",
    "$RECYCLE.BIN/desktop.ini",
    "__MACOSX/train/cat/._00.png",
    "System Volume Information/train/x.png",
    "train/cat/00.png:Zone.Identifier",
    "train/cat/~$notes.png",
    "train/lost+found/x.png",
    ".git/train/cat/x.png",
    "train/cat/Icon\r",
)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_system_files_are_ignored_and_counted(
    image_folder: ImageFolder, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = image_folder()
    expected = pixels(folder)
    for name in OF_SYSTEMS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    with caplog.at_level(logging.INFO, "fastcifar"):
        assert pixels(folder if kind == "folder" else pack(folder, kind)) == expected
    assert f"{len(OF_SYSTEMS)} system files ignored, e.g. " in caplog.text


# ---- other layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["Train", "data/Train", "cifar10/cifar10/train", "TRAIN"])
def test_splits_may_be_in_capitals_and_two_folders_deep(image_folder: ImageFolder, tmp_path: Path, around: str) -> None:
    folder = image_folder()
    expected = pixels(folder)
    target = tmp_path / "other" / around
    target.parent.mkdir(parents=True)
    os.rename(folder / "train", target)
    os.rename(folder / "test", target.parent / "Test")
    (tmp_path / "other/README.md").touch()
    assert pixels(tmp_path / "other") == expected


@pytest.mark.parametrize("around", [".", "data"])
def test_images_next_to_train_and_test_are_named(
    image_folder: ImageFolder, tmp_path: Path, around: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless they lie in no folder, as a picture for a README."""
    folder = image_folder()
    expected, inside = pixels(folder), tmp_path / "other" / around
    shutil.copytree(folder, inside)
    for name in ("train_part2/cat/0.png", "train_part2/dog/0.png", "new\nline/0.png", "notes/0.txt", "picture.png"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(png())
    (inside.parent / "picture.png").write_bytes(png())
    assert pixels(tmp_path / "other") == expected
    prefix = "" if around == "." else f"{around}/"
    named = rf"{prefix}new\nline/ (1), {prefix}train_part2/ (2)"
    (message,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert message.endswith(f": images in folders next to train/ and test/ are not used: {named}")


def move(before: str, after: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / after).parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / before, folder / after)

    return make


def flat(folder: Path) -> None:
    for split in ("train", "test"):
        os.rename(folder / split / "cat/00.png", folder / split / "00.png")
        for name in ("cat", "dog"):
            for file in (folder / split / name).iterdir():
                file.unlink()
            (folder / split / name).rmdir()
    (folder / "trainLabels.csv").write_text("id,label\n")


OTHER = {
    "csv": (
        flat,
        "00.png",
        "train/ (1 files), trainLabels.csv; give the table of labels as the source, and this folder as --images-root",
    ),
    "no splits": (move("train", "images"), "no images in train/", "images/ (6 files), test/ (6 files)"),
    "too deep": (move("train", "a/b/c/train"), "no images in train/", "a/ (6 files), test/ (6 files)"),
    "both spellings": (move("train/dog", "Train/dog"), "has ", "expected one of them"),
}


@pytest.mark.parametrize("name", list(OTHER))
def test_another_layout_is_an_error_that_shows_what_was_found_and_expected(
    image_folder: ImageFolder, name: str
) -> None:
    folder = image_folder()
    make, reason, found = OTHER[name]
    make(folder)
    message = refusal(folder)
    assert reason in message
    assert found in message


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("JPEG, PNG, WebP, BMP, GIF or TIFF; found nothing")


def test_one_class_is_refused_by_convert(image_folder: ImageFolder, tmp_path: Path) -> None:
    folder = image_folder(classes=("cat",))
    done = CliRunner().invoke(main, ["convert", "--source", str(folder), "--data-dir", str(tmp_path / "data")])
    assert done.exit_code == 4
    assert f"{folder}: has only the class 'cat'; expected at least two classes" in done.output
    assert not (tmp_path / "data").exists()
