"""Datasets of Hugging Face: Parquet or Arrow files, a folder of them as `datasets` writes it, or a name on the hub."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastcifar.converters.arrow_files import MAX_ROWS, SUFFIXES, ArrowFile, Cell, import_pyarrow
from fastcifar.converters.columns import ClassEncoder, choose_column
from fastcifar.converters.dataset_files import MAX_DEPTH, find_files
from fastcifar.converters.images import read_image_file
from fastcifar.converters.sources import IndexedSplit, Labels, Source, SourceOptions
from fastcifar.data.image_files import EXTENSIONS, ImageError, decode_image
from fastcifar.errors import DataError, FastcifarError, MissingExtraError, UsageError, describe

MAX_IMAGES_NEXT_TO = 100
"""A folder with more image files, and no Parquet or Arrow file before them, is one of images."""
_HUB_NAME = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.+-]+))?", re.ASCII)


def is_dataset_folder(path: Path) -> bool:
    """Whether a folder holds Parquet or Arrow files of images, and is not one of image files."""
    missing: MissingExtraError | None = None
    num_images = 0
    for base, folders, files in os.walk(path):
        depth = len(Path(base).relative_to(path).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < MAX_DEPTH else []
        if "dataset_dict.json" in files or {"state.json", "dataset_info.json"} <= set(files):
            return True
        tables = sorted(name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        try:
            if tables:
                return has_images(Path(base) / tables[0], SourceOptions())
        except MissingExtraError as error:
            missing = error
        num_images += sum(name.lower().endswith(EXTENSIONS) for name in files)
        if num_images > MAX_IMAGES_NEXT_TO:
            return False
    if missing is not None and not num_images:
        raise missing
    return False


def has_images(path: Path, options: SourceOptions) -> bool:
    """Whether a Parquet or Arrow file holds images; else it may hold their paths."""
    if path.suffix.lower() == ".arrow":
        return True
    file = ArrowFile(path)
    certain, possible = _image_columns(file)
    return options.image_column in (*certain, *possible) if options.image_column else bool(certain or possible)


def open_path(path: Path, resources: ExitStack, options: SourceOptions) -> Source:
    """The images of a Parquet or Arrow file, or of a folder of them; the source closes `resources`."""
    import_pyarrow(path)
    if options.split_column is not None:
        raise UsageError(f"split_column is {options.split_column!r}; {path} is split by the names of its files")
    found = find_files(path) if path.is_dir() else {"train": [path]}
    splits = {split: [ArrowFile(file) for file in files] for split, files in found.items()}
    first = splits["train"][0]
    all_files = [file for files in splits.values() for file in files]
    if sum(file.num_rows for file in all_files) > MAX_ROWS:
        raise DataError(f"{path}: has over {MAX_ROWS:,} rows")
    columns = {field.name: field.type for field in first.schema}
    image = choose_column(path, "image", options.image_column, *_image_columns(first), columns)
    label = choose_column(path, "label", options.label_column, *_label_columns(first), columns)
    _require_columns(all_files, (image, label))
    encoder = ClassEncoder(path, _class_names(all_files, label))
    codes = {split: _read_labels(path, split, files, label, encoder) for split, files in splits.items()}
    class_names, labels = encoder.finish(codes)
    return Source(
        description=f"{path.resolve().name}, Hugging Face",
        path=str(path),
        class_names=class_names,
        kind="a Hugging Face dataset",
        splits={
            split: _split(_Cells(path, split, files, image, resources), labels[split], options)
            for split, files in splits.items()
        },
        preprocessing=options.preprocessing,
        resources=resources.pop_all(),
    )


def _split(cells: _Cells, labels: Labels, options: SourceOptions) -> IndexedSplit:
    decode = partial(decode_image, rule=options.preprocessing)
    return IndexedSplit(labels=labels, fetch=cells.fetch, decode=decode, origin=cells.origin)


class _Cells:
    """The images of a split by position. They are read forwards: positions that ascend are fast."""

    def __init__(self, path: Path, split: str, files: Sequence[ArrowFile], column: str, resources: ExitStack) -> None:
        self._path, self._split, self._files, self._column = path, split, files, column
        self._cells: Iterator[Cell | ImageError] = iter(())
        self._next = -1
        self._paths: dict[int, str] = {}
        resources.callback(self._close)

    def fetch(self, position: int) -> bytes:
        """The file content of an image. Raises ImageError, or DataError for a path outside the folder."""
        if not self._next <= position < self._next + 1_000 or self._next < 0:
            self._close()
            self._cells, self._next = self._read(position), position
        cell: Cell | ImageError | None = None
        while self._next <= position:
            cell = next(self._cells, None)
            self._next += 1
        if cell is None:
            raise DataError(f"{self._path}: {self._split}[{position}] is missing; its file is damaged")
        if isinstance(cell, ImageError):
            raise cell
        if cell.path:
            self._paths[position] = cell.path
        if cell.content is not None:
            return cell.content
        if not cell.path:
            raise ImageError("is null")
        return self._read_file(cell.path)

    def origin(self, position: int) -> str:
        """The path of the image that was fetched; else its row."""
        return self._paths.pop(position, f"{self._split}[{position}]")

    def _read_file(self, name: str) -> bytes:
        """An image that is a file next to the table."""
        parsed = PurePosixPath(name)
        if parsed.is_absolute() or ".." in parsed.parts or "\\" in name or "\0" in name or "://" in name:
            raise DataError(
                f"{self._path}: the image {name!a} is not in the file, and outside the folder; write the dataset with "
                "its images: save_to_disk, or push_to_hub"
            )
        return read_image_file((self._path if self._path.is_dir() else self._path.parent) / name)

    def _read(self, start: int) -> Iterator[Cell | ImageError]:
        for file in self._files:
            if start < file.num_rows:
                yield from file.cells(self._column, start)
            start = max(0, start - file.num_rows)

    def _close(self) -> None:
        close = getattr(self._cells, "close", None)
        if close is not None:
            close()


def _image_columns(file: ArrowFile) -> tuple[list[str], list[str]]:
    """The columns that are images, and those that may be."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    features = file.features()
    possible = []
    for field in file.schema:
        kind = field.type
        is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)
        if is_struct or is_bytes(kind):
            possible.append(field.name)
    certain = [name for name in possible if features.get(name, {}).get("_type") == "Image"]
    return (certain, possible) if certain or len(possible) != 1 else (possible, possible)


def _label_columns(file: ArrowFile) -> tuple[list[str], list[str]]:
    """The columns that are labels, and those that may be."""
    from pyarrow import types

    def is_label(kind: Any) -> bool:
        if types.is_dictionary(kind):
            kind = kind.value_type
        return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)

    features = file.features()
    possible = [field.name for field in file.schema if is_label(field.type)]
    return [name for name in possible if features.get(name, {}).get("_type") == "ClassLabel"], possible


def _require_columns(files: Sequence[ArrowFile], names: Sequence[str]) -> None:
    """Raise DataError unless all files have these columns once, of the same type."""
    first = files[0]
    for file in files:
        for name in names:
            index = file.schema.get_field_index(name)
            if index < 0 or not file.schema.field(index).type.equals(first.schema.field(name).type):
                raise DataError(
                    f"{file.path}: column {name!r} is not there, there twice, or not of the type of {first.path}"
                )


def _class_names(files: Sequence[ArrowFile], column: str) -> list[str] | None:
    """The names of the classes that the files give; None if they give none."""
    names: list[Any] = [file.features().get(column, {}).get("names") for file in files]
    for file, other in zip(files, names, strict=True):
        if other != names[0]:
            raise DataError(f"{file.path}: its class names are not those of {files[0].path}")
    if names[0] is not None and not (isinstance(names[0], list) and all(isinstance(name, str) for name in names[0])):
        raise DataError(f"{files[0].path}: the class names of {column!r} are not a list of text")
    return names[0]


def _read_labels(path: Path, split: str, files: Sequence[ArrowFile], column: str, encoder: ClassEncoder) -> Labels:
    parts: list[Labels] = []
    row = 0
    for file in files:
        expected = row + file.num_rows
        for values, indices in file.labels(column):
            codes = np.full(len(values) + 1, -1, np.int64)  # the last one for null
            for index, first in zip(*np.unique(indices, return_index=True), strict=True):
                origin = f"{split}[{row + first}]"
                if index < 0 or values[index] is None:
                    raise DataError(f"{path}: {origin}: the label is null")
                codes[index] = encoder.encode(values[index], origin)
            parts.append(codes[indices])
            row += len(indices)
            if row > expected:
                break
        if row != expected:
            raise DataError(f"{file.path}: damaged: its rows are not the {file.num_rows:,} that it announces")
    if not row:
        raise DataError(f"{path}: no images in {split}")
    return np.concatenate(parts)


def open_hub(name: str, options: SourceOptions) -> Source:
    """The dataset OWNER/NAME[:CONFIG] on the hub, downloaded by `datasets` into its cache.

    Raises MissingExtraError (exit code 3) without `datasets` 4 or later: earlier versions run programs of a dataset.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"source is 'hf:{name}'; expected hf:OWNER/NAME or hf:OWNER/NAME:CONFIG, e.g. hf:ylecun/mnist")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"hf:{name}", "hf", describe(error)) from error
    if int(datasets.__version__.split(".")[0]) < 4:
        raise MissingExtraError(f"hf:{name}", "hf", f"datasets is {datasets.__version__}; 4 or later is required")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            loaded = datasets.load_dataset(match["path"], match["config"])
    except FastcifarError:
        raise
    except Exception as error:  # `datasets` raises many types
        raise DataError(f"hf:{name} cannot be loaded ({describe(error, 300)})") from error
    return open_loaded(f"hf:{name}", loaded, options)


def open_loaded(name: str, loaded: Any, options: SourceOptions) -> Source:
    """The splits of a `DatasetDict`, whose images are decoded here and not by `datasets`, which lets Pillow start
    programs for some formats."""
    import datasets

    from fastcifar.converters.python_dataset import open_dataset

    raw = {}
    for split, dataset in loaded.items():
        features = dataset.features
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        for column in images:
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        raw[split] = dataset
    roots = [Path(datasets.config.HF_CACHE_HOME), Path(datasets.config.HF_DATASETS_CACHE)]
    source = open_dataset(raw, None, None, options, where=name, image_roots=roots)
    return replace(source, description=f"{name}, Hugging Face", path=name, kind="a Hugging Face dataset")
