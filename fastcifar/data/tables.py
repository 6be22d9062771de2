"""The tables of a beton: header, field descriptors, records and allocation table; all are checked before use.

Layout: FFCV 1.0.2 (`ffcv/types.py`, `ffcv/writer.py`, https://github.com/libffcv/ffcv). FFCV trusts every size and
pointer in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.data.beton_file import BetonFile
from fastcifar.data.fields import FIELD, IMAGE, MAX_FIELDS, Fields, damaged, read_fields
from fastcifar.data.file_kind import HEAD_BYTES, UNKNOWN, file_kind
from fastcifar.errors import DataError
from fastcifar.io.reading import CHECK_MEMORY_ABOVE
from fastcifar.system.memory import free_memory

VERSION = 2
PAGE_SIZE = 8 * 2**20
"""FFCV's default."""
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 2**21, 2**31
RAW, JPEG = 1, 0
MAX_CLASSES = 65_536
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
RECORD = np.dtype([*IMAGE.descr, ("unused", "V3"), ("label", "<i8")])  # the label is aligned
"""A record of a beton written by fastcifar; those of others have further fields (`fastcifar.data.fields`)."""
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
TABLES_START = HEADER.itemsize + 2 * FIELD.itemsize
"""Where the records of a beton written by fastcifar start."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Tables:
    """The checked tables of a beton with N images."""

    offsets: npt.NDArray[np.int64]
    """(N,) int64: where each image begins in the file."""
    sizes: npt.NDArray[np.int64]
    """(N,) int64: bytes of each image in the file."""
    labels: npt.NDArray[np.int64]
    """(N,) int64, 0 or above."""
    encoding: str
    """'raw' or 'jpeg'."""
    image_shape: tuple[int, int, int]
    """(H, W, 3) of every image."""
    page_size: int
    fields: Fields


def read_tables(file: BetonFile) -> Tables:
    """Read and check the tables. Raises DataError if they are damaged or not supported."""
    path, size = file.path, file.size
    if size < TABLES_START:
        _refuse_other_kind(file)
        raise damaged(path, f"it has {size} bytes, too few for a header")
    header = file.read(0, HEADER.itemsize).view(HEADER)[0]
    if header["version"] != VERSION:
        _refuse_other_kind(file)
        raise DataError(f"{path}: not a beton of version {VERSION} (it begins with {int(header['version'])})")
    num_fields, num_samples = int(header["num_fields"]), int(header["num_samples"])
    records_start = HEADER.itemsize + num_fields * FIELD.itemsize
    if not 1 <= num_fields <= MAX_FIELDS or records_start > size:
        raise damaged(path, f"it has {num_fields} fields and {size} bytes")
    fields = read_fields(path, file.read(HEADER.itemsize, records_start - HEADER.itemsize).view(FIELD))
    record_size = fields.record.itemsize
    page_size, table_start = int(header["page_size"]), int(header["alloc_table_ptr"])
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise damaged(path, f"page size {page_size} is not a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}")
    if num_samples == 0:
        raise DataError(f"{path}: holds no images")
    if size // page_size > num_samples + num_samples * record_size // page_size + 2:
        raise damaged(path, f"it has {size} bytes, more than {num_samples} images can fill")
    if num_samples > (size - records_start) // (record_size + ALLOCATION.itemsize):
        raise damaged(path, f"its header says {num_samples} images, more than fit into {size} bytes")
    if table_start + num_samples * ALLOCATION.itemsize != size:
        raise damaged(path, f"the allocation table at {table_start} does not end with the file of {size} bytes")
    tables_bytes = num_samples * (record_size + ALLOCATION.itemsize)
    if tables_bytes > CHECK_MEMORY_ABOVE and tables_bytes > free_memory() // 4:  # two copies while they are checked
        raise DataError(
            f"{path}: its tables take {tables_bytes / 2**30:.1f} GiB; expected less than half of the memory"
        )
    _check_first_record(path, file.read(records_start, record_size).view(fields.record)[fields.image])
    records = file.read(records_start, num_samples * record_size).view(fields.record)
    images, labels = records[fields.image], records[fields.label]
    allocations = file.read(table_start, num_samples * ALLOCATION.itemsize).view(ALLOCATION)
    sizes = _read_sizes(path, allocations, page_size)
    _check_images(path, images, labels, sizes, page_size)
    pages_start = -(-(records_start + records.nbytes) // page_size) * page_size
    _check_pointers(path, images["data_ptr"], sizes, pages_start, table_start, page_size)
    if (allocations["ptr"] != images["data_ptr"][allocations["sample_id"].astype(np.int64)]).any():
        raise damaged(path, "its allocation table and its records disagree on the position of an image")
    return Tables(
        offsets=images["data_ptr"].astype(np.int64),
        sizes=sizes,
        labels=labels.astype(np.int64),
        encoding="raw" if images["mode"][0] == RAW else "jpeg",
        image_shape=(int(images["height"][0]), int(images["width"][0]), 3),
        page_size=page_size,
        fields=fields,
    )


def _check_first_record(path: Path, images: npt.NDArray[np.void]) -> None:
    """Before all are read: a sparse file of a few kilobytes can hold gigabytes of zeros."""
    height, width = images["height"][0], images["width"][0]
    if not height or not width:
        raise damaged(path, f"its records say images of {height}x{width}")


def _refuse_other_kind(file: BetonFile) -> None:
    """Raise DataError if the file is of a known other kind, e.g. an archive or a Git LFS pointer: converting again
    would not help."""
    kind = file_kind(file.read(0, min(file.size, HEAD_BYTES)).tobytes())
    if not kind.startswith(UNKNOWN):
        raise DataError(f"{file.path}: not a beton, but {kind}; expected a beton, made with 'fastcifar convert'")


def _read_sizes(path: Path, allocations: npt.NDArray[np.void], page_size: int) -> npt.NDArray[np.int64]:
    """Bytes of each image: FFCV looks them up in the allocation table."""
    indices = allocations["sample_id"]
    if (indices >= len(indices)).any() or (np.bincount(indices.astype(np.int64), minlength=len(indices)) != 1).any():
        raise damaged(path, "its allocation table does not list each image once")
    if (allocations["size"] == 0).any() or (allocations["size"] > page_size).any():
        raise damaged(path, f"its allocation table has a size that is not 1..{page_size}")
    sizes = np.empty(len(indices), dtype=np.int64)
    sizes[indices.astype(np.int64)] = allocations["size"]
    return sizes


def _check_images(
    path: Path,
    images: npt.NDArray[np.void],
    labels: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    page_size: int,
) -> None:
    """Mode, shape and label of each image."""
    modes = images["mode"]
    if modes.max() > RAW:
        raise damaged(path, f"image {modes.argmax()} has mode {modes.max()}; expected {RAW} (raw) or {JPEG} (JPEG)")
    if (modes != modes[0]).any():
        index = int(np.argmax(modes != modes[0]))
        raise DataError(
            f"{path}: not supported: image {index} has mode {int(modes[index])}, image 0 mode {int(modes[0])} "
            f"({RAW}: raw, {JPEG}: JPEG), as FFCV's write_mode 'proportion' mixes them; expected all raw or all JPEG"
        )
    height, width = int(images["height"][0]), int(images["width"][0])
    if (other := (images["height"] != height) | (images["width"] != width)).any():
        index = int(np.argmax(other))
        shape = f"{int(images['height'][index])}x{int(images['width'][index])}"
        raise DataError(
            f"{path}: not supported: image {index} is {shape}, image 0 is {height}x{width}; expected one size for all"
        )
    size = height * width * 3
    if not 0 < size <= page_size:
        raise damaged(path, f"images of {height}x{width} do not fit into its pages of {page_size} bytes")
    if modes[0] == RAW and (sizes != size).any():
        raise damaged(path, f"its allocation table has a size that is not {size}")
    if (outside := (labels < 0) | (labels >= MAX_CLASSES)).any():
        index = int(np.argmax(outside))
        raise DataError(
            f"{path}: not supported: image {index} has label {int(labels[index])}; expected a class index, "
            f"0..{MAX_CLASSES - 1}"
        )


def _check_pointers(
    path: Path,
    pointers: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.int64],
    pages_start: int,
    pages_end: int,
    page_size: int,
) -> None:
    """Every image is inside one page, and none overlaps another."""
    outside = (pointers < pages_start) | (pointers > np.maximum(pages_end - sizes, 0).astype(np.uint64))
    if outside.any():
        index = int(np.argmax(outside))
        raise damaged(
            path, f"image {index} is at byte {int(pointers[index])}, outside the pages {pages_start}..{pages_end}"
        )
    order = np.argsort(pointers, kind="stable")
    starts = pointers[order].astype(np.int64)
    ends = starts + sizes[order]
    if (starts[1:] < ends[:-1]).any():
        raise damaged(path, "two images overlap")
    if (starts // page_size != (ends - 1) // page_size).any():
        raise damaged(path, "an image crosses the end of its page")
