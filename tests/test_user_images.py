"""The user's own images: which ones a path names, and what the network gets of them."""

from __future__ import annotations

import io
import os
import signal
import struct
import tarfile
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from fastcifar.converters.sources import CHUNK_IMAGES, Broken
from fastcifar.data.beton import open_beton
from fastcifar.data.image_files import ImageError, Preprocessing, quiet_pillow
from fastcifar.errors import DataError, Stopped
from fastcifar.inference.predictions import UNKNOWN
from fastcifar.inference.user_images import UserImage, decode_images, list_images


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is also the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


def read_user_image(path: Path, image_shape: tuple[int, ...]) -> Any:
    """What the network gets of one file. Raises DataError."""
    rule = Preprocessing(size=(image_shape[0], image_shape[1]))
    with ExitStack() as resources, quiet_pillow():
        (result,) = decode_images(list_images([path], (), resources), rule)
    if isinstance(result, Broken):
        raise DataError(f"{result.origin}: {result.reason}")
    return result.image


def listed(*paths: str | Path, class_names: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """The names of the images that can be read, and the reasons of the others by name."""
    with ExitStack() as resources, quiet_pillow():
        results = list(decode_images(list_images(paths, class_names, resources), Preprocessing(size=(4, 4))))
    broken = {result.origin: result.reason for result in results if isinstance(result, Broken)}
    return [result.origin for result in results if not isinstance(result, Broken)], broken


def test_pictures_are_files_folders_and_patterns(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("p/b.png", "p/a.png", "p/deep/c.png", "p/.hidden/d.png", "p/@eaDir/e.png", "p/[1].png"):
        picture(home / name)
    (home / "p" / "notes.txt").write_text("no picture")
    names, broken = listed("p", "~/p/a.png", "p/[ab].png", "p/[1].png", "p/**/c.*", "**/a.png", "p/d*")
    found = ["p/[1].png", "p/a.png", "p/b.png", "p/deep/c.png"]
    patterns = ["p/a.png", "p/b.png", "p/[1].png", "p/deep/c.png", "p/a.png", "p/deep/c.png"]
    assert [os.path.relpath(name) for name in names] == [*found, "p/a.png", *patterns]
    assert not broken
    assert caplog.messages == ["p: skipped 1 file that is not an image; the first: p/notes.txt"]
    (home / "empty").mkdir()
    assert listed("*.gif", "none.png", "p/notes.txt", "empty", "https://example.com/x.png") == (
        [],
        {
            "*.gif": "no file matches",
            "none.png": "no such image",
            "p/notes.txt": "not a readable image (it is text, and begins with 'no picture')",
            "empty": "no image among 0 files; expected images, e.g. JPEG, PNG, WebP, BMP, GIF or TIFF",
            "https://example.com/x.png": "image is 'https://example.com/x.png', a URL; expected a path on this "
            "machine; download the file first",
        },
    )


def test_images_without_a_suffix_are_read_and_of_other_formats_named(home: Path) -> None:
    picture(home / "p" / "a.png").rename(home / "p" / "0badc0ffee")
    (home / "p" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    names, broken = listed("p")
    assert names == ["p/0badc0ffee"]
    assert broken == {"p/phone.heic": "not a readable image (it is a HEIC image)"}


def test_links_to_folders_are_counted_and_not_followed(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also by a pattern: `glob` would follow a link to the folder itself 40 times, and two of them 2**40 times."""
    picture(home / "p" / "a.png")
    (home / "p" / "again").symlink_to(".")
    assert listed("p") == (["p/a.png"], {})
    assert caplog.messages == ["p: links to folders are not followed: 1, the first: p/again"]
    assert listed("p/**/*.png") == (["p/a.png"], {})
    assert listed("p/again") == (["p/again/a.png"], {})  # by name


def test_folders_are_read_to_a_depth(home: Path) -> None:
    deep = home / "p" / "/".join("x" * 60)
    picture(deep / "a.png")
    picture(home / "p" / "b.png")
    assert listed("p") == (["p/b.png"], {"p/" + "/".join("x" * 51): "over 50 folders deep; not read"})


def test_odd_files_among_images_are_named(home: Path) -> None:
    """None is waited for, none fills the memory."""
    picture(home / "p" / "a.png")
    os.mkfifo(home / "p" / "pipe")
    for name, target in (("zero.png", "/dev/zero"), ("gone", "nowhere"), ("loop.png", "loop.png")):
        (home / "p" / name).symlink_to(target)
    (home / "p" / "huge.jpg").touch()
    os.truncate(home / "p" / "huge.jpg", 2**40)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**6)))
    with (home / "p" / "bomb.png").open("wb") as bomb:
        bomb.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            bomb.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    expected = {
        "p/bomb.png": "has over 100,000,000 pixels; expected at most that many",
        "p/gone": "a link to nowhere, which does not exist",
        "p/huge.jpg": "cannot be read (it has 1,048,576.0 MiB; expected at most 64)",
        "p/loop.png": "a loop of links",
        "p/pipe": "cannot be read (not a regular file)",
        "p/zero.png": "cannot be read (not a regular file)",
    }
    assert listed("p") == (["p/a.png"], expected)
    assert listed(*expected)[1] == expected


def test_the_images_of_an_archive_are_those_of_its_folder(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("p/a.png", "p/cats/b.png"):
        picture(home / name)
    (home / "p" / "notes.txt").write_text("no picture")
    (home / "p" / "c.png").write_text("no picture")
    with zipfile.ZipFile("p.zip", "w", strict_timestamps=False) as archive:
        for file in sorted((home / "p").rglob("*.*")):
            archive.write(file, file.relative_to(home))
    with tarfile.open("photos", "w:xz") as tar:
        tar.add("p")
    reason = "not a readable image (it is text, and begins with 'no picture')"
    for archive_name in ("p.zip", "photos"):
        names = [f"{archive_name}/p/a.png", f"{archive_name}/p/cats/b.png"]
        assert listed(archive_name) == (names, {f"{archive_name}/p/c.png": reason})
        assert f"{archive_name}: skipped 1 file that is not an image; the first: p/notes.txt" in caplog.messages
    assert listed("*.zip")[0] == ["p.zip/p/a.png", "p.zip/p/cats/b.png"]
    content = Path("photos").read_bytes()
    Path("half.tar").write_bytes(content[: len(content) // 2])
    names, broken = listed("half.tar", "p/a.png")
    assert names == ["p/a.png"]
    assert broken["half.tar"].startswith("truncated or corrupt tar or zip archive (")
    assert broken["half.tar"].endswith("expected images in a zip or tar")


def test_an_archive_names_no_path_of_this_machine(home: Path) -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    with zipfile.ZipFile("p.zip", "w") as archive:
        archive.writestr("../../escaped\x1b.png", file.getvalue())
    assert listed("p.zip") == (["p.zip/../../escaped\ufffd.png"], {})
    assert not list(home.parent.glob("escaped*"))


def test_the_images_of_a_beton_have_index_label_and_origin(tiny_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny_data / "test.beton"
    beton = open_beton(path)
    with ExitStack() as resources:
        images = list_images([path], beton.class_names, resources)
        others = list_images([path], ("cat", "dog"), resources)
    assert [image.index for image in images] == list(range(40))
    assert [image.label for image in images] == beton.labels.tolist()
    assert [image.origin for image in images] == beton.origins()
    assert images[7].name == f"{path}[7]"
    height, width, _ = beton.image_shape
    results = decode_images(images, Preprocessing(size=(height, width)))
    np.testing.assert_array_equal(np.stack([result.image for result in results]), beton.images(range(40)))  # type: ignore[union-attr]
    assert {image.label for image in others} == {UNKNOWN}
    assert caplog.messages == [f"{path}: its classes are not those of the network; their names are not shown"]
    assert listed(path)[1] == {}  # of another size: resized
    names, broken = listed(tiny_data, tiny_data / "none.beton")
    assert names == []
    assert broken[str(tiny_data)].endswith(f"expected images, or a beton, e.g. {path}")
    assert broken[str(tiny_data / "none.beton")].startswith("no such file; make it with: fastcifar convert")


def test_images_are_read_only_a_few_ahead() -> None:
    taken = []

    def fetch(number: int) -> Any:
        taken.append(number)
        raise ImageError("none")

    images = [UserImage(name=str(i), fetch=lambda i=i: fetch(i)) for i in range(100 * CHUNK_IMAGES)]  # type: ignore[misc]
    next(decode_images(images, Preprocessing(size=(4, 4))))
    assert len(taken) <= 10 * CHUNK_IMAGES


def test_an_own_image_is_cropped_to_the_proportions_of_the_data_and_resized(tmp_path: Path) -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = (10, 200, 30)
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    found = read_user_image(tmp_path / "a.png", (32, 32, 3))
    assert found.shape == (32, 32, 3)
    assert (found[:, 2:-2] == (10, 200, 30)).all()  # the filter reaches over the cut
    same = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    PIL.Image.fromarray(same).save(tmp_path / "b.png")
    assert np.array_equal(read_user_image(tmp_path / "b.png", (32, 32, 3)), same)


def test_the_exif_orientation_of_an_own_image_is_applied(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    PIL.Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    assert (read_user_image(tmp_path / "a.png", (32, 32, 3))[:, 16:] == 255).all()


def test_an_own_image_of_16_bits_is_reduced_to_8(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full((32, 32), 51_400, np.uint16)).save(tmp_path / "a.png")
    assert (read_user_image(tmp_path / "a.png", (32, 32, 3)) == 200).all()


def test_a_signal_is_not_taken_for_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")

    def stop(*args: Any, **more: Any) -> Any:
        raise Stopped(signal.SIGTERM, "stopped")

    monkeypatch.setattr(PIL.Image.Image, "resize", stop)
    with pytest.raises(Stopped):
        read_user_image(tmp_path / "a.png", (32, 32, 3))
