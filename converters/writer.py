"""A source to betons: written to a temporary file, read back and compared, renamed; the manifest last.

The bytes are those of FFCV's `DatasetWriter(num_workers=1)` for the fields `image` (raw) and `label`. FFCV's own writer
hangs on a source that raises or on a full disk, and opens the target for writing at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import __version__ as pillow_version

from fastcifar import __version__
from fastcifar.converters.pages import PageWriter, pages_start, write_tables
from fastcifar.converters.replacement import (
    manifest_files,
    partial_origins,
    replace_with_manifest,
    resolve_link,
    sidecars,
)
from fastcifar.converters.sources import Broken, Labels, Sample, Source
from fastcifar.converters.summary import Hashes, Summary, hash_image, warn_of_imbalance
from fastcifar.data import jpeg, tables
from fastcifar.data.beton_file import open_file
from fastcifar.data.image_files import quiet_pillow
from fastcifar.data.manifest import Manifest, read_manifest
from fastcifar.data.origins import to_line
from fastcifar.data.statistics import channel_histogram, channel_statistics, describe_empty_classes
from fastcifar.errors import DataError, FastcifarError, join_names, one_line
from fastcifar.io.atomic import create_file, fsync
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import data_folder, make_folder

log = logging.getLogger(__name__)
SPLITS = ("train", "test")
USUAL_SIDES = (16, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224)
Progress = Callable[[str, int], None]
"""Called with the name of the split and the number of further images that were written or compared."""


class MixedSizesError(DataError):
    """The images have several sizes."""

    def __init__(self, problem: str, side: int) -> None:
        """side: of a square that suits most of them."""
        super().__init__(f"{problem}; resize them, e.g. to {side}x{side}, with size={side}")
        self.problem, self.side = problem, side


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A split that was written to a temporary file."""

    shape: tuple[int, int, int]
    first: str
    """Name of the first image."""
    labels: Labels
    histogram: npt.NDArray[np.int64]
    """(3, 256)."""
    stored_hashes: Hashes
    origins_sha256: str
    summary: Summary


def write_betons(
    source: Source,
    data_dir: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    jpeg_quality: int | None = None,
    skip_broken: bool = False,
) -> dict[str, Manifest]:
    """Write `train.beton`, `test.beton`, their manifests and origins into `data_dir`; return the manifests by split.

    Images are written raw, or as JPEG of `jpeg_quality` (1..100), which only the ffcv loader reads.
    skip_broken: skip images that cannot be read, up to 1% of a split; they are an error otherwise.

    Both files are complete and compared before either replaces an existing one. Raises DataError for a source that
    cannot be converted, FastcifarError if the folder is not writable.
    """
    folder = data_folder(data_dir)
    replaced: list[str] = []
    report = progress or (lambda name, count: None)
    try:
        make_folder(folder)
        targets = {name: resolve_link(folder / f"{name}.beton") for name in SPLITS}
        with ExitStack() as cleanup:
            cleanup.enter_context(quiet_pillow())
            folders = {path.resolve(): path for path in (*(file.parent for file in targets.values()), folder)}
            for path in folders.values():
                cleanup.enter_context(lock_folder(path, "another conversion is writing here; wait for it to end"))
            manifests_of = {name: manifest_files(folder / f"{name}.beton", targets[name]) for name in SPLITS}
            for file in (file for name in SPLITS for file in (targets[name], *sidecars(manifests_of[name]))):
                if file.is_dir():
                    raise FastcifarError(f"{file}: a folder; expected a file or nothing: move it away")
            partials = {name: targets[name].with_name(f".{targets[name].name}.partial") for name in SPLITS}
            for file in partials.values():
                cleanup.callback(file.unlink, missing_ok=True)
                cleanup.callback(partial_origins(file).unlink, missing_ok=True)
            written: dict[str, _Written] = {}
            for name in SPLITS:
                advance, train = partial(report, name), written.get("train")
                written[name] = _write(source, name, train, partials[name], advance, jpeg_quality, skip_broken)
            warn_of_imbalance(source.class_names, np.concatenate([each.labels for each in written.values()]))
            manifests = {}
            for name, other in (SPLITS, SPLITS[::-1]):
                sha256 = _compare(written[name], partials[name], partial(report, name))
                manifests[name] = _manifest(source, name, written[name], written[other], sha256)
            former = _former_manifests(folder)
            for name in SPLITS:
                replace_with_manifest(partials[name], targets[name], manifests[name], manifests_of[name])
                replaced.append(f"{name}.beton")
            if former and any(manifests[name].sha256 != each.sha256 for name, each in former.items()):
                sources = join_names(dict.fromkeys(each.source for each in former.values()))
                num_classes = max(len(each.class_names) for each in former.values())
                num_images = sum(each.num_samples for each in former.values())
                log.info("%s: replaced %d classes, %s images, from %s", folder, num_classes, f"{num_images:,}", sources)
            return manifests
    except OSError as error:
        result = f"only {replaced[0]} was replaced: convert again" if replaced else "nothing was replaced"
        path = error.filename or folder
        raise FastcifarError(f"{path}: cannot be written ({error.strerror or error}); {result}") from error


def _former_manifests(folder: Path) -> dict[str, Manifest]:
    """The manifests of the betons that are to be replaced; without those that are missing or damaged."""
    former = {}
    for name in SPLITS:
        with suppress(DataError):
            if os.path.lexists(folder / f"{name}.beton") and (manifest := read_manifest(folder / f"{name}.beton")):
                former[name] = manifest
    return former


def _manifest(source: Source, name: str, written: _Written, other: _Written, sha256: str) -> Manifest:
    """The manifest of a split. Warns of unusual content."""
    mean, std = channel_statistics(written.histogram)
    if message := describe_empty_classes(source.class_names, written.labels):
        log.warning("%s.beton: %s", name, message)
    if not any(std):
        log.warning("%s.beton: all pixels of all images are equal (%.3g of 0..255)", name, mean[0])
    elif max(mean) <= 1:
        log.warning(
            "%s.beton: the images are almost black (mean %.2g of 0..255); multiply values of 0..1 by 255 first",
            *(name, max(mean)),
        )
    return Manifest(
        num_samples=len(written.labels),
        image_shape=written.shape,
        class_names=source.class_names,
        mean=mean,
        std=std,
        sha256=sha256,
        source=source.description.encode("utf-8", "backslashreplace").decode("utf-8"),  # a file name may not be UTF-8
        versions={
            "fastcifar": __version__,
            "numpy": np.__version__,
            "pillow": pillow_version,
            "python": platform.python_version(),
        },
        conversion=written.summary.conversion(other.summary.hashes, source.edits),
        origins_sha256=written.origins_sha256,
    )


def _write(
    source: Source,
    name: str,
    train: _Written | None,
    file: Path,
    advance: Callable[[int], None],
    quality: int | None,
    skip_broken: bool,
) -> _Written:
    """Write the images of a split, each read once, to `file`, and their origins next to it. train: the training images,
    if this is the other split: all have one size."""
    split = source.splits[name]
    num_samples = len(split)
    labels, pointers, sizes = (np.empty(num_samples, dtype=np.int64) for _ in range(3))
    stored_hashes = np.empty(num_samples, np.uint64)
    histogram = np.zeros((3, 256), dtype=np.int64)
    summary = Summary(name, num_samples, source.preprocessing, source.num_ignored)
    origins, has_origins = hashlib.sha256(), False
    shape, first = (train.shape, train.first) if train else ((0, 0, 0), "")
    index = 0
    with create_file(file) as out, create_file(partial_origins(file)) as origins_out:
        out.seek(pages_start(num_samples))
        pages = PageWriter(out, advance, histogram if quality is None else None)
        samples = iter(split)
        for sample in samples:
            if isinstance(sample, Broken):
                if not skip_broken:
                    where = f"{source.path}: " if source.path else ""
                    where += one_line(sample.origin, 300)
                    raise DataError(f"{where}: {sample.reason}; replace or remove it, or use --skip-broken")
                summary.skip(sample)
                advance(1)
                continue
            image = sample.image
            if not first:
                shape, first = (image.shape[0], image.shape[1], 3), _named(sample, name, 0).origin
            elif image.shape != shape and image.shape[2:] == (3,) and image.dtype == np.uint8:
                raise _mixed_sizes(source, first, shape, _named(sample, name, index), samples)
            _check_image(name, index, sample, shape, num_samples, len(source.class_names))
            stored = image.reshape(-1) if quality is None else jpeg.encode(image, quality)
            if quality is not None:
                if len(stored) > tables.PAGE_SIZE:
                    raise DataError(
                        f"{_named(sample, name, index).origin} takes {len(stored)} bytes as JPEG; expected at most "
                        f"{tables.PAGE_SIZE}, a page: lower --quality, or resize it with --size"
                    )
                histogram += channel_histogram(jpeg.decode(stored))
            summary.add(index, sample)
            stored_hashes[index] = summary.hashes[index] if quality is None else hash_image(stored)
            labels[index], pointers[index], sizes[index] = sample.label, pages.append(stored), len(stored)
            line = to_line(sample.origin).encode()
            origins.update(line)
            origins_out.write(line)
            has_origins = has_origins or bool(sample.origin)
            index += 1
        if index == 0 or index + len(summary.skipped) != num_samples:
            raise DataError(
                f"the source yields {index} images, its length is {num_samples}; expected as many, at least 1"
            )
        pages.flush()
        labels, pointers, sizes = labels[:index], pointers[:index], sizes[:index]
        summary.hashes, stored_hashes = summary.hashes[:index], stored_hashes[:index]
        write_tables(out, shape, quality is None, pointers, sizes, labels)
        fsync(out, file)
        fsync(origins_out, file)
    return _Written(
        shape=shape,
        first=first,
        labels=labels,
        histogram=histogram,
        stored_hashes=stored_hashes,
        origins_sha256=origins.hexdigest() if has_origins else "",
        summary=summary,
    )


def _named(sample: Sample, split: str, index: int) -> Sample:
    return sample if sample.origin else sample._replace(origin=f"{split} image {index}")


def _mixed_sizes(
    source: Source, first: str, shape: tuple[int, ...], other: Sample, samples: Iterator[Sample | Broken]
) -> DataError:
    """The error for images of several sizes; further ones are looked at to suggest a size."""
    images = [other, *(sample for sample in islice(samples, 500) if isinstance(sample, Sample))]
    median = float(np.median([min(shape[:2]), *(min(sample.image.shape[:2]) for sample in images)]))
    side = max((side for side in USUAL_SIDES if side <= median), default=USUAL_SIDES[0])
    height, width, _ = other.image.shape
    return MixedSizesError(
        f"{source.name}: {other.origin} is {height}x{width}, {first} is {shape[0]}x{shape[1]} "
        "(height x width); expected one size for all",
        side,
    )


def _check_image(
    split: str, index: int, sample: Sample, shape: tuple[int, int, int], num_samples: int, num_classes: int
) -> None:
    image, label, name = sample.image, sample.label, _named(sample, split, index).origin
    if index == num_samples:
        raise DataError(f"the source yields more images than its length, {num_samples}")
    if image.shape != shape or image.dtype != np.uint8:
        raise DataError(f"{name} is {image.dtype} {image.shape}; expected uint8 {shape}, as the first image")
    if not 0 < image.nbytes <= tables.PAGE_SIZE:
        raise DataError(
            f"{name} is {image.shape[0]}x{image.shape[1]}; expected at most {tables.PAGE_SIZE} bytes, a page: resize "
            "it with --size"
        )
    if not 0 <= label < num_classes:
        raise DataError(f"{name} has label {label}; expected 0..{num_classes - 1}, of {num_classes} classes")


def _compare(written: _Written, file: Path, advance: Callable[[int], None]) -> str:
    """Read `file` back and compare it with what was written; return its SHA-256."""
    opened = open_file(file)
    stored = tables.read_tables(opened)
    if not np.array_equal(stored.labels, written.labels):
        raise DataError(f"{file}: its labels are not those that were written; is the disk damaged?")
    for index, (start, size) in enumerate(zip(stored.offsets.tolist(), stored.sizes.tolist(), strict=True)):
        if hash_image(opened.read(start, size)) != written.stored_hashes[index]:
            raise DataError(f"{file}: image {index} is not the one that was written; is the disk damaged?")
        if index % 2_048 == 2_047:
            advance(2_048)
    advance(len(written.labels) % 2_048)
    return opened.sha256()
