"""Betons: FFCV's dataset files, the contract between converters and loaders.

A beton written by fastcifar has the fields `image` (raw uint8, H x W x 3, or JPEG; one size for all) and `label`
(int). It is checked completely when it is opened: code that gets a `Beton` trusts it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.data import jpeg
from fastcifar.data.beton_file import BetonFile, Bytes, open_file, open_private_copy
from fastcifar.data.fields import damaged
from fastcifar.data.manifest import Manifest, manifest_path, read_manifest
from fastcifar.data.origins import read_origins
from fastcifar.data.statistics import channel_histogram, channel_statistics, describe_empty_classes
from fastcifar.data.tables import Tables, read_tables
from fastcifar.errors import DataError, UsageError, one_line
from fastcifar.io.paths import user_path


@dataclass(frozen=True, kw_only=True, repr=False)
class Beton(Tables):
    """A checked beton of N images, open for reading.

    Examples:
        >>> beton = open_beton("data/test.beton")
        >>> beton.images([0, 3]).shape
        (2, 32, 32, 3)
        >>> len(beton.class_names), beton.labels.dtype
        (10, dtype('int64'))
    """

    path: Path
    file: BetonFile
    class_names: tuple[str, ...]
    mean: npt.NDArray[np.float64]
    """(3,) float64, 0..255."""
    std: npt.NDArray[np.float64]
    """(3,) float64, 0..255."""
    sha256: str
    verified: bool
    """True if the file has a manifest and the SHA-256 that it says."""
    manifest: Manifest | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        height, width, _ = self.image_shape
        classes = f"{len(self.class_names)} classes"
        return f"Beton({str(self.path)!r}: {len(self):,} images of {height}x{width}, {classes}, {self.encoding})"

    @property
    def in_memory(self) -> bool:
        """True if this is a private copy, which does not change with the file."""
        return self.file.memory is not None

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.file.size

    @property
    def pages(self) -> npt.NDArray[np.int64]:
        """(N,) int64: the page of the file that holds each image."""
        return self.offsets // self.page_size

    def check_unchanged(self) -> None:
        """Raise DataError if the file was modified since it was opened, by its size and modification time."""
        self.file.check_unchanged()

    def read_all(self) -> Bytes:
        """The whole file, (num_bytes,) uint8, in memory. Raises DataError if it was modified."""
        if self.file.memory is not None:
            return self.file.memory
        content = self.file.read(0, self.num_bytes)
        self.check_unchanged()
        return content

    def images(self, indices: npt.ArrayLike) -> Bytes:
        """Copies of the images `indices`, (B,) integers in 0..N-1 or a mask, (N,) bool -> (B, H, W, 3) uint8.

        Raises UsageError for other indices; DataError if a JPEG image cannot be decoded, or the file was modified.
        """
        selected = checked_indices(indices, len(self))
        if self.encoding == "raw" and self.file.memory is not None:
            return images_at(self.file.memory, self.offsets[selected], self.image_shape)
        images = np.empty((len(selected), *self.image_shape), np.uint8)
        for image, index in zip(images, selected.tolist(), strict=True):
            if self.encoding == "raw":
                self.file.read_into(image.reshape(-1), int(self.offsets[index]))
            else:
                image[:] = self._decode(index)
        self.check_unchanged()
        return images

    def origins(self, indices: npt.ArrayLike | None = None) -> list[str]:
        """Where the images `indices` (all by default) came from: a path within the source, or a row; '' if unknown.

        indices: (B,) integers in 0..N-1, or a mask, (N,) bool.
        Read from a file of its own, at each call. Raises DataError if that is damaged, UsageError for other indices.
        """
        positions = np.arange(len(self)) if indices is None else checked_indices(indices, len(self))
        if self.manifest is None or not self.manifest.origins_sha256:
            return [""] * len(positions)
        origins = read_origins(manifest_path(self.path), self.manifest.origins_sha256, len(self))
        return [origins[position] if origins else "" for position in positions.tolist()]

    def _decode(self, index: int) -> Bytes:
        encoded = self.file.read(int(self.offsets[index]), int(self.sizes[index]))
        try:
            image = jpeg.decode(encoded)
            if image.shape != self.image_shape:
                raise ValueError(f"it has shape {image.shape}")
            return image
        except Exception as error:  # Pillow raises many types for a damaged image
            raise DataError(f"{self.path}: image {index} is damaged ({one_line(error)}); convert again") from error


def checked_indices(indices: npt.ArrayLike, num_images: int) -> npt.NDArray[np.int64]:
    """Indices of images, (B,) integers or a mask, (num_images,) bool, as (B,) int64; B may be 0.

    Raises UsageError for anything else, also for negative indices.
    """
    try:
        array = np.asarray(indices)
    except (TypeError, ValueError, RuntimeError):  # of tensors that are not on the CPU, or lists of unequal length
        raise UsageError(
            f"indices is a {type(indices).__name__}; expected integers or a boolean mask, on the CPU"
        ) from None
    if array.dtype.kind == "b":
        if array.shape != (num_images,):
            raise UsageError(f"indices is a mask of shape {array.shape}; expected ({num_images},), one bool per image")
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise UsageError(f"indices is {array.dtype} of shape {array.shape}; expected a list of integers, or a mask")
    array = array.astype(np.int64)
    if len(array) and (array.min() < 0 or array.max() >= num_images):
        raise UsageError(f"indices is {array.min()}..{array.max()}; expected 0..{num_images - 1}")
    return array


def images_at(memory: Bytes, starts: npt.NDArray[np.int64], image_shape: tuple[int, int, int]) -> Bytes:
    """Copies of the raw images that begin at `starts`, (B,), in `memory`, (num_bytes,) uint8 -> (B, H, W, 3) uint8."""
    # every window of one image's size, without a copy; indexing copies those that are selected
    size = int(np.prod(image_shape))
    windows = np.lib.stride_tricks.as_strided(memory, (max(len(memory) - size + 1, 0), size), (1, 1), writeable=False)
    return windows[starts].reshape(-1, *image_shape)


def open_beton(path: str | os.PathLike[str], *, in_memory: bool = False) -> Beton:
    """Open and check a beton.

    in_memory: open a private copy of the file, which later changes do not affect. Otherwise images are read from the
    file, and `Beton.check_unchanged` detects changes.

    Raises DataError (exit code 4) if the file is missing, damaged, not supported, or not the one that its manifest
    describes.

    Examples:
        >>> beton = open_beton("data/train.beton")
        >>> len(beton), beton.image_shape
        (80, (32, 32, 3))
    """
    path = user_path(path, "beton")
    file = open_private_copy(path) if in_memory else open_file(path)
    tables = read_tables(file)
    if tables.encoding == "jpeg":
        _check_jpeg_headers(file, tables)
    manifest = read_manifest(path)
    beton = Beton(
        path=path,
        file=file,
        class_names=tuple(map(str, range(int(tables.labels.max()) + 1))),
        mean=np.zeros(3),
        std=np.zeros(3),
        sha256=file.sha256(),
        verified=manifest is not None,
        manifest=manifest,
        **vars(tables),
    )
    if manifest is None:
        class_names, (mean, std) = beton.class_names, channel_statistics(_count_values(beton))
    else:
        _check_manifest(beton, manifest)
        class_names, mean, std = manifest.class_names, manifest.mean, manifest.std
    beton.check_unchanged()
    return replace(beton, class_names=class_names, mean=np.array(mean), std=np.array(std))


def _check_jpeg_headers(file: BetonFile, tables: Tables) -> None:
    """Raise DataError unless each header says `image_shape`, which FFCV trusts (see also `loaders.numba_jpeg`), and no
    image has many scans."""
    for index, (start, size) in enumerate(zip(tables.offsets.tolist(), tables.sizes.tolist(), strict=True)):
        encoded = file.read(start, size).tobytes()
        if jpeg.read_shape(encoded) != tables.image_shape:
            height, width, _ = tables.image_shape
            raise damaged(file.path, f"image {index} is not a JPEG file of {height}x{width}")
        if jpeg.has_many_scans(encoded):
            raise damaged(file.path, f"image {index} has over {jpeg.MAX_SCANS} scans")


def _check_manifest(beton: Beton, manifest: Manifest) -> None:
    """Raise DataError unless the manifest describes this beton."""
    path, name = beton.path, f"its manifest {manifest_path(beton.path).name}"
    if manifest.sha256 != beton.sha256:
        raise DataError(
            f"{path}: damaged or replaced: SHA-256 {beton.sha256[:16]}…, {name} says {manifest.sha256[:16]}…; "
            "convert again"
        )
    if manifest.num_samples != len(beton) or manifest.image_shape != beton.image_shape:
        raise DataError(
            f"{path}: holds {len(beton)} images of shape {beton.image_shape}, {name} says {manifest.num_samples} "
            f"of {manifest.image_shape}; convert again"
        )
    if (label := int(beton.labels.max())) >= len(manifest.class_names):
        raise DataError(f"{path}: has label {label}, {name} has {len(manifest.class_names)} classes; convert again")


def _count_values(beton: Beton) -> npt.NDArray[np.int64]:
    """How often each value occurs in each channel: (3, 256) int64."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(beton), 1_024):
        counts += channel_histogram(beton.images(np.arange(start, min(start + 1_024, len(beton)))))
    return counts


def empty_classes(beton: Beton) -> str:
    """A warning that names the classes without images; empty if there are none."""
    message = describe_empty_classes(beton.class_names, beton.labels)
    advice = "" if beton.verified else "; labels are expected to be 0, 1, 2, …: the network has an output for each"
    return f"{beton.path}: {message}{advice}" if message else ""
