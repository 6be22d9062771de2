"""Kinds of files and EXIF orientation: the same in `convert` and in `predict`."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from fastcifar.converters import convert, open_source
from fastcifar.converters.summary import describe
from fastcifar.data.beton import open_beton
from fastcifar.data.file_kind import HEAD_BYTES, file_kind
from fastcifar.data.image_files import AS_IT_IS, ImageError, decode_image, quiet_pillow
from fastcifar.errors import DataError, FastcifarError, UsageError
from tests.conftest import ImageFolder
from tests.test_sources import pixels
from tests.test_user_images import read_user_image

NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def saved(form: str, **settings: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(NOISE).save(file, form, **settings)
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
KINDS = {
    "WebP": (saved("WEBP"), "a WebP image"),
    "GIF": (saved("GIF"), "a GIF image"),
    "BMP": (saved("BMP"), "a BMP image"),
    "TIFF": (saved("TIFF"), "a TIFF image"),
    "PPM": (saved("PPM"), "a PPM, PGM or PBM image"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "a JPEG 2000 image"),
    "JPEG XL": (b"\xff\x0a" + bytes(20), "a JPEG XL image"),
    "AVIF": (b"\0\0\0\x20ftypavif" + bytes(20), "an AVIF image"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(20), "a HEIC image"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(20), "an MP4 or QuickTime video"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(20), "a Matroska or WebM video"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="x">', "an SVG drawing"),
    "HTML": (b"\n<!DOCTYPE html><html><head><title>404", "an HTML page, as a website sends"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML file"),
    "JSON": (b'{"message": "not found"}', "text, such as JSON"),
    "LFS": (LFS, "a Git LFS pointer, not the file itself"),
    "text": (b"not an image", "text, and begins with 'not an image'"),
    "text of an odd length": (b"none!", "text, and begins with 'none!'"),
    "UTF-16": ("not an image".encode("utf-16"), "text, and begins with 'not an image'"),
    "address": (b"https://example.com/cat.jpg\n", "text: a URL"),
    "zip": (b"PK\x03\x04" + bytes(20), "a ZIP archive"),
    "pickle": (pickle.dumps({"data": 1}), "a Python pickle"),
    "NumPy": (b"\x93NUMPY\x01\0", "a NumPy array"),
    "AppleDouble": (b"\0\x05\x16\x07" + bytes(20), "an AppleDouble file"),
    "zeros": (bytes(500), "a file of zero bytes"),
    "nothing": (b"", "an empty file"),
    "bytes": (b"\x9f\x01\x02\x03\x04\x05\x06\x07\x08", "of an unknown kind (it begins with the bytes 9f 01 02 03"),
}
DECODED = {"WebP", "GIF", "BMP", "TIFF", "PPM"}
"""What Pillow reads, whatever its name."""


@pytest.mark.parametrize("name", sorted(set(KINDS) - DECODED))
def test_convert_names_the_kind_of_a_file_that_is_not_an_image(image_folder: ImageFolder, name: str) -> None:
    content, kind = KINDS[name]
    folder = image_folder()
    (folder / "train/cat/x.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught:
        pixels(folder)
    assert f"train/cat/x.jpg: not a readable image (it is {kind}" in str(caught.value)
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(KINDS) - DECODED))
def test_explain_names_the_kind_of_a_file_that_is_not_an_image(tmp_path: Path, name: str) -> None:
    content, kind = KINDS[name]
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_user_image(path, (8, 8, 3))
    assert f"{path}: not a readable image (it is {kind}" in str(caught.value)


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "a JPEG image"), ("PNG", "a PNG image")])
@pytest.mark.parametrize("left", [30, 0.5])
def test_a_truncated_image_is_reported_as_truncated(
    image_folder: ImageFolder, form: str, kind: str, left: float
) -> None:
    content = saved(form)
    folder = image_folder()
    path = folder / "train/cat/x.png"
    path.write_bytes(content[: int(left if left > 1 else left * len(content))])
    expected = f"it begins as {kind} and is truncated or corrupt: "
    with pytest.raises(DataError, match=expected):
        pixels(folder)
    with pytest.raises(DataError, match=expected):
        read_user_image(path, (8, 8, 3))


def test_any_bytes_have_a_kind() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 15, 300, HEAD_BYTES):
        for _ in range(50):
            name = file_kind(random.bytes(size))
            assert name.isprintable()
            assert name.split()[0] in ("a", "an", "of", "text,", "text:")


def test_no_error_message_has_a_memory_address() -> None:
    for odd in (object(), io.BytesIO(), file_kind, {"a": object()}.values(), type("T", (), {})().__init__):
        for kind in (FastcifarError, UsageError, DataError):
            message = str(kind(f"value is {odd!r}; expected another"))
            assert "0x" not in message
            assert message.endswith("; expected another")


def test_data_behind_a_jpeg_has_no_scans() -> None:
    """Phones put a video there."""
    whole = saved("JPEG", progressive=True)
    video = b"\0\0\0\x18ftypmp42" + 101 * b"\xff\xda\0\2"
    decoded = decode_image(whole + video, AS_IT_IS)
    np.testing.assert_array_equal(decoded.pixels, decode_image(whole, AS_IT_IS).pixels)


@pytest.mark.parametrize(
    "hidden_by", [b"", b"\xff\xfe\0\4\xff\xd9", b"\xff\xff\xfe\0\4\xff\xd9", b"\xff\x01", b"\xff\xd0", b"\xff\0\xd9"]
)
def test_no_end_within_a_jpeg_hides_its_scans(hidden_by: bytes) -> None:
    """It may be in a comment, as in the EXIF segment, whose thumbnail has its own."""
    whole = saved("JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    image = whole[:at] + hidden_by + 101 * whole[at:-2] + whole[-2:]
    with pytest.raises(ImageError, match="has over 100 scans; save it again"):
        decode_image(image, AS_IT_IS)


# ---- upright -----------------------------------------------------------------------------------------------------


def turned(path: Path, orientation: int, form: str = "JPEG") -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    PIL.Image.fromarray(NOISE[:, :6]).save(path, form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_convert_and_explain_apply_exif_orientation_alike(
    image_folder: ImageFolder, tmp_path: Path, orientation: int, form: str
) -> None:
    folder = image_folder(each=0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            turned(folder / f"{split}/{name}/0.png", orientation, form)
    manifests = convert(folder, tmp_path / "data")
    path = folder / "train/cat/0.png"
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(path)))
    assert expected.shape == ((8, 6, 3) if orientation < 5 else (6, 8, 3))
    np.testing.assert_array_equal(open_beton(tmp_path / "data/train.beton").images([0])[0], expected)
    np.testing.assert_array_equal(read_user_image(path, expected.shape), expected)
    lines = [line for line in describe(manifests) if "EXIF" in line]
    texts = [f"{split}: 2 images rotated or flipped by their EXIF orientation" for split in ("train", "test")]
    assert lines == (texts if orientation > 1 else [])


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_a_damaged_exif_segment_is_ignored(image_folder: ImageFolder, exif: bytes) -> None:
    folder = image_folder()
    path = folder / "train/cat/00.png"
    path.write_bytes(saved("JPEG", exif=exif))
    with quiet_pillow(), open_source(folder) as source:
        image = next(iter(source.splits["train"])).image
    np.testing.assert_array_equal(image, PIL.Image.open(io.BytesIO(saved("JPEG"))))
    np.testing.assert_array_equal(read_user_image(path, (8, 8, 3)), image)
