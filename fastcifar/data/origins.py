"""Where each image of a beton came from: `train.beton.origins.txt`, a line for each image, read only on request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from fastcifar.errors import DataError, escape, one_line
from fastcifar.io.reading import read_bytes

MAX_LINE_BYTES = 4_096


def origins_path(manifest: Path) -> Path:
    """The file of origins that belongs to a manifest, e.g. `train.beton.json`, or to the one that a link leads to."""
    manifest = Path(os.path.realpath(manifest))
    return manifest.with_name(f"{manifest.name.removesuffix('.json')}.origins.txt")


def to_line(origin: str) -> str:
    """The origin as one line of at most MAX_LINE_BYTES of UTF-8: escapes for what is not printable."""
    return escape(origin).encode("utf-8")[: MAX_LINE_BYTES - 1].decode("utf-8", "ignore") + "\n"


def short_names(origins: Iterable[str], names: Iterable[str]) -> list[str]:
    """The file name at the end of each origin; where there is none, that of `names`, e.g. its index."""
    files = map(os.path.basename, origins)
    return [file if "." in file else name for file, name in zip(files, names, strict=True)]


def read_origins(manifest: Path, sha256: str, num_images: int) -> tuple[str, ...] | None:
    """The origin of each image, (N,); None if the file is missing.

    Raises DataError if it is not the file that the manifest describes.
    """
    file = origins_path(manifest)
    if not os.path.lexists(file):
        return None
    try:
        content = read_bytes(file, num_images * MAX_LINE_BYTES)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("damaged: its SHA-256 is not that of the manifest")
        lines = content.decode("utf-8").split("\n")[:-1]
        if len(lines) != num_images:
            raise ValueError(f"it has {len(lines)} lines; expected {num_images}")
        return tuple(lines)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {one_line(error)}; convert again, or remove the file") from error
