"""A folder, tar or zip of images: `train/<class>/*` and `test/<class>/*`, JPEG or PNG, all of one size.

The files are read in the order of their paths: a folder and an archive of it give the same beton.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import PIL.Image

from fastcifar.converters.archives import READ_ERRORS
from fastcifar.converters.layout import MAX_DEPTH, ImageFile, Listing, escape, group_by_class
from fastcifar.converters.sources import Image, Source
from fastcifar.data.image_files import HEAD_BYTES, apply_exif_orientation, decode_error_reason
from fastcifar.errors import DataError
from fastcifar.io.reading import read_bytes

log = logging.getLogger(__name__)
MAX_IMAGE_BYTES = 64 * 2**20
MAX_SIDE = 1_672  # a larger square does not fit into a beton's page
MAX_SCANS = 100
"""Of a JPEG: a progressive one has about ten, and each takes as long as the whole image."""
START_OF_SCAN = b"\xff\xda"
DECODABLE = ("a JPEG image", "a PNG image")


class ImageSplit:
    """The images of one split, decoded on demand; all must have the shape of the first training image."""

    def __init__(self, path: Path, files: list[tuple[ImageFile, int]], first: tuple[str, tuple[int, int]]) -> None:
        self._path, self._files, self._first = path, files, first
        self._is_logged = False

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        first_name, (height, width) = self._first
        num_rotated = 0
        for file, label in self._files:
            image, is_rotated = decode(self._path, file)
            num_rotated += is_rotated
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"{self._path}: {escape(file.name)} is {image.shape[0]}x{image.shape[1]}, {escape(first_name)} "
                    f"is {height}x{width} (height x width); expected one size for all: resize or remove it"
                )
            yield image, label
        if num_rotated and not self._is_logged:  # not again when the split is read a second time, to be compared
            self._is_logged = True
            folder = self._files[0][0].name.partition("/")[0]
            log.info(
                "%s: %d images of %s/ rotated or flipped by their EXIF orientation", self._path, num_rotated, folder
            )


def decode(path: Path, file: ImageFile) -> tuple[Image, bool]:
    """An image of the source `path` as (H, W, 3) uint8 RGB, and whether its EXIF orientation changed it.

    Raises DataError unless it is a JPEG or PNG that RGB can represent.
    """

    def refuse(reason: str) -> DataError:
        return DataError(f"{path}: {escape(file.name)}: {reason}")

    try:
        content = file.read(MAX_IMAGE_BYTES)
    except READ_ERRORS as error:
        raise refuse(f"cannot be read ({error})") from error
    if content.startswith(b"\xff\xd8") and content.count(START_OF_SCAN) > MAX_SCANS:
        raise refuse(f"has over {MAX_SCANS} scans; save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = PIL.Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
            if max(opened.size) > MAX_SIDE:
                raise refuse(f"is {opened.height}x{opened.width}; expected at most {MAX_SIDE} pixels a side")
            is_16_bit = any("16" in str(tile[3]) for tile in opened.tile)  # Pillow would drop half of the bits
            if is_16_bit or opened.mode in ("I", "F") or opened.mode.startswith("I;"):
                raise refuse(f"has mode {opened.mode!r}; expected 8 bits a channel")
            has_alpha = "transparency" in opened.info or "A" in opened.getbands()
            if has_alpha and opened.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise refuse("has transparent pixels; expected an opaque image")
            image, is_rotated = apply_exif_orientation(opened)
            return np.asarray(image.convert("RGB")), is_rotated
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for a damaged image
        reason = decode_error_reason(content[:HEAD_BYTES], error, DECODABLE)
        raise refuse(f"not a JPEG or PNG image: {reason}; replace or remove it") from error


def open_folder(path: Path, *, skip_empty: bool = False) -> Source:
    """A folder of images. skip_empty: leave out class folders without images."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    listing = Listing()
    ancestors: dict[Path, list[tuple[int, int]]] = {}
    for base, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        relative, status = Path(base).relative_to(path), os.stat(base)
        above = ancestors.get(relative.parent, []) if relative.parts else []
        identity = status.st_dev, status.st_ino
        ancestors[relative] = [*above, identity]
        if identity in above:  # a link to a folder around it
            folders.clear()
            continue
        if len(relative.parts) > MAX_DEPTH + 3:  # deeper than any dataset
            folders.clear()
        folders[:] = sorted(name for name in folders if listing.accepts((relative / name).as_posix()))
        if relative.parts:
            listing.folders.append(relative.as_posix())
        names = [(relative / name).as_posix() for name in sorted(files)]
        listing.files += [ImageFile(name, _make_reader(path / name)) for name in names if listing.accepts(name)]
    return _open_listing(path, path.resolve().name, listing, ExitStack(), skip_empty)


def open_archive(path: Path, listing: Listing, resources: ExitStack, *, skip_empty: bool = False) -> Source:
    """The images in the archive at `path`, which the source closes with `resources`. skip_empty: see `open_folder`."""
    return _open_listing(path, path.name, listing, resources, skip_empty)


def _open_listing(path: Path, name: str, listing: Listing, resources: ExitStack, skip_empty: bool) -> Source:
    class_names, files = group_by_class(path, listing, skip_empty=skip_empty)
    first = files["train"][0][0]
    image, _ = decode(path, first)
    return Source(
        description=f"images of {name}",
        class_names=class_names,
        splits={split: ImageSplit(path, files[split], (first.name, image.shape[:2])) for split in files},
        resources=resources.pop_all(),
    )


def _make_reader(path: Path) -> Callable[[int], bytes]:
    return lambda max_bytes: read_bytes(path, max_bytes)
