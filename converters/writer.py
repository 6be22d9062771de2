"""A source to betons: temporary file, read back, every pixel and label compared, renamed; the manifest last.

Byte for byte what FFCV's `DatasetWriter(num_workers=1)` writes for the fields `image` (raw) and `label`. FFCV's own
writer waits for ever on a source that raises or a full disk, and opens the target for writing at once.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import __version__ as pillow_version

from fastcifar import __version__, beton
from fastcifar.converters.sources import Source, Split
from fastcifar.errors import DataError, FastcifarError

SPLITS = ("train", "test")
Progress = Callable[[str, int], None]
"""Called with the name of the file and how many images more are written or compared."""


def convert(
    source: Source, data_dir: str | os.PathLike[str], progress: Progress | None = None
) -> dict[str, beton.Manifest]:
    """Write `train.beton`, `test.beton` and their manifests into `data_dir`; return the manifests by split.

    Both files are complete and compared before either is renamed into place, so that a failure leaves what was
    there. Raises DataError for a source that cannot be converted, FastcifarError if the folder cannot be written.
    """
    folder = Path(data_dir)
    replaced: list[str] = []
    report = progress or (lambda name, count: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), ExitStack() as cleanup:
            for name in SPLITS:
                target = folder / f"{name}.beton"
                for file in (target, beton.manifest_path(target)):
                    if file.is_dir():
                        raise FastcifarError(f"{file}: is a folder, where a file is to be written; move it away")
            staged = {name: folder / f".{name}.beton.partial" for name in SPLITS}
            for file in staged.values():
                cleanup.callback(file.unlink, missing_ok=True)
            manifests = {name: _stage(source, name, staged[name], report) for name in SPLITS}
            for name in SPLITS:
                _put_in_place(staged[name], folder / f"{name}.beton", manifests[name])
                replaced.append(f"{name}.beton")
            return manifests
    except OSError as error:
        where = error.filename or folder
        left = f"only {replaced[0]} was replaced: convert again" if replaced else "nothing was replaced"
        raise FastcifarError(f"{where}: cannot write ({error.strerror or error}); {left}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FastcifarError(f"{folder}: another conversion is writing here; wait for it to end") from None
    finally:
        os.close(descriptor)


def _stage(source: Source, name: str, file: Path, report: Progress) -> beton.Manifest:
    split = source.splits[name]
    shape, histogram = _write(split, file, lambda count: report(name, count))
    digest = _compare(split, file, lambda count: report(name, count))
    mean, std = beton.channel_statistics(histogram)
    return beton.Manifest(
        num_samples=len(split),
        image_shape=shape,
        class_names=source.class_names,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        sha256=digest,
        source=source.description,
        versions={
            "fastcifar": __version__,
            "numpy": np.__version__,
            "pillow": pillow_version,
            "python": platform.python_version(),
        },
    )


def _write(
    split: Split, file: Path, advance: Callable[[int], None]
) -> tuple[tuple[int, int, int], npt.NDArray[np.int64]]:
    """Write the images of `split` to `file`, a page at a time; return their shape and the histogram of their values."""
    num_samples = len(split)
    tables_end = beton.TABLES_START + num_samples * beton.RECORD.itemsize
    pages_start = -(-tables_end // beton.PAGE_SIZE) * beton.PAGE_SIZE
    labels = np.empty(num_samples, dtype=np.int64)
    histogram = np.zeros((3, 256), dtype=np.int64)
    page = np.zeros(beton.PAGE_SIZE, dtype=np.uint8)
    shape: tuple[int, int, int] | None = None
    size = per_page = done = 0

    with file.open("wb") as out:
        out.seek(pages_start)

        def flush(count: int) -> None:
            page[count * size :] = 0
            out.write(page.data)
            for channel in range(3):
                histogram[channel] += np.bincount(page[channel : count * size : 3], minlength=256)
            advance(count)

        for image, label in split:
            if shape is None:
                shape = (image.shape[0], image.shape[1], 3)
                size, per_page = image.nbytes, beton.PAGE_SIZE // max(image.nbytes, 1)
                if not per_page:
                    raise DataError(
                        f"image 0 is {shape[0]}x{shape[1]}; expected at most {beton.PAGE_SIZE} bytes, a beton's page"
                    )
            if done == num_samples:
                raise DataError(f"the source gives more images than the {num_samples} that it told")
            if image.shape != shape or image.dtype != np.uint8:
                raise DataError(f"image {done} is {image.dtype} {image.shape}; expected uint8 {shape}, as the first")
            slot = done % per_page
            page[slot * size : (slot + 1) * size] = image.reshape(-1)
            labels[done] = label
            done += 1
            if slot == per_page - 1:
                flush(per_page)
        if shape is None or done != num_samples:
            raise DataError(
                f"the source told {num_samples} images and gave {done}; expected at least one, and as many as told"
            )
        if done % per_page:
            flush(done % per_page)
        rows = np.arange(num_samples)
        pointers = pages_start + rows // per_page * beton.PAGE_SIZE + rows % per_page * size
        allocations = np.zeros(num_samples, dtype=beton.ALLOCATION)
        allocations["sample_id"], allocations["ptr"], allocations["size"] = rows, pointers, size
        table_start = out.tell()
        out.write(allocations.tobytes())
        out.seek(0)
        out.write(_head(num_samples, table_start))
        out.write(_records(shape, pointers, labels).tobytes())
        out.flush()
        os.fsync(out.fileno())
    return shape, histogram


def _head(num_samples: int, table_start: int) -> bytes:
    header = np.zeros(1, dtype=beton.HEADER)
    header["version"], header["num_fields"], header["page_size"] = beton.VERSION, 2, beton.PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = num_samples, table_start
    fields = np.zeros(2, dtype=beton.FIELD)
    fields["type_id"] = beton.IMAGE_FIELD, beton.INT_FIELD
    for field, name in zip(fields, (b"image", b"label"), strict=True):
        field["name"][: len(name)] = list(name)
    return header.tobytes() + fields.tobytes()


def _records(
    shape: tuple[int, int, int], pointers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.void]:
    records = np.zeros(len(labels), dtype=beton.RECORD)
    records["mode"], records["height"], records["width"] = beton.RAW, shape[0], shape[1]
    records["data_ptr"], records["label"] = pointers, labels
    return records


def _compare(split: Split, file: Path, advance: Callable[[int], None]) -> str:
    """Read `file` back and compare it with `split`, read once more; return the SHA-256 of the file."""
    written = beton.open_beton(file)
    row, chunk = 0, 2_048
    block = written.images(np.arange(min(chunk, len(written))))
    for image, label in split:
        if row >= len(written):
            raise DataError("the source gives more images the second time it is read; is it being changed?")
        if row % chunk == 0 and row:
            advance(chunk)
            block = written.images(np.arange(row, min(row + chunk, len(written))))
        if label != written.labels[row] or not np.array_equal(image, block[row % chunk]):
            raise DataError(f"image {row} as written differs from the source read again; is the source being changed?")
        row += 1
    if row != len(written):
        raise DataError(f"the source gives {row} images the second time it is read, {len(written)} the first time")
    advance((row - 1) % chunk + 1)
    return written.sha256


def _put_in_place(staged: Path, target: Path, manifest: beton.Manifest) -> None:
    """Rename a complete beton into place. At no moment does a manifest lie beside a beton that is not its own."""
    manifest_file = beton.manifest_path(target)
    partial = staged.with_name(f"{staged.name}.json")
    try:
        with partial.open("w", encoding="utf-8") as out:
            out.write(manifest.to_json())
            out.flush()
            os.fsync(out.fileno())
        manifest_file.unlink(missing_ok=True)
        os.replace(staged, target)
        os.replace(partial, manifest_file)
    finally:
        partial.unlink(missing_ok=True)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
