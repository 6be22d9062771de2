"""The binary version of CIFAR-10 and CIFAR-100: records of one or two labels and 32x32 pixels.

There are no official checksums of its files, as there are of the python version: what is checked is their structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.converters.archives import MAX_FILE_BYTES, READ_ERRORS
from fastcifar.converters.sources import Sample, Source
from fastcifar.data.manifest import MAX_NAME
from fastcifar.errors import DataError, escape

Read = Callable[[str, int], bytes]
"""The content of the file of this name, of at most so many bytes; else one of READ_ERRORS."""
MAX_NAMES_BYTES = 2**16
SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Format:
    """The files of a dataset, and what precedes the pixels of a record."""

    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    names_file: str
    max_labels: tuple[int, ...]
    """Of the labels of a record: CIFAR-100's superclass is not used; the last is the class."""


FORMATS = {
    "cifar10": Format(
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_files=("test_batch.bin",),
        names_file="batches.meta.txt",
        max_labels=(9,),
    ),
    "cifar100": Format(
        train_files=("train.bin",),
        test_files=("test.bin",),
        names_file="fine_label_names.txt",
        max_labels=(19, 99),
    ),
}


class BinarySplit:
    """The records of files, which are read one after another."""

    def __init__(self, path: Path, read: Read, files: Sequence[str], max_labels: tuple[int, ...]) -> None:
        """path: of the source, for messages. Raises DataError if a file is missing or damaged."""
        self._path, self._read, self._files, self._max_labels = path, read, files, max_labels
        self._num_records = sum(len(self._records(file)) for file in files)

    def __len__(self) -> int:
        return self._num_records

    def __iter__(self) -> Iterator[Sample]:
        num_labels = len(self._max_labels)
        for file in self._files:
            records = self._records(file)
            images = records[:, num_labels:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # (N, H, W, 3)
            for row, (image, label) in enumerate(zip(images, records[:, num_labels - 1].tolist(), strict=True)):
                yield Sample(np.ascontiguousarray(image), label, f"{file}[{row}]")

    def _records(self, file: str) -> npt.NDArray[np.uint8]:
        """(N, labels and pixels) uint8."""
        content = read_file(self._path, self._read, file, MAX_FILE_BYTES)
        size = len(self._max_labels) + 3 * SIDE * SIDE
        if not content or len(content) % size:
            raise DataError(
                f"{self._path}: {file} has {len(content):,} bytes; expected a multiple of {size:,}: it is cut off, or "
                "of another version"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        for position, highest in enumerate(self._max_labels):
            if (wrong := np.flatnonzero(records[:, position] > highest)).size:
                raise DataError(
                    f"{self._path}: {file}[{wrong[0]}] has label {records[wrong[0], position]}; expected 0..{highest}: "
                    "the file is damaged"
                )
        return records


def open_binary(path: Path, read: Read, dataset: str, description: str, resources: ExitStack) -> Source:
    """The binary version of `dataset` whose files `read` returns; the source closes `resources`."""
    form = FORMATS[dataset]
    return Source(
        description=description,
        path=str(path),
        class_names=_class_names(path, read, form),
        splits={
            "train": BinarySplit(path, read, form.train_files, form.max_labels),
            "test": BinarySplit(path, read, form.test_files, form.max_labels),
        },
        resources=resources.pop_all(),
    )


def read_file(path: Path, read: Read, file: str, max_bytes: int) -> bytes:
    """The content of a file of the source at `path`. Raises DataError if it is missing or cannot be read."""
    try:
        return read(file, max_bytes)
    except (KeyError, FileNotFoundError) as error:
        raise DataError(f"{path}: {file} is missing; expected all files of the binary version") from error
    except READ_ERRORS as error:
        raise DataError(f"{path}: {file}: cannot be read ({error})") from error


def _class_names(path: Path, read: Read, form: Format) -> tuple[str, ...]:
    text = read_file(path, read, form.names_file, MAX_NAMES_BYTES).decode("utf-8", "replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    expected = form.max_labels[-1] + 1
    if len(names) != expected or len(set(names)) != expected:
        raise DataError(f"{path}: {form.names_file} has {len(set(names))} class names; expected {expected}")
    for name in names:
        if not name.isprintable() or "\ufffd" in name or len(name) > MAX_NAME:
            raise DataError(
                f"{path}: {form.names_file} has the class name {escape(name[:30])!r}; expected a short text"
            )
    return names
