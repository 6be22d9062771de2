"""A source to betons: temporary file, read back, every pixel and label compared, renamed; the manifest last.

Byte for byte what FFCV's `DatasetWriter(num_workers=1)` writes for the fields `image` (raw) and `label`. FFCV's own
writer waits for ever on a source that raises or a full disk, and opens the target for writing at once.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import __version__ as pillow_version

from fastcifar import __version__
from fastcifar.converters.layout import listed
from fastcifar.converters.sources import Source, Split
from fastcifar.data import beton, jpeg
from fastcifar.data.beton_fields import FIELD, IMAGE_FIELD, INT_FIELD
from fastcifar.errors import DataError, FastcifarError
from fastcifar.io.atomic import create_file, fsync, fsync_folder, replace
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import data_folder, make_folder, why_missing

log = logging.getLogger(__name__)
SPLITS = ("train", "test")
Progress = Callable[[str, int], None]
"""Called with the name of the file and how many images more are written or compared."""


def convert(
    source: Source,
    data_dir: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    jpeg_quality: int | None = None,
) -> dict[str, beton.Manifest]:
    """Write `train.beton`, `test.beton` and their manifests into `data_dir`; return the manifests by split.

    Images are written raw, or as JPEG of `jpeg_quality` (1..100), which only the ffcv loader reads.

    Both files are complete and compared before either is renamed into place, so that a failure leaves what was
    there. Raises DataError for a source that cannot be converted, FastcifarError if the folder cannot be written.
    """
    folder = data_folder(data_dir)
    replaced: list[str] = []
    report = progress or (lambda name, count: None)
    try:
        make_folder(folder)
        targets = {name: _behind_link(folder / f"{name}.beton") for name in SPLITS}
        with ExitStack() as cleanup:
            folders = {path.resolve(): path for path in (*(file.parent for file in targets.values()), folder)}
            for each in folders.values():
                cleanup.enter_context(lock_folder(each, "another conversion is writing here; wait for it to end"))
            manifest_files = {name: _manifest_files(folder / f"{name}.beton", targets[name]) for name in SPLITS}
            for name in SPLITS:
                for file in (targets[name], *manifest_files[name]):
                    if file.is_dir():
                        raise FastcifarError(f"{file}: is a folder, where a file is to be written; move it away")
            staged = {name: targets[name].with_name(f".{targets[name].name}.partial") for name in SPLITS}
            for file in staged.values():
                beton.manifest_path(file).unlink(missing_ok=True)  # a killed conversion's: `_compare` would believe it
                cleanup.callback(file.unlink, missing_ok=True)
            manifests = {name: _stage(source, name, staged[name], report, jpeg_quality) for name in SPLITS}
            for name in SPLITS:
                _put_in_place(staged[name], targets[name], manifests[name], manifest_files[name])
                replaced.append(f"{name}.beton")
            return manifests
    except OSError as error:
        where = error.filename or folder
        left = f"only {replaced[0]} was replaced: convert again" if replaced else "nothing was replaced"
        raise FastcifarError(f"{where}: cannot write ({error.strerror or error}); {left}") from error


def _behind_link(path: Path) -> Path:
    """The file to replace: what a link at `path` leads to, and not the link."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink() or not target.parent.is_dir():
        raise FastcifarError(f"{path}: {why_missing(path)}; remove the link, or make the folder that it leads to")
    return target


def _manifest_files(path: Path, target: Path) -> list[Path]:
    """The manifests of the beton at `path`, which lies at `target`: next to either; the latter if there is none."""
    beside = [Path(f"{file}.json") for file in (path, target)]
    there = dict.fromkeys(_behind_link(file) for file in beside if os.path.lexists(file))
    return list(there) or beside[1:]


def _stage(source: Source, name: str, file: Path, report: Progress, quality: int | None) -> beton.Manifest:
    split = source.splits[name]
    shape, histogram, counts = _write(split, len(source.class_names), file, lambda count: report(name, count), quality)
    if empty := [name for name, count in zip(source.class_names, counts, strict=True) if not count]:
        log.warning("%s.beton: no image of %d of %d classes: %s", name, len(empty), len(counts), listed(empty))
    digest = _compare(split, file, lambda count: report(name, count), quality)
    mean, std = beton.channel_statistics(histogram)
    if not std.any():
        log.warning("%s.beton: all pixels of all images are equal (%.3g of 0..255)", name, mean[0])
    elif mean.max() <= 1:
        log.warning(
            "%s.beton: the images are almost black (mean %.2g of 0..255); multiply values of 0..1 by 255 first",
            *(name, mean.max()),
        )
    return beton.Manifest(
        num_samples=len(split),
        image_shape=shape,
        class_names=source.class_names,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        sha256=digest,
        source=source.description.encode("utf-8", "backslashreplace").decode("utf-8"),  # a name may be no text
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
    """Write the images of `split` to `file`, a page at a time; return their shape, the histogram of their values, and
    how many each class has."""
    num_samples = len(split)
    tables_end = beton.TABLES_START + num_samples * beton.RECORD.itemsize
    pages_start = -(-tables_end // beton.PAGE_SIZE) * beton.PAGE_SIZE
    labels, pointers, sizes = (np.empty(num_samples, dtype=np.int64) for _ in range(3))
    histogram = np.zeros((3, 256), dtype=np.int64)
    page = np.zeros(beton.PAGE_SIZE, dtype=np.uint8)
    shape: tuple[int, int, int] | None = None
    done = used = told = 0

    with create_file(file) as out:
        out.seek(pages_start)

        def flush() -> None:
            nonlocal used, told
            page[used:] = 0
            out.write(page.data)
            if quality is None:
                histogram[:] += beton.histogram_of(page[:used])
            advance(done - told)
            used, told = 0, done

        for image, label in split:
            if shape is None:
                shape = (image.shape[0], image.shape[1], 3)
                if image.nbytes > beton.PAGE_SIZE or not image.nbytes:
                    raise DataError(
                        f"image 0 is {shape[0]}x{shape[1]}; expected at most {beton.PAGE_SIZE} bytes, a beton's page"
                    )
            if done == num_samples:
                raise DataError(f"the source gives more images than the {num_samples} that it told")
            if image.shape != shape or image.dtype != np.uint8:
                raise DataError(f"image {done} is {image.dtype} {image.shape}; expected uint8 {shape}, as the first")
            stored = _stored(image, quality)
            if used + len(stored) > len(page):
                flush()
            page[used : used + len(stored)] = stored
            if quality is not None:
                histogram += beton.histogram_of(jpeg.decode(stored))
            if not 0 <= label < num_classes:
                raise DataError(
                    f"image {done} has label {label}; expected 0..{num_classes - 1}, of {num_classes} classes"
                )
            labels[done], pointers[done], sizes[done] = label, out.tell() + used, len(stored)
            used, done = used + len(stored), done + 1
        if shape is None or done != num_samples:
            raise DataError(
                f"the source told {num_samples} images and gave {done}; expected at least one, and as many as told"
            )
        flush()
        allocations = np.zeros(num_samples, dtype=beton.ALLOCATION)
        allocations["sample_id"], allocations["ptr"], allocations["size"] = np.arange(num_samples), pointers, sizes
        table_start = out.tell()
        out.write(allocations.tobytes())
        out.seek(0)
        out.write(_head(num_samples, table_start))
        mode = beton.RAW if quality is None else beton.JPEG
        out.write(_records(shape, mode, pointers, labels).tobytes())
        fsync(out, file)
    return shape, histogram, np.bincount(labels, minlength=num_classes)


def _stored(image: npt.NDArray[np.uint8], quality: int | None) -> npt.NDArray[np.uint8]:
    """The bytes of an image in the file, (size,) uint8."""
    return image.reshape(-1) if quality is None else jpeg.encode(image, quality)


def _head(num_samples: int, table_start: int) -> bytes:
    header = np.zeros(1, dtype=beton.HEADER)
    header["version"], header["num_fields"], header["page_size"] = beton.VERSION, 2, beton.PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = num_samples, table_start
    fields = np.zeros(2, dtype=FIELD)
    fields["type_id"] = IMAGE_FIELD, INT_FIELD
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = list(name)
    return header.tobytes() + fields.tobytes()


def _records(
    shape: tuple[int, int, int], mode: int, pointers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.void]:
    records = np.zeros(len(labels), dtype=beton.RECORD)
    records["mode"], records["height"], records["width"] = mode, shape[0], shape[1]
    records["data_ptr"], records["label"] = pointers, labels
    return records


def _compare(split: Split, file: Path, advance: Callable[[int], None], quality: int | None) -> str:
    """Read `file` back and compare it with `split`, read once more; return the SHA-256 of the file."""
    written = beton.open_beton(file)
    row = told = 0
    for image, label in split:
        if row >= len(written):
            raise DataError("the source gives more images the second time it is read; is it being changed?")
        stored = written.data[written.offsets[row] : written.offsets[row] + written.sizes[row]]
        if label != written.labels[row] or not np.array_equal(_stored(image, quality), stored):
            raise DataError(f"image {row} as written differs from the source read again; is the source being changed?")
        row += 1
        if row - told == 2_048:
            advance(row - told)
            told = row
    if row != len(written):
        raise DataError(f"the source gives {row} images the second time it is read, {len(written)} the first time")
    advance(row - told)
    return written.sha256


def _put_in_place(staged: Path, target: Path, manifest: beton.Manifest, manifest_files: list[Path]) -> None:
    """Rename a complete beton into place. At no moment does a manifest lie beside a beton that is not its own."""
    partials = {file: file.with_name(f".{file.stem}.partial.json") for file in manifest_files}
    try:
        for file, partial in partials.items():
            with create_file(partial) as out:
                out.write(manifest.to_json().encode("utf-8"))
                fsync(out, file)
        for file in manifest_files:
            file.unlink(missing_ok=True)
        replace(staged, target)
        for file, partial in partials.items():
            replace(partial, file)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    fsync_folder(target.parent)
