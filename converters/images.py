"""A folder, tar or zip of images: `train/<class>/*` and `test/<class>/*`, or class folders alone.

The files are read in the order of their paths: a folder and an archive of it give the same beton.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from fastcifar.converters.archives import READ_ERRORS
from fastcifar.converters.layout import MAX_DEPTH, Listing, group_by_class
from fastcifar.converters.sources import IndexedSplit, Source, SourceOptions
from fastcifar.data.image_files import ImageError, Preprocessing, decode_image
from fastcifar.errors import DataError, escape
from fastcifar.io.reading import read_bytes

MAX_IMAGE_BYTES = 64 * 2**20


def read_image_file(path: Path) -> bytes:
    """The content of an image file. Raises ImageError."""
    try:
        return read_bytes(path, MAX_IMAGE_BYTES)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_listed_file(listing: Listing, name: str) -> bytes:
    """The content of an image file in a folder or archive. Raises ImageError."""
    try:
        return listing.read(name, MAX_IMAGE_BYTES)
    except READ_ERRORS as error:
        raise ImageError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def list_folder(path: Path) -> Listing:
    """The files in a folder and its subfolders, sorted by path."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    listing = Listing(lambda name, max_bytes: read_bytes(path / name, max_bytes))
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
        names = ((relative / name).as_posix() for name in sorted(files))
        listing.files += [name for name in names if listing.accepts(name)]
    return listing


def open_listing(path: Path, listing: Listing, resources: ExitStack, options: SourceOptions) -> Source:
    """The images in class folders of the folder or archive at `path`; the source closes `resources`."""
    class_names, files = group_by_class(path, listing, skip_empty=options.skip_empty_classes)
    return Source(
        description=f"images of {path.resolve().name if path.is_dir() else path.name}",
        path=str(path),
        class_names=class_names,
        kind="class folders",
        splits={split: file_split(listing, files[split], options.preprocessing) for split in files},
        preprocessing=options.preprocessing,
        num_ignored=len(listing.ignored),
        resources=resources.pop_all(),
    )


def file_split(listing: Listing, files: Sequence[tuple[str, int]], preprocessing: Preprocessing) -> IndexedSplit:
    """The images in the files of these names, with their labels."""
    names = [name for name, _ in files]
    return IndexedSplit(
        labels=np.fromiter((label for _, label in files), np.int64, len(files)),
        fetch=lambda position: read_listed_file(listing, names[position]),
        decode=partial(decode_image, rule=preprocessing),
        origin=lambda position: escape(names[position]),
    )
