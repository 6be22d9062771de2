"""Which source a path or name means, and the test images of a source without any."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.converters.sources import IndexedSplit, Labels, Source, SourceOptions, resized
from fastcifar.data.image_files import EXTENSIONS
from fastcifar.data.statistics import draw_by_class
from fastcifar.errors import DataError, UsageError
from fastcifar.io.paths import data_folder, user_path, why_missing

KINDS = (
    "'download', 'synthetic', 'torchvision:NAME', 'hf:OWNER/NAME', a CIFAR archive or its unpacked folder, a folder or "
    "archive of images, a table of labels (.csv, .tsv, .parquet), or arrays (.npz, .npy, .mat)"
)
USED_BY = {
    "skip_empty_classes": ("class folders",),
    "images_root": ("a table",),
    "image_column": ("a table", "a Hugging Face dataset", "a dataset of Python"),
    "label_column": ("a table", "a Hugging Face dataset", "a dataset of Python"),
    "split_column": ("a table",),
    "labels_file": ("arrays",),
    "channels": ("arrays", "a dataset of Python"),
    "max_value": ("arrays",),
}
"""Options, and the kinds of source that have them."""
ARRAYS = (".npz", ".npy", ".mat")
TABLES = (".csv", ".tsv", ".parquet")


def open_source(spec: str | os.PathLike[str], options: SourceOptions | None = None) -> Source:
    """The source that `spec` names, see KINDS, with training and test images.

    Raises DataError (exit code 4) if there is nothing there, or nothing that can be converted; UsageError (2) for
    options that do not fit.
    """
    options = options or SourceOptions()
    return prepare(_open(spec, options), options)


def prepare(source: Source, options: SourceOptions) -> Source:
    """The source with test images, and its images resized as the options say. Raises as `open_source`."""
    try:
        _require_used(source, options)
        if options.preprocessing.size is not None and source.preprocessing.size is None:
            source = resized(source, options.preprocessing)
        return with_test_images(source, options)
    except BaseException:
        source.resources.close()
        raise


def _require_used(source: Source, options: SourceOptions) -> None:
    """Raise UsageError for an option that this kind of source ignores."""
    for name, kinds in USED_BY.items():
        if getattr(options, name) not in (None, False) and source.kind not in kinds:
            raise UsageError(
                f"--{name.replace('_', '-')} is for {' or '.join(kinds)}, and {source.name} is "
                f"{source.kind}: leave it out"
            )


def _open(spec: str | os.PathLike[str], options: SourceOptions) -> Source:
    from fastcifar.converters import official, synthetic

    if spec == "download":
        return official.download(options.dataset, data_folder(options.download_dir, "download_dir"))
    if spec == "synthetic":
        return synthetic.source()
    if options.dataset != SourceOptions.dataset:
        raise UsageError(
            f"dataset is {options.dataset!r}, and source {os.fspath(spec)!r}; expected the source 'download'"
        )
    kind, _, name = os.fspath(spec).partition(":")
    if kind == "torchvision" and name:
        from fastcifar.converters import torchvision_sets

        return torchvision_sets.open_named(name, options)
    if kind == "hf" and name:
        from fastcifar.converters import hugging_face

        return hugging_face.open_hub(name, options)
    return open_path(user_path(spec, "source"), options)


def open_path(path: Path, options: SourceOptions) -> Source:
    """The source in a file or folder, as it is: perhaps without test images, and not resized to `options` if it is one
    of CIFAR. Raises as `open_source`."""
    from fastcifar.converters import images, official
    from fastcifar.converters.archives import read_archive

    if not path.exists():
        raise DataError(f"{path}: {why_missing(path, 'no such file or folder')}; expected {KINDS}")
    with ExitStack() as resources:
        if path.is_dir():
            return official.open_folder(path, resources) or _open_folder(path, resources, options)
        if not path.is_file():
            raise DataError(f"{path}: not a file or folder; expected {KINDS}")
        suffix = path.suffix.lower()
        if suffix in ARRAYS:
            from fastcifar.converters import arrays

            return arrays.open_file(path, resources, options)
        if suffix in TABLES or suffix == ".arrow":
            return _open_table(path, resources, options)
        if suffix in EXTENSIONS:
            raise DataError(f"{path}: one image; expected a folder or an archive of images, in a folder for each class")
        official.refuse_single_file(path)
        listing = read_archive(path, resources)
        return official.open_archive(path, listing, resources) or images.open_listing(path, listing, resources, options)


def _open_folder(path: Path, resources: ExitStack, options: SourceOptions) -> Source:
    from fastcifar.converters import arrays, hugging_face, images

    if arrays.is_array_folder(path):
        return arrays.open_folder(path, resources, options)
    if hugging_face.is_dataset_folder(path):
        return hugging_face.open_path(path, resources, options)
    return images.open_listing(path, images.list_folder(path), resources, options)


def _open_table(path: Path, resources: ExitStack, options: SourceOptions) -> Source:
    from fastcifar.converters import hugging_face, table

    if path.suffix.lower() in (".parquet", ".arrow") and hugging_face.has_images(path, options):
        return hugging_face.open_path(path, resources, options)
    return table.open_table(path, resources, options)


def with_test_images(source: Source, options: SourceOptions) -> Source:
    """The source; if it has no test images, a share of the images of each class become test images."""
    if "test" in source.splits:
        if options.test_share is not None:
            raise UsageError(f"test_share is {options.test_share}, but {source.name} has test images already")
        return source
    if options.test_share is None:
        raise DataError(
            f"{source.name}: has no test images; make every fifth image of each class one with --test-share 0.2"
        )
    train = source.splits["train"]
    assert isinstance(train, IndexedSplit)  # every source that can lack test images
    labels = train.selected_labels()
    is_test = hold_out_test(labels, len(source.class_names), options.test_share, options.seed)
    if not is_test.any():
        raise DataError(f"{source.name}: no class has two images; expected one to test on")
    splits = {"train": train.select(np.flatnonzero(~is_test)), "test": train.select(np.flatnonzero(is_test))}
    return replace(source, splits=splits)


def hold_out_test(labels: Labels, num_classes: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which images become test images, (N,) bool: `share` of each class, at least one of a class with two images, and
    never all of a class. It depends on its arguments alone."""
    counts = np.bincount(labels, minlength=num_classes)
    high = np.maximum(counts - 1, 0)
    num_test = np.clip(np.round(share * counts).astype(np.int64), np.minimum(high, 1), high)
    keys = np.random.Philox(np.random.SeedSequence([seed, len(labels)])).random_raw(len(labels))
    return draw_by_class(labels, num_test, keys)
