"""Sources of images: the official CIFAR archives, a folder or archive of images, or a generator.

A source has class names and two splits. A split has a length, and yields the same (image, label) pairs, (H, W, 3) uint8
and int, each time it is iterated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastcifar.errors import DataError
from fastcifar.io.paths import data_folder, user_path, why_missing

Image = npt.NDArray[np.uint8]


class Split(Protocol):
    """The training or test images of a source."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Image, int]]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to convert. Use it in a `with` block: an archive keeps files open."""

    description: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    """'train' and 'test'."""
    resources: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resources.close()


def open_source(
    spec: str | os.PathLike[str],
    *,
    dataset: str = "cifar10",
    download_dir: str | os.PathLike[str] = "data",
    skip_empty_classes: bool = False,
) -> Source:
    """The source that `spec` names: 'download' (of `dataset`, 'cifar10' or 'cifar100', kept in `download_dir`),
    'synthetic', or a path: an official archive or its unpacked folder, a folder of images, or a tar or zip of one.

    skip_empty_classes: skip class folders without images, which are an error otherwise.

    Raises DataError (exit code 4) if there is nothing there, or nothing that can be converted.
    """
    from fastcifar.converters import images, official, synthetic
    from fastcifar.converters.archives import read_archive

    if spec == "download":
        return official.download(dataset, data_folder(download_dir, "download_dir"))
    if spec == "synthetic":
        return synthetic.source()
    path = user_path(spec, "source")
    if path.is_dir():
        return official.open_folder(path) or images.open_folder(path, skip_empty=skip_empty_classes)
    if path.is_file():
        official.refuse_single_file(path)
        with ExitStack() as resources:
            listing = read_archive(path, resources)
            return official.open_archive(path, listing) or images.open_archive(
                path, listing, resources, skip_empty=skip_empty_classes
            )
    raise DataError(
        f"{path}: {why_missing(path, 'no such file or folder')}; expected 'download', 'synthetic', a CIFAR archive or "
        "its unpacked folder, or a folder or archive of images"
    )
