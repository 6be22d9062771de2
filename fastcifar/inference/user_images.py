"""The user's own images: files, folders, patterns that no shell has expanded, archives and betons."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

from fastcifar.converters.archives import ARCHIVE_KINDS, read_archive
from fastcifar.converters.images import read_image_file, read_listed_file
from fastcifar.converters.layout import is_system_name
from fastcifar.converters.sources import Broken, IndexedSplit, Sample
from fastcifar.data.beton import Beton, open_beton
from fastcifar.data.file_kind import HEAD_BYTES, file_kind
from fastcifar.data.image_files import (
    EXTENSIONS,
    FORMAT_NAMES,
    Decoded,
    Image,
    ImageError,
    Preprocessing,
    convert_image,
    decode_image,
)
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.inference.predictions import UNKNOWN
from fastcifar.io.paths import user_path, why_missing
from fastcifar.io.reading import open_regular

log = logging.getLogger(__name__)
MAX_DEPTH = 50
"""Folders inside a folder."""


@dataclass(frozen=True, kw_only=True)
class UserImage:
    """An image, or what should be one, that is read when its turn comes."""

    name: str
    """Its path, in an archive after that of the archive; for a beton 'PATH[INDEX]'. No control characters."""
    fetch: Callable[[], bytes | Image]
    """Returns its file, or (H, W, 3) uint8 of a beton. Raises ImageError if it cannot be read."""
    index: int = UNKNOWN
    """In a beton."""
    label: int = UNKNOWN
    """In a beton that has the classes of the network."""
    origin: str = ""
    """What a beton knows about where it came from."""


def list_images(
    paths: Iterable[str | os.PathLike[str]], class_names: Sequence[str], resources: ExitStack
) -> list[UserImage]:
    """The images that `paths` name, in that order; those of archives can be read until `resources` is closed.

    A folder stands for the images in it and its subfolders, sorted by path; hidden files are skipped, and links to
    folders not followed. A pattern such as 'cats/*.jpg' stands for what it matches, a zip or tar for the images in it,
    a beton for its images. Other files in a folder, an archive or a pattern are skipped, with a warning that counts
    them. What is missing or cannot be read becomes an image whose `fetch` raises.
    class_names: those of the network, for the labels of a beton.
    """
    images = []
    for value in paths:
        try:
            path = user_path(value, "image")
        except UsageError as error:
            images.append(_broken(str(value), str(error)))
            continue
        if os.path.isdir(path):
            images += _search(path, [path], class_names, resources)
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            images += _search(path, _matches(path), class_names, resources)
        else:
            images += _expand(path, class_names, resources)
    return images


def decode_images(images: Sequence[UserImage], rule: Preprocessing) -> Iterator[Sample | Broken]:
    """Each image as the network takes it, in order: read one after another, decoded on several threads."""
    return iter(
        IndexedSplit(
            labels=np.array([image.label for image in images], dtype=np.int64),
            fetch=lambda position: images[position].fetch(),
            decode=partial(_decode, rule=rule),
            origin=lambda position: images[position].name,
        )
    )


def _decode(content: bytes | Image, rule: Preprocessing) -> Decoded:
    if isinstance(content, bytes):
        return decode_image(content, rule)
    return convert_image(PIL.Image.fromarray(content), rule)


def _expand(path: Path, class_names: Sequence[str], resources: ExitStack) -> list[UserImage]:
    """The images that a file stands for."""
    if path.suffix == ".beton":
        return _in_beton(path, class_names)
    if _is_archive(path):
        return _in_archive(path, resources)
    return [UserImage(name=printable(path), fetch=partial(_read, path))]


def _search(searched: Path, matches: list[Path], class_names: Sequence[str], resources: ExitStack) -> list[UserImage]:
    """The images in a folder, or those that a pattern matches."""
    images: list[UserImage] = []
    skipped: list[Path] = []
    links: list[Path] = []
    num_files = 0
    for match in matches:
        is_folder = os.path.isdir(match)
        files = sorted(_walk(match, images, links)) if is_folder else [match]
        num_files += len(files)
        for file in files:
            if not is_folder and (file.suffix == ".beton" or _is_archive(file)):
                images += _expand(file, class_names, resources)
            elif _may_be_image(file):
                images.append(UserImage(name=printable(file), fetch=partial(_read, file)))
            else:
                skipped.append(file)
    if links:
        log.warning("%s: links to folders are not followed: %d, the first: %s", searched, len(links), links[0])
    if not matches:
        return [_broken(searched, "no file matches")]
    return _require_images(searched, images, list(map(str, skipped)), num_files)


def _require_images(path: Path, images: list[UserImage], skipped: list[str], num_files: int) -> list[UserImage]:
    """The images; what stands for an error if there is none. Warns of skipped files."""
    if not images:
        betons = [name for name in skipped if name.endswith(".beton")]
        hint = f", or a beton, e.g. {betons[0]}" if betons else f", e.g. {FORMAT_NAMES}"
        return [_broken(path, f"no image among {num_files:,} files; expected images{hint}")]
    if skipped:
        files = "1 file that is not an image" if len(skipped) == 1 else f"{len(skipped):,} files that are not images"
        log.warning("%s: skipped %s; the first: %s", path, files, skipped[0])
    return images


def _walk(root: Path, broken: list[UserImage], links: list[Path]) -> Iterator[Path]:
    """The files in a folder and its subfolders; to `broken` is added what cannot be read, to `links` what is not
    followed."""
    for folder, names in _folders(root, broken, links):
        yield from (folder / name for name in names)


def _folders(root: Path, broken: list[UserImage], links: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """A folder and its subfolders, each with the names of its files; see `_walk`."""

    def refuse(error: OSError) -> None:
        broken.append(_broken(error.filename, f"cannot be read ({error.strerror})"))

    for base, folders, names in os.walk(root, onerror=refuse):
        folder = Path(base)
        visible = sorted(name for name in folders if not is_system_name(name))
        links += [folder / name for name in visible if os.path.islink(folder / name)]
        if len(folder.relative_to(root).parts) == MAX_DEPTH:
            broken += [_broken(folder / name, f"over {MAX_DEPTH} folders deep; not read") for name in visible]
            visible = []
        folders[:] = visible
        yield folder, [name for name in names if not is_system_name(name)]


def _matches(pattern: Path) -> list[Path]:
    """What a pattern matches, sorted. `**` stands for a folder and its subfolders, as far as they are not links: glob
    would follow those, and never end where they form a loop."""
    parts = pattern.parts
    if "**" not in parts:
        return sorted(map(Path, glob.glob(str(pattern))))
    at = parts.index("**")
    above, below = Path(*parts[:at]), Path(*parts[at + 1 :]) if parts[at + 1 :] else Path("*")
    folders = [folder for root in glob.glob(str(above)) for folder, _ in _folders(Path(root), [], [])]
    found = {Path(match) for folder in folders for match in glob.glob(os.path.join(glob.escape(str(folder)), below))}
    return sorted(path for path in found if not os.path.isdir(path))


def _may_be_image(path: Path) -> bool:
    """Whether a file that was searched for has the name of an image, begins as one, or cannot be read."""
    if path.name.lower().endswith(EXTENSIONS):
        return True
    try:
        return _kind(path).endswith("image")
    except (OSError, ValueError):
        return True


def _is_archive(path: Path) -> bool:
    if path.name.lower().endswith(EXTENSIONS):
        return False
    try:
        return _kind(path) in ("a ZIP archive", *ARCHIVE_KINDS) or path.name.endswith(".tar")
    except (OSError, ValueError):
        return False


def _kind(path: Path) -> str:
    with open_regular(path) as file:
        return file_kind(file.read(HEAD_BYTES))


def _read(path: Path) -> bytes:
    if not os.path.exists(path):
        raise ImageError(why_missing(path, "no such image"))
    return read_image_file(path)


def _in_archive(path: Path, resources: ExitStack) -> list[UserImage]:
    try:
        listing = read_archive(path, resources, "images in a zip or tar")
    except FastcifarError as error:
        return [_broken(path, str(error))]
    images = [
        UserImage(name=printable(path / name), fetch=partial(read_listed_file, listing, name))
        for name in sorted(listing.files)
        if name.lower().endswith(EXTENSIONS)
    ]
    skipped = [name for name in sorted(listing.files) if not name.lower().endswith(EXTENSIONS)]
    return _require_images(path, images, skipped, len(listing.files))


def _in_beton(path: Path, class_names: Sequence[str]) -> list[UserImage]:
    try:
        beton = open_beton(path)
        origins = beton.origins()
    except DataError as error:
        return [_broken(path, str(error))]
    labels = beton.labels.tolist()
    if beton.class_names != tuple(class_names) if beton.verified else max(labels) >= len(class_names):
        log.warning("%s: its classes are not those of the network; their names are not shown", path)
        labels = [UNKNOWN] * len(beton)
    return [
        UserImage(
            name=f"{printable(path)}[{index}]",
            fetch=partial(_read_from_beton, beton, index),
            index=index,
            label=label,
            origin=origin,
        )
        for index, (label, origin) in enumerate(zip(labels, origins, strict=True))
    ]


def _read_from_beton(beton: Beton, index: int) -> Image:
    try:
        return beton.images([index])[0]
    except DataError as error:
        raise ImageError(str(error)) from error


def _broken(name: str | Path, reason: str) -> UserImage:
    """What cannot be read, for `reason`, whose beginning may be the name."""
    message = reason.removeprefix(f"{name}: ")

    def refuse() -> bytes:
        raise ImageError(message)

    return UserImage(name=printable(name), fetch=refuse)


def printable(path: str | Path) -> str:
    """The path as UTF-8 text without control characters."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
