"""Images of every format and mode become RGB of one size; what was changed is counted."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fastcifar.converters import convert
from fastcifar.converters.summary import describe
from fastcifar.data import image_files
from fastcifar.data.beton import open_beton
from fastcifar.data.image_files import AS_IT_IS, Decoded, ImageError, Preprocessing, decode_image, quiet_pillow
from tests.conftest import ImageFolder
from tests.reference import resize_image

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (9, 7, 3), np.uint8)
GREY = RANDOM.integers(0, 256, (9, 7), np.uint8)
DEEP = RANDOM.integers(0, 2**16, (9, 7, 4), np.uint16)
ALPHA = RANDOM.integers(0, 256, (9, 7), np.uint8)
ALPHA[0], ALPHA[1] = 0, 255
BACKGROUND = (10, 200, 30)


def decoded(content: bytes, **rule: object) -> Decoded:
    with quiet_pillow():
        return decode_image(content, Preprocessing(**rule))  # type: ignore[arg-type]


def saved(image: PIL.Image.Image, form: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def png(pixels: np.ndarray, colour: int, transparent: bytes = b"", bits: int = 16) -> bytes:
    """A PNG of 16 bits a channel, or grey of 2 or 4 bits a pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    height, width = pixels.shape[:2]
    stored = pixels.astype(">u2")
    if bits < 16:
        planes = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=2)[..., -bits:]  # (H, W, bits)
        stored = np.packbits(planes.reshape(height, -1), axis=1)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in stored))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray) -> bytes:
    """A TIFF of RGB of 16 bits a channel, big-endian."""
    height, width, _ = pixels.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, 134), (259, 3, 1), (262, 3, 2), (273, 4, 140), (277, 3, 3)]
    tags += [(278, 4, height), (279, 4, pixels.nbytes)]
    out = b"MM\0\x2a" + struct.pack(">IH", 8, len(tags))
    for tag, kind, value in tags:
        count, field = (
            (3, struct.pack(">I", 134))
            if tag == 258
            else (1, struct.pack(">I" if kind == 4 else ">HH", *((value,) if kind == 4 else (value, 0))))
        )
        out += struct.pack(">HHI", tag, kind, count) + field
    out = (out + bytes(4)).ljust(134, b"\0")
    return out + struct.pack(">HHH", 16, 16, 16) + pixels.astype(">u2").tobytes()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def over(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    part = alpha[..., None] / 255
    return np.floor(pixels * part + np.array(BACKGROUND) * (1 - part) + 0.5).astype(np.uint8)


P = PIL.Image.fromarray(RGB).quantize(16)
P_RGB = np.array(P.getpalette()).reshape(-1, 3)[np.asarray(P)].astype(np.uint8)
FIRST = np.asarray(P) == 3
WITH_ALPHA = PIL.Image.fromarray(np.dstack([RGB, ALPHA]))
LA = PIL.Image.merge("LA", [PIL.Image.fromarray(GREY), PIL.Image.fromarray(ALPHA)])
BITS = PIL.Image.fromarray(GREY > 127)
HIGH = (DEEP >> 8).astype(np.uint8)
KEY = DEEP[2, 3]
SAME_HIGH = (HIGH[..., :3] == HIGH[2, 3, :3]).all(axis=2)
EXACT: dict[str, tuple[bytes, np.ndarray, tuple[str, ...]]] = {
    **{f"RGB {form}": (saved(PIL.Image.fromarray(RGB), form), RGB, ()) for form in ("PNG", "BMP", "TIFF")},
    "RGB WebP": (saved(PIL.Image.fromarray(RGB), "WEBP", lossless=True), RGB, ()),
    "RGB TIFF, LZW": (saved(PIL.Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB, ()),
    **{f"grey {form}": (saved(PIL.Image.fromarray(GREY), form), grey(GREY), ("grey",)) for form in ("PNG", "TIFF")},
    "black and white PNG": (saved(BITS, "PNG"), grey(np.where(GREY > 127, 255, 0).astype(np.uint8)), ("grey",)),
    **{f"palette {form}": (saved(P, form), P_RGB, ("palette",)) for form in ("PNG", "BMP", "TIFF")},
    "GIF": (saved(P, "GIF"), P_RGB, ("palette",)),
    "GIF of two frames": (
        saved(P, "GIF", save_all=True, append_images=[PIL.Image.fromarray(255 - RGB).quantize(16)]),
        P_RGB,
        ("animated", "palette"),
    ),
    "transparent palette PNG": (
        saved(P, "PNG", transparency=3),
        over(P_RGB, np.where(FIRST, 0, 255)),
        ("palette", "transparent"),
    ),
    "transparent GIF": (
        saved(P, "GIF", transparency=3),
        over(P_RGB, np.where(FIRST, 0, 255)),
        ("palette", "transparent"),
    ),
    **{f"RGBA {form}": (saved(WITH_ALPHA, form), over(RGB, ALPHA), ("transparent",)) for form in ("PNG", "TIFF")},
    "RGBA WebP": (saved(WITH_ALPHA, "WEBP", lossless=True, exact=True), over(RGB, ALPHA), ("transparent",)),
    "opaque RGBA PNG": (saved(PIL.Image.fromarray(RGB).convert("RGBA"), "PNG"), RGB, ()),
    "grey and alpha PNG": (saved(LA, "PNG"), over(grey(GREY), ALPHA), ("grey", "transparent")),
    "CMYK TIFF": (
        saved(PIL.Image.fromarray(np.dstack([255 - RGB, GREY * 0]), "CMYK"), "TIFF"),
        RGB,
        ("cmyk",),
    ),
    "grey of 16 bits, PNG": (png(DEEP[..., 0], 0), grey(HIGH[..., 0]), ("16-bit", "grey")),
    "grey of 16 bits, TIFF": (saved(PIL.Image.fromarray(DEEP[..., 0]), "TIFF"), grey(HIGH[..., 0]), ("16-bit", "grey")),
    "RGB of 16 bits, PNG": (png(DEEP[..., :3], 2), HIGH[..., :3], ("16-bit",)),
    "RGB of 16 bits, TIFF": (tiff(DEEP[..., :3]), HIGH[..., :3], ("16-bit",)),
    "RGBA of 16 bits, PNG": (png(DEEP, 6), over(HIGH[..., :3], HIGH[..., 3]), ("16-bit", "transparent")),
    "grey and alpha of 16 bits, PNG": (
        png(DEEP[..., :2], 4),
        over(grey(HIGH[..., 0]), HIGH[..., 1]),
        ("16-bit", "transparent"),
    ),
    "grey of 16 bits with a transparent value, PNG": (
        png(DEEP[..., 0], 0, struct.pack(">H", KEY[0])),
        over(grey(HIGH[..., 0]), np.where(DEEP[..., 0] == KEY[0], 0, 255)),
        ("16-bit", "grey", "transparent"),
    ),
    "RGB of 16 bits with a transparent colour, PNG": (
        png(DEEP[..., :3], 2, struct.pack(">HHH", *KEY[:3])),
        over(HIGH[..., :3], np.where(SAME_HIGH, 0, 255)),
        ("16-bit", "transparent"),
    ),
    **{
        f"grey of {bits} bits with a transparent value, PNG": (
            png(GREY >> (8 - bits), 0, struct.pack(">H", 2), bits),
            over(grey((GREY >> (8 - bits)) * (255 // (2**bits - 1))), np.where(GREY >> (8 - bits) == 2, 0, 255)),
            ("grey", "transparent"),
        )
        for bits in (2, 4)
    },
    "grey of 16 bits whose white is 0, TIFF": (
        saved(PIL.Image.fromarray(DEEP[..., 0]), "TIFF", tiffinfo={262: 0}),
        255 - grey(HIGH[..., 0]),
        ("16-bit", "grey"),
    ),
    "ICC profile": (saved(PIL.Image.fromarray(RGB), "PNG", icc_profile=b"any bytes"), RGB, ()),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_pixels_of_every_format_and_mode(name: str) -> None:
    content, expected, changes = EXACT[name]
    result = decoded(content, background=BACKGROUND)
    assert result.pixels.dtype == np.uint8
    assert np.abs(result.pixels.astype(int) - expected).max() <= (1 if "transparent" in changes else 0)
    assert (sorted(result.changes), result.size) == (sorted(changes), (9, 7))


@pytest.mark.parametrize(
    ("mode", "colour", "expected", "changes"),
    [
        ("RGB", (200, 40, 90), (200, 40, 90), ()),
        ("L", 70, (70, 70, 70), ("grey",)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255), ("cmyk",)),
        ("CMYK", (0, 0, 0, 204), (51, 51, 51), ("cmyk",)),
        ("YCbCr", (128, 128, 128), (128, 128, 128), ()),
    ],
)
def test_colours_of_jpeg(mode: str, colour: object, expected: tuple[int, ...], changes: tuple[str, ...]) -> None:
    content = saved(PIL.Image.new(mode, (24, 16), colour), "JPEG", quality=100)  # type: ignore[arg-type]
    assert (b"Adobe" in content) == (mode == "CMYK")  # then its values are inverted
    result = decoded(content)
    assert np.abs(result.pixels.astype(int) - expected).max() <= 3
    assert result.changes == changes


def test_a_bmp_of_16_bits_a_pixel_has_no_16_bits_a_channel() -> None:
    head = struct.pack("<2sIII", b"BM", 0, 0, 66) + struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 3, 0, 0, 0, 0, 0)
    content = head + struct.pack("<III", 0xF800, 0x7E0, 0x1F) + struct.pack("<8H", *[0xF800] * 8)
    result = decoded(content)
    assert result.changes == ()
    assert result.pixels[0, 0].tolist() == [255, 0, 0]
    assert decoded(saved(PIL.Image.new("RGB", (16, 16)), "TIFF")).changes == ()


@pytest.mark.parametrize("mode", ["F", "I", "LAB", "HSV"])
def test_a_mode_without_a_meaning_in_rgb_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"has mode '{mode}'; expected 8 or 16 bits a channel, grey, RGB or CMYK"):
        image_files.convert_image(PIL.Image.new(mode, (8, 8)), AS_IT_IS)


# ---- upright -----------------------------------------------------------------------------------------------------

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_rotated_file_gives_what_the_upright_one_gives(orientation: int, form: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    turned = saved(PIL.Image.fromarray(RGB), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    upright = saved(PIL.Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](RGB))), "PNG")
    rules = [{}, *({"size": (5, 4), "fit": fit, "background": BACKGROUND} for fit in image_files.FITS)]
    for rule in rules:
        result, expected = decoded(turned, **rule), decoded(upright, **rule)
        np.testing.assert_array_equal(result.pixels, expected.pixels)
        assert result.size == expected.size
        changes = (*(["rotated"] if orientation > 1 else []), *(["resized"] if rule else []))
        assert result.changes == changes


# ---- resized -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", image_files.FITS)
@pytest.mark.parametrize("old", [(5, 9), (40, 17), (64, 48), (1, 7), (8, 8), (13, 6)])
@pytest.mark.parametrize("new", [(8, 8), (13, 6), (1, 1)])
def test_resizing_is_that_of_the_reference(old: tuple[int, int], new: tuple[int, int], fit: str) -> None:
    image = RANDOM.integers(70, 186, (*old, 3), np.uint8)  # between the axes Pillow clips to 0..255
    result = decoded(saved(PIL.Image.fromarray(image), "PNG"), size=new, fit=fit, background=BACKGROUND)
    expected = resize_image(image, new, fit, BACKGROUND) if old != new else image
    assert result.pixels.shape == (*new, 3)
    assert np.abs(result.pixels.astype(int) - expected).max() <= 1
    assert result.changes == (("resized",) if old != new else ())


def test_fine_stripes_become_grey_and_not_a_pattern() -> None:
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = decoded(saved(PIL.Image.fromarray(stripes), "PNG"), size=(30, 30)).pixels
    assert np.abs(pixels[:, 2:-2].astype(int) - 127).max() < 12


def photograph(seed: int, height: int, width: int) -> PIL.Image.Image:
    """Smooth noise of several sizes, the larger the stronger, as in nature."""
    random, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cells in (3, 6, 12, 25, 50, 100, 200):
        noise = random.normal(size=(cells, cells, 3)).astype(np.float32)
        layers = [
            PIL.Image.fromarray(noise[..., i]).resize((width, height), PIL.Image.Resampling.BICUBIC) for i in range(3)
        ]
        total += np.dstack([np.asarray(layer) for layer in layers]) / cells
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return PIL.Image.fromarray(total.astype(np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(375, 500, 64), (500, 333, 32), (601, 799, 48), (300, 1_000, 64)]
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("fit", image_files.FITS)
def test_scaled_decoding_is_within_one_grey_level_on_average(
    height: int, width: int, size: int, fit: str, orientation: int
) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    content = saved(photograph(size, height, width), "JPEG", quality=90, exif=exif)
    full = saved(PIL.Image.open(io.BytesIO(content)), "PNG", exif=exif)
    rule = {"size": (size, size), "fit": fit}
    scaled, exact = decoded(content, **rule), decoded(full, **rule)
    difference = np.abs(scaled.pixels.astype(int) - exact.pixels)
    assert 0 < difference.mean() < 1
    assert scaled.size == exact.size == ((height, width) if orientation < 5 else (width, height))


# ---- hostile -----------------------------------------------------------------------------------------------------


def test_frames_after_the_first_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 60 MB may hold millions."""
    from PIL.GifImagePlugin import GifImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    frames = {"save_all": True, "append_images": [PIL.Image.fromarray(255 - RGB)] * 3}
    for form, kind in (("GIF", GifImageFile), ("TIFF", TiffImageFile)):
        content = saved(PIL.Image.fromarray(RGB), form, **frames)
        monkeypatch.setattr(kind, "n_frames", property(lambda self: pytest.fail("counted")))
        assert "animated" in decoded(content).changes


def test_a_large_image_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    class Lock:
        def __enter__(self) -> None:
            entered.append(1)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(image_files, "_large_image", Lock())
    monkeypatch.setattr(image_files, "_LARGE_PIXELS", 100 * 100)
    decoded(saved(PIL.Image.new("RGB", (100, 100)), "PNG"))
    assert not entered
    decoded(saved(PIL.Image.new("RGB", (200, 200)), "JPEG"), size=(4, 4))  # libjpeg decodes it to 25x25
    assert not entered
    decoded(saved(PIL.Image.new("RGB", (101, 100)), "PNG"))
    decoded(saved(PIL.Image.new("RGB", (200, 200)), "JPEG", progressive=True), size=(4, 4))  # kept in memory whole
    assert len(entered) == 2


def test_pixels_are_bounded_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 99)
    for rule in ({}, {"size": (4, 4)}):
        with pytest.raises(ImageError, match="is 10x10; expected at most 99 pixels"):
            decoded(saved(PIL.Image.new("RGB", (10, 10)), "PNG"), **rule)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ImageError, match="has over 99 pixels"):
        decoded(saved(PIL.Image.new("RGB", (10, 10)), "PNG"))


# ---- counted -----------------------------------------------------------------------------------------------------


def test_the_summary_counts_every_change(image_folder: ImageFolder, tmp_path: Path) -> None:
    folder = image_folder(each=2, side=4)
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    files = {
        "a.png": saved(PIL.Image.fromarray(GREY), "PNG"),
        "b.gif": EXACT["GIF of two frames"][0],
        "c.jpg": saved(PIL.Image.new("CMYK", (4, 4)), "JPEG"),
        "d.tiff": tiff(DEEP[..., :3]),
        "e.webp": EXACT["RGBA WebP"][0],
        "f.BMP": EXACT["RGB BMP"][0],
        "g.JPEG": saved(PIL.Image.fromarray(RGB), "JPEG", exif=exif),
    }
    for name, content in files.items():
        (folder / "train/cat" / name).write_bytes(content)
    (folder / "train/cat/Thumbs.db").touch()
    manifests = convert(folder, tmp_path / "data", size=4)
    facts = manifests["train"].conversion
    kinds = dict.fromkeys(("grey", "palette", "cmyk", "16-bit", "transparent", "rotated", "animated"), 1)
    assert facts.changes == {**kinds, "resized": 6}
    assert facts.sizes == {"9x7": 5, "4x4": 5, "7x9": 1}
    assert (facts.size, facts.fit, facts.num_ignored) == ((4, 4), "crop", 1)
    lines = list(describe(manifests))
    assert "train: original sizes (height x width), most frequent first: 4x4 (5), 9x7 (5), 7x9 (1)" in lines
    assert "train: 1 image grey: converted to RGB" in lines
    assert "train: 6 images resized" in lines
    assert "1 file or folder of operating systems ignored" in lines
    assert open_beton(tmp_path / "data/train.beton").image_shape == (4, 4, 3)
