"""Images in an unnamed temporary file, for sources that can be read only once."""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from contextlib import ExitStack

import numpy as np

from fastcifar.data.image_files import CHANGES, Decoded, ImageError
from fastcifar.errors import DataError, FastcifarError

_CHANGES = tuple(CHANGES)
_FIELDS = 6
"""Integers of each image: position, height, width, height and width of the original, its changes as bits."""


class Spool:
    """Images by position, in the order in which they were added. Use it in a `with` block."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._free = shutil.disk_usage(tempfile.gettempdir()).free // 2
        self._size = 0
        self._fields = array("q")
        self._broken: dict[int, str] = {}

    def __enter__(self) -> Spool:
        self._file = self._resources.enter_context(tempfile.TemporaryFile())
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def add(self, image: Decoded | ImageError) -> None:
        """Append an image, or why there is none. Raises DataError if the temporary folder is too small."""
        if isinstance(image, ImageError):
            self._broken[len(self._fields) // _FIELDS] = str(image)
            self._fields.extend([0] * _FIELDS)
            return
        height, width, _ = image.pixels.shape
        if self._size + image.pixels.nbytes > self._free:
            raise DataError(
                f"the images need more than half of the free space in {tempfile.gettempdir()}; set TMPDIR to a larger "
                "folder"
            )
        try:
            self._file.write(np.ascontiguousarray(image.pixels).data)
        except OSError as error:
            raise FastcifarError(f"{tempfile.gettempdir()}: cannot be written ({error.strerror})") from error
        bits = sum(1 << _CHANGES.index(change) for change in image.changes)
        self._fields.extend((self._size, height, width, *image.size, bits))
        self._size += image.pixels.nbytes

    def read(self, position: int) -> Decoded:
        """The image at a position. Raises ImageError if there is none."""
        if position in self._broken:
            raise ImageError(self._broken[position])
        start, height, width, old_height, old_width, bits = self._fields[position * _FIELDS : (position + 1) * _FIELDS]
        self._file.flush()
        content = os.pread(self._file.fileno(), height * width * 3, start)
        if len(content) != height * width * 3:
            raise FastcifarError(f"{tempfile.gettempdir()}: a temporary file was truncated")
        changes = tuple(change for index, change in enumerate(_CHANGES) if bits >> index & 1)
        return Decoded(np.frombuffer(content, np.uint8).reshape(height, width, 3), (old_height, old_width), changes)
