"""A source to betons: written to a temporary file, read back and compared, renamed; the manifest last.

The bytes are those of FFCV's `DatasetWriter(num_workers=1)` for the fields `image` (raw) and `label`. FFCV's own writer
hangs on a source that raises or on a full disk, and opens the target for writing at once.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import __version__ as pillow_version

from fastcifar import __version__
from fastcifar.converters.sources import Source, Split
from fastcifar.data import jpeg, tables
from fastcifar.data.beton_file import open_file
from fastcifar.data.fields import FIELD, IMAGE_FIELD, INT_FIELD
from fastcifar.data.manifest import Manifest
from fastcifar.data.statistics import channel_histogram, channel_statistics, describe_empty_classes
from fastcifar.errors import DataError, FastcifarError
from fastcifar.io.atomic import create_file, fsync, fsync_folder, replace
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import data_folder, make_folder, why_missing

log = logging.getLogger(__name__)
SPLITS = ("train", "test")
Progress = Callable[[str, int], None]
"""Called with the name of the split and the number of further images that were written or compared."""


def convert(
    source: Source,
    data_dir: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    jpeg_quality: int | None = None,
) -> dict[str, Manifest]:
    """Write `train.beton`, `test.beton` and their manifests into `data_dir`; return the manifests by split.

    Images are written raw, or as JPEG of `jpeg_quality` (1..100), which only the ffcv loader reads.

    Both files are complete and compared before either replaces an existing one. Raises DataError for a source that
    cannot be converted, FastcifarError if the folder is not writable.
    """
    folder = data_folder(data_dir)
    replaced: list[str] = []
    report = progress or (lambda name, count: None)
    try:
        make_folder(folder)
        targets = {name: _resolve_link(folder / f"{name}.beton") for name in SPLITS}
        with ExitStack() as cleanup:
            folders = {path.resolve(): path for path in (*(file.parent for file in targets.values()), folder)}
            for path in folders.values():
                cleanup.enter_context(lock_folder(path, "another conversion is writing here; wait for it to end"))
            manifest_files = {name: _manifest_files(folder / f"{name}.beton", targets[name]) for name in SPLITS}
            for file in (file for name in SPLITS for file in (targets[name], *manifest_files[name])):
                if file.is_dir():
                    raise FastcifarError(f"{file}: a folder; expected a file or nothing: move it away")
            partials = {name: targets[name].with_name(f".{targets[name].name}.partial") for name in SPLITS}
            for file in partials.values():
                cleanup.callback(file.unlink, missing_ok=True)
            manifests = {name: _write_partial(source, name, partials[name], report, jpeg_quality) for name in SPLITS}
            for name in SPLITS:
                _replace_with_manifest(partials[name], targets[name], manifests[name], manifest_files[name])
                replaced.append(f"{name}.beton")
            return manifests
    except OSError as error:
        result = f"only {replaced[0]} was replaced: convert again" if replaced else "nothing was replaced"
        path = error.filename or folder
        raise FastcifarError(f"{path}: cannot be written ({error.strerror or error}); {result}") from error


def _resolve_link(path: Path) -> Path:
    """The file to replace: the target of a link at `path`, not the link."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink() or not target.parent.is_dir():
        raise FastcifarError(f"{path}: {why_missing(path)}; remove the link, or create the folder of its target")
    return target


def _manifest_files(path: Path, target: Path) -> list[Path]:
    """The manifests of the beton at `path`, a link to `target`: those next to either; the latter if there is none."""
    adjacent = [Path(f"{file}.json") for file in (path, target)]
    existing = dict.fromkeys(_resolve_link(file) for file in adjacent if os.path.lexists(file))
    return list(existing) or adjacent[1:]


def _write_partial(source: Source, name: str, file: Path, report: Progress, quality: int | None) -> Manifest:
    """Write one split to `file` and compare it with the source; return its manifest. Warn of unusual content."""
    split = source.splits[name]
    shape, labels, histogram = _write(split, len(source.class_names), file, lambda count: report(name, count), quality)
    digest = _compare(split, file, lambda count: report(name, count), quality)
    mean, std = channel_statistics(histogram)
    if message := describe_empty_classes(source.class_names, labels):
        log.warning("%s.beton: %s", name, message)
    if not any(std):
        log.warning("%s.beton: all pixels of all images are equal (%.3g of 0..255)", name, mean[0])
    elif max(mean) <= 1:
        log.warning(
            "%s.beton: the images are almost black (mean %.2g of 0..255); multiply values of 0..1 by 255 first",
            *(name, max(mean)),
        )
    return Manifest(
        num_samples=len(labels),
        image_shape=shape,
        class_names=source.class_names,
        mean=mean,
        std=std,
        sha256=digest,
        source=source.description.encode("utf-8", "backslashreplace").decode("utf-8"),  # a file name may not be UTF-8
        versions={
            "fastcifar": __version__,
            "numpy": np.__version__,
            "pillow": pillow_version,
            "python": platform.python_version(),
        },
    )


def _write(
    split: Split, num_classes: int, file: Path, advance: Callable[[int], None], quality: int | None
) -> tuple[tuple[int, int, int], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Write the images of `split` to `file`; return their shape, the labels (N,) and the histogram (3, 256)."""
    num_samples, shape = len(split), (0, 0, 0)
    tables_end = tables.TABLES_START + num_samples * tables.RECORD.itemsize
    pages_start = -(-tables_end // tables.PAGE_SIZE) * tables.PAGE_SIZE
    labels, pointers, sizes = (np.empty(num_samples, dtype=np.int64) for _ in range(3))
    histogram = np.zeros((3, 256), dtype=np.int64)
    index = -1
    with create_file(file) as out:
        out.seek(pages_start)
        pages = _PageWriter(out, advance, histogram if quality is None else None)
        for index, (image, label) in enumerate(split):
            if index == 0:
                shape = (image.shape[0], image.shape[1], 3)
            _check_image(index, image, label, shape, num_samples, num_classes)
            stored = _encode(image, quality)
            if quality is not None:
                histogram += channel_histogram(jpeg.decode(stored))
            labels[index], pointers[index], sizes[index] = label, pages.append(stored), len(stored)
        if index < 0 or index + 1 != num_samples:
            raise DataError(
                f"the source yields {index + 1} images, its length is {num_samples}; expected equal, at least 1"
            )
        pages.flush()
        allocations = np.zeros(num_samples, dtype=tables.ALLOCATION)
        allocations["sample_id"], allocations["ptr"], allocations["size"] = np.arange(num_samples), pointers, sizes
        table_start = out.tell()
        out.write(allocations.tobytes())
        out.seek(0)
        out.write(_header(num_samples, table_start))
        out.write(_records(shape, quality is None, pointers, labels))
        fsync(out, file)
    return shape, labels, histogram


class _PageWriter:
    """Appends images to the pages of a beton: none crosses the end of a page, and the rest of a page is zeros."""

    def __init__(self, out: IO[bytes], advance: Callable[[int], None], histogram: npt.NDArray[np.int64] | None) -> None:
        """histogram: (3, 256), to which the values of raw pixels are added."""
        self._out, self._advance, self._histogram = out, advance, histogram
        self._page = np.zeros(tables.PAGE_SIZE, dtype=np.uint8)
        self._used = self._num_images = 0

    def append(self, stored: npt.NDArray[np.uint8]) -> int:
        """The position of `stored`, (size,) uint8, in the file."""
        if self._used + len(stored) > len(self._page):
            self.flush()
        start = self._used
        self._used, self._num_images = start + len(stored), self._num_images + 1
        self._page[start : self._used] = stored
        return self._out.tell() + start

    def flush(self) -> None:
        """Write the page, and begin the next one."""
        self._page[self._used :] = 0
        self._out.write(self._page.data)
        if self._histogram is not None:
            self._histogram += channel_histogram(self._page[: self._used])
        self._advance(self._num_images)
        self._used = self._num_images = 0


def _check_image(
    index: int, image: npt.NDArray[np.uint8], label: int, shape: tuple[int, ...], num_samples: int, num_classes: int
) -> None:
    if index == num_samples:
        raise DataError(f"the source yields more images than its length, {num_samples}")
    if not 0 < image.nbytes <= tables.PAGE_SIZE:
        raise DataError(
            f"image {index} is {image.shape[0]}x{image.shape[1]}; expected at most {tables.PAGE_SIZE} bytes, a page"
        )
    if image.shape != shape or image.dtype != np.uint8:
        raise DataError(f"image {index} is {image.dtype} {image.shape}; expected uint8 {shape}, as image 0")
    if not 0 <= label < num_classes:
        raise DataError(f"image {index} has label {label}; expected 0..{num_classes - 1}, of {num_classes} classes")


def _encode(image: npt.NDArray[np.uint8], quality: int | None) -> npt.NDArray[np.uint8]:
    """The bytes of an image in the file, (size,) uint8."""
    return image.reshape(-1) if quality is None else jpeg.encode(image, quality)


def _header(num_samples: int, table_start: int) -> bytes:
    header = np.zeros(1, dtype=tables.HEADER)
    header["version"], header["num_fields"], header["page_size"] = tables.VERSION, 2, tables.PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = num_samples, table_start
    fields = np.zeros(2, dtype=FIELD)
    fields["type_id"] = IMAGE_FIELD, INT_FIELD
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = list(name)
    return header.tobytes() + fields.tobytes()


def _records(
    shape: tuple[int, int, int], is_raw: bool, pointers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> bytes:
    records = np.zeros(len(labels), dtype=tables.RECORD)
    records["mode"] = tables.RAW if is_raw else tables.JPEG
    records["height"], records["width"], _ = shape
    records["data_ptr"], records["label"] = pointers, labels
    return records.tobytes()


def _compare(split: Split, file: Path, advance: Callable[[int], None], quality: int | None) -> str:
    """Read `file` back and compare it with `split`, which is read again; return the SHA-256 of the file."""
    written = open_file(file)
    found = tables.read_tables(written)
    num_found = len(found.labels)
    index = -1
    for index, (image, label) in enumerate(split):
        if index >= num_found:
            raise DataError("the source yields more images when it is read again; is it being modified?")
        stored = written.read(int(found.offsets[index]), int(found.sizes[index]))
        if label != found.labels[index] or not np.array_equal(_encode(image, quality), stored):
            raise DataError(f"image {index} differs when the source is read again; is the source being modified?")
        if index % 2_048 == 2_047:
            advance(2_048)
    if index + 1 != num_found:
        raise DataError(f"the source yields {index + 1} images when it is read again, {num_found} the first time")
    advance(num_found % 2_048)
    return written.sha256()


def _replace_with_manifest(partial: Path, target: Path, manifest: Manifest, manifest_files: list[Path]) -> None:
    """Rename a complete beton to `target`. A manifest of another beton is never next to it."""
    partial_manifests = {file: file.with_name(f".{file.stem}.partial.json") for file in manifest_files}
    try:
        for file, partial_manifest in partial_manifests.items():
            with create_file(partial_manifest) as out:
                out.write(manifest.to_json().encode("utf-8"))
                fsync(out, file)
        for file in manifest_files:
            file.unlink(missing_ok=True)
        replace(partial, target)
        for file, partial_manifest in partial_manifests.items():
            replace(partial_manifest, file)
    finally:
        for partial_manifest in partial_manifests.values():
            partial_manifest.unlink(missing_ok=True)
    fsync_folder(target.parent)
