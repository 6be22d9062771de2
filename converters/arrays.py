"""Arrays of images: .npz, .npy files of images and labels, SVHN's .mat."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.converters.array_files import ArrayHeader, StoredArray, open_array, place, read_npy, read_npz
from fastcifar.converters.array_images import array_split, read_labels
from fastcifar.converters.array_names import Pair, Words, choose_arrays, read_words
from fastcifar.converters.labels import number_labels
from fastcifar.converters.layout import Listing
from fastcifar.converters.mat_file import read_mat
from fastcifar.converters.sources import Labels, Source, SourceOptions
from fastcifar.data.image_files import ImageError
from fastcifar.data.tables import MAX_CLASSES
from fastcifar.errors import DataError, UsageError, escape, one_line
from fastcifar.io.paths import user_path, why_missing

READERS = {".npy": read_npy, ".npz": read_npz, ".mat": read_mat}
MAX_FILES = 100
SVHN_SHAPE = (32, 32, 3)


def is_array_folder(path: Path) -> bool:
    """True for a folder of array files, without folders."""
    entries = visible_entries(path)
    return any(entry.suffix.lower() in READERS for entry in entries) and not any(entry.is_dir() for entry in entries)


def open_file(path: Path, resources: ExitStack, options: SourceOptions) -> Source:
    """The images in the file at `path` and, where it is one of several, in those next to it: labels of an .npy file,
    the other split. The source closes `resources`."""
    if options.labels_file is not None:
        labels_file = user_path(options.labels_file, "labels_file")
        if {path.suffix.lower(), labels_file.suffix.lower()} != {".npy"}:
            raise UsageError(f"labels_file is {str(labels_file)!r}; expected an .npy file, for an .npy file of images")
        if not labels_file.is_file():
            reason = "not a regular file" if labels_file.exists() else why_missing(labels_file)
            raise DataError(f"{labels_file}: {reason}; expected the labels, as --labels-file")
        pair = Pair(read_npy(path, resources)[0], read_npy(labels_file, resources)[0])
        return _open(path, {"train": pair}, None, resources, options)
    words, suffix = read_words(path.stem), path.suffix.lower()
    files = [path]
    if suffix == ".npy" or words.split is not None:
        others = ((entry, read_words(entry.stem)) for entry in visible_entries(path.parent) if entry.name != path.name)
        files += [
            entry
            for entry, other in others
            if entry.suffix.lower() == suffix and other.others == words.others and entry.is_file()
            if suffix == ".npy" or other.split is not None
        ]
    if suffix == ".npy" and len(files) == 1:
        raise DataError(f"{path}: no labels next to it, e.g. y_train.npy for X_train.npy; name them with --labels-file")
    return _open_files(path, files, resources, options)


def open_folder(path: Path, resources: ExitStack, options: SourceOptions) -> Source:
    """The images in the array files of a folder; the source closes `resources`."""
    files = [entry for entry in visible_entries(path) if entry.suffix.lower() in READERS and entry.is_file()]
    return _open_files(path, files, resources, options)


def visible_entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without files of operating systems."""
    accepts = Listing(lambda name, max_bytes: b"").accepts
    try:
        return sorted(entry for entry in folder.iterdir() if accepts(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _open_files(path: Path, files: Sequence[Path], resources: ExitStack, options: SourceOptions) -> Source:
    if len(files) > MAX_FILES:
        raise DataError(f"{path}: {len(files):,} array files; expected those of images and labels alone")
    arrays: list[tuple[Words, ArrayHeader]] = []
    for file in files:
        of_file, headers = read_words(file.stem), READERS[file.suffix.lower()](file, resources)
        for header in headers:
            words = of_file if file.suffix.lower() == ".npy" else _combine(of_file, header.name, len(headers))
            arrays.append((words, header if len(files) == 1 else _rename(header, file)))
    chosen, class_names = choose_arrays(path, arrays)
    return _open(path, chosen, class_names, resources, options)


def _combine(file: Words, name: str, num_arrays: int) -> Words:
    """What the names of a file and of an array in it say together."""
    array = read_words(name)
    if array.role == "class names":
        return array
    role = array.role or (file.role if num_arrays == 1 else None)
    return Words(array.split or file.split, role, file.others + array.others)


def _rename(header: ArrayHeader, file: Path) -> ArrayHeader:
    name = escape(file.name)
    return header if header.name == name else replace(header, name=f"{name}:{header.name}")


def _open(
    path: Path, pairs: dict[str, Pair], names: ArrayHeader | None, resources: ExitStack, options: SourceOptions
) -> Source:
    found: dict[str, tuple[Labels, Sequence[str]]] = {}
    images: dict[str, StoredArray] = {}
    is_one_hot = False
    for split, pair in pairs.items():
        labels = open_array(path, pair.labels, resources)
        found[split] = read_labels(path, labels)
        is_one_hot = is_one_hot or (len(pair.labels.shape) == 2 and 1 not in pair.labels.shape)
        _check_images(path, pair, len(found[split][0]))
        images[split] = open_array(path, pair.images, resources)
    class_names: tuple[str, ...] | None = None
    if names is not None:
        class_names = _read_class_names(path, open_array(path, names, resources))
        texts = {text for _, texts in found.values() for text in texts}
        kinds = {"one-hot" if is_one_hot else pair.labels.dtype.kind for pair in pairs.values()}
        name_of = _names_of(path, texts, class_names, kinds)
        found = {split: (indices, [name_of[text] for text in texts]) for split, (indices, texts) in found.items()}
    elif is_one_hot:
        class_names = tuple(found["train"][1])
    elif path.suffix.lower() == ".mat" and all(array.item_shape == SVHN_SHAPE for array in images.values()):
        found = {split: (indices, _svhn_digits(texts)) for split, (indices, texts) in found.items()}
    class_names, numbered = number_labels(path, found, class_names)
    return Source(
        description=f"arrays of {path.resolve().name}",
        path=str(path),
        class_names=class_names,
        kind="arrays",
        splits={split: array_split(path, images[split], numbered[split], options) for split in pairs},
        preprocessing=options.preprocessing,
        resources=resources.pop_all(),
    )


def _check_images(path: Path, pair: Pair, num_labels: int) -> None:
    """Raise DataError unless there are as many images as labels, each of which can be read alone."""
    header, shape = pair.images, pair.images.shape
    if header.problem:
        return  # which `open_array` reports
    name = f"{place(path, header.name)} has shape {shape}"
    if len(shape) == 2:
        grey, rgb = math.isqrt(shape[1]), math.isqrt(shape[1] // 3)
        sides = f"{grey}, {grey})" if grey**2 == shape[1] else "H, W)"
        if 3 * rgb**2 == shape[1]:
            sides = f"3, {rgb}, {rgb}), or with (-1, {rgb}, {rgb}, 3) if the values of a pixel follow each other"
        array = header.name.rpartition(":")[2].removesuffix(".npy")
        raise DataError(
            f"{name}: its images are flat; save it again with height and width, e.g. {array}.reshape(-1, {sides}"
        )
    is_first, is_last = shape[:1] == (num_labels,), shape[-1:] == (num_labels,)
    if header.is_fortran and is_first and path.suffix.lower() == ".mat":  # which has no other order
        raise DataError(
            f"{name}, and {pair.labels.name} has {num_labels:,} labels; expected the images along the last axis: save "
            "it again with numpy.moveaxis(x, 0, -1), or as .npz"
        )
    if header.is_fortran and is_first:
        raise DataError(f"{name} in column-major order; save it again with numpy.ascontiguousarray")
    if not header.is_fortran and is_last and not is_first:
        raise DataError(
            f"{name}, and {pair.labels.name} has {num_labels:,} labels; expected the images along the first axis: save "
            "it again with numpy.moveaxis(x, -1, 0)"
        )
    if not (is_last if header.is_fortran else is_first):
        raise DataError(f"{name}, and {pair.labels.name} has {num_labels:,} labels; expected one label for each image")
    if 0 in shape:
        raise DataError(f"{name}; expected images")


def _read_class_names(path: Path, array: StoredArray) -> tuple[str, ...]:
    name = array.header.name
    try:
        values: Any = array.load()
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
    except (ImageError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {name} cannot be read ({one_line(error)}); expected class names") from error
    if values.ndim != 1 or not 0 < len(values) <= MAX_CLASSES:
        raise DataError(f"{path}: {name} has shape {values.shape}; expected 1 to {MAX_CLASSES:,} class names (C,)")
    return tuple(str(value).strip() for value in values)


def _names_of(path: Path, texts: set[str], class_names: Sequence[str], kinds: Collection[str]) -> dict[str, str]:
    """The class names of all labels `texts`: these are names or, all of them, indices. kinds: of their arrays.

    Raises DataError for others, and for numbers that could be either.
    """
    as_names = {} if "one-hot" in kinds else {text: text for text in texts if text in class_names}
    indices = (text for text in texts if text.isdecimal() and int(text) < len(class_names))
    as_indices = {text: class_names[int(text)] for text in indices}
    complete = [found for found in (as_names, as_indices) if len(found) == len(texts)]
    if not complete:
        wrong = min(texts - max(as_names, as_indices, key=len).keys())
        raise DataError(f"{path}: label {wrong!a:.60}; expected 0..{len(class_names) - 1}, of its class names")
    if as_names != as_indices and len(complete) == 2 and not all(kind in ("S", "U") for kind in kinds):
        text = min(text for text in texts if as_names[text] != as_indices[text])
        raise DataError(
            f"{path}: label {text} can be class {text!r}, and the index of class {as_indices[text]!r}; expected one of "
            "them: save the labels as the names, as text, or class names that are not numbers"
        )
    return complete[0]


def _svhn_digits(texts: Sequence[str]) -> list[str]:
    """SVHN's files write 10 for the digit 0."""
    is_svhn = "10" in texts and all(text.isdigit() and 1 <= int(text) <= 10 for text in texts)
    return ["0" if is_svhn and text == "10" else text for text in texts]
