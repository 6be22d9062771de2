"""CIFAR-10 and CIFAR-100 as their authors publish them. Downloading, checksums and unpacking are torchvision's work.

The batches are pickles, which can run code when opened: torchvision opens one only if its MD5 is the official one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.converters.images import UNREADABLE, StrictTarInfo, decompressed
from fastcifar.converters.sources import Image, Source
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.file_system import make_folder
from fastcifar.files import FULL

DATASETS = ("cifar10", "cifar100")
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
MOST_BYTES = 2**28  # the archives have 170 MB
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


class OfficialSplit:
    """One split of an official dataset, as torchvision holds it in memory."""

    def __init__(self, dataset: Any) -> None:
        self._images, self._labels = dataset.data, dataset.targets

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        yield from zip(self._images, self._labels, strict=True)


def download(dataset: str, folder: Path) -> Source:
    """The official archive from its authors' site, kept in `folder` so that it is fetched once."""
    if dataset not in DATASETS:
        raise UsageError(f"dataset is {dataset!r}; expected one of: {', '.join(DATASETS)}")
    make_folder(folder)
    try:
        return _load(dataset, folder, fetch=True, description=f"{_TITLES[dataset]}, official archive, downloaded")
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{_TITLES[dataset]} cannot be downloaded ({error}); give the archive or a folder of images with "
            "--source PATH, or use --source synthetic"
        ) from error


def open_folder(path: Path) -> Source | None:
    """The unpacked official archive at `path` (the folder itself or the one that holds it); None if it is not one."""
    for dataset, name in _FOLDERS.items():
        for folder in (path, path / name):
            if (folder / "batches.meta").is_file() if dataset == "cifar10" else _is_cifar100(folder):
                with tempfile.TemporaryDirectory() as root:
                    os.symlink(folder.resolve(), Path(root) / name)
                    return _open_local(dataset, Path(root), path)
    return None


def _is_cifar100(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("meta", "train", "test"))


def open_archive(path: Path) -> Source | None:
    """The official archive at `path`; None if the file is something else."""
    dataset = _dataset_of(path)
    if dataset is None:
        return None
    from torchvision.datasets.utils import check_integrity

    expected = _torchvision_class(dataset)
    if path.stat().st_size > MOST_BYTES or not check_integrity(str(path), expected.tgz_md5):
        raise DataError(
            f"{path}: the MD5 is not that of the official {_TITLES[dataset]} archive ({expected.tgz_md5}): "
            "damaged, incomplete or changed; download it again"
        )
    with tempfile.TemporaryDirectory() as root:
        os.symlink(path.resolve(), Path(root) / expected.filename)
        return _open_local(dataset, Path(root), path, fetch=True)  # finds the archive there and only unpacks it


def _dataset_of(path: Path) -> str | None:
    """Which official dataset the first member of the tar at `path` belongs to."""
    try:
        with decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictTarInfo) as archive:
            member = archive.next()
    except UNREADABLE:
        return None
    first = member.name.removeprefix("./").split("/")[0] if member else ""
    return next((dataset for dataset, name in _FOLDERS.items() if name == first), None)


def _open_local(dataset: str, root: Path, shown: Path, *, fetch: bool = False) -> Source:
    try:
        if any(file.stat().st_size > MOST_BYTES for file in (root / _FOLDERS[dataset]).glob("*")):
            raise RuntimeError("too large")  # not read to the end for their checksum
        return _load(dataset, root, fetch=fetch, description=f"{_TITLES[dataset]}, official archive")
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise FastcifarError(f"{tempfile.gettempdir()}: too full to unpack {shown} ({error.strerror})") from error
        raise DataError(
            f"{shown}: not the official {_TITLES[dataset]} files (a checksum is wrong or a file is missing); "
            "download the archive again"
        ) from error


def _load(dataset: str, root: Path, *, fetch: bool, description: str) -> Source:
    kind = _torchvision_class(dataset)
    with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; results alone go to stdout
        train = kind(str(root), train=True, download=fetch)
    test = kind(str(root), train=False)
    return Source(
        description=description,
        class_names=tuple(train.classes),
        splits={"train": OfficialSplit(train), "test": OfficialSplit(test)},
    )


def _torchvision_class(dataset: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
