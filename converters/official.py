"""The official CIFAR-10 and CIFAR-100 archives, downloaded and verified by torchvision.

The batches are pickles, which can run code when they are loaded: torchvision loads one only if its MD5 is the official
one. The files may therefore also come from an archive that was packed again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fastcifar.converters.archives import MAX_FILE_BYTES, READ_ERRORS
from fastcifar.converters.layout import ImageFile, Listing
from fastcifar.converters.sources import Image, Source
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.io.atomic import FULL
from fastcifar.io.paths import link_or_copy, make_folder

DATASETS = ("cifar10", "cifar100")
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_PACKINGS = {
    ("cifar10", "python"): {"cifar-10-batches-py", "batches.meta", "data_batch_1", "test_batch"},
    ("cifar10", "binary"): {"cifar-10-batches-bin", "batches.meta.txt", "data_batch_1.bin", "test_batch.bin"},
    ("cifar10", "matlab"): {"cifar-10-batches-mat", "batches.meta.mat", "data_batch_1.mat", "test_batch.mat"},
    ("cifar100", "python"): {"cifar-100-python"},
    ("cifar100", "binary"): {"cifar-100-binary", "fine_label_names.txt"},
    ("cifar100", "matlab"): {"cifar-100-matlab"},
}
"""File and folder names that identify a dataset and its version."""


class OfficialSplit:
    """One split of an official dataset, in memory, as torchvision loads it."""

    def __init__(self, dataset: Any) -> None:
        self._images, self._labels = dataset.data, dataset.targets

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        yield from zip(self._images, self._labels, strict=True)


def download(dataset: str, folder: Path) -> Source:
    """Download the official archive into `folder`, unless it is there already."""
    if dataset not in DATASETS:
        raise UsageError(f"dataset is {dataset!r}; expected one of: {', '.join(DATASETS)}")
    make_folder(folder)
    try:
        return _load(dataset, folder, download=True, description=f"{_TITLES[dataset]}, official archive, downloaded")
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{_TITLES[dataset]} cannot be downloaded ({error}); give the archive or a folder of images with "
            "--source PATH, or use --source synthetic"
        ) from error


def open_folder(path: Path) -> Source | None:
    """The unpacked official archive at `path` (that folder, or its parent); None if it is something else."""
    for dataset, name in _FOLDERS.items():
        for folder in (path, path / name):
            if (folder / "batches.meta").is_file() if dataset == "cifar10" else _is_cifar100(folder):
                with tempfile.TemporaryDirectory() as root:
                    link_or_copy(folder.resolve(), Path(root) / name)
                    return _open_local(dataset, Path(root), path)
    with contextlib.suppress(OSError):
        if incomplete := _require_python_version(path, os.listdir(path)):
            missing = "batches.meta" if incomplete == "cifar10" else "meta, train or test"
            raise DataError(f"{path}: not the official {_TITLES[incomplete]} files ({missing} is missing)")
    return None


def _is_cifar100(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("meta", "train", "test"))


def open_archive(path: Path, listing: Listing) -> Source | None:
    """The official files in the archive at `path`, whose content is `listing`; None if it has others."""
    dataset = _require_python_version(path, [*(file.name for file in listing.files), *listing.folders])
    if dataset is None:
        return None
    with tempfile.TemporaryDirectory() as root:
        return _open_local(dataset, Path(root), path, listing.files)


def refuse_single_file(path: Path) -> None:
    """Raise DataError if `path` is one of the unpacked official files."""
    if dataset := _require_python_version(path, [path.name]):
        raise DataError(f"{path}: one file of {_TITLES[dataset]}; expected the whole folder")


def _require_python_version(path: Path, names: Iterable[str]) -> str | None:
    """The official dataset whose python version has files of these names; None if there is none.

    Raises DataError if they belong to another version.
    """
    parts = {part for name in names for part in PurePosixPath(name).parts}
    for (dataset, version), known_names in _PACKINGS.items():
        if parts & known_names:
            if version == "python":
                return dataset
            archive = _torchvision_class(dataset)
            raise DataError(
                f"{path}: the {version} version of {_TITLES[dataset]}, which is not supported; expected the python "
                f"version, {archive.filename} (MD5 {archive.tgz_md5}), its unpacked folder, or a folder of images"
            )
    return None


def _checksums(dataset: str) -> dict[str, str]:
    """The MD5 of each file of the python version."""
    kind = _torchvision_class(dataset)
    return {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}


def _open_local(dataset: str, root: Path, path: Path, files: Iterable[ImageFile] = ()) -> Source:
    """The dataset in a folder of `root`, into which `files` are written. path: of the source, for messages."""
    folder, names = root / _FOLDERS[dataset], set(_checksums(dataset))
    try:
        for file in files:
            if (name := PurePosixPath(file.name).name) in names:
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(file.read(MAX_FILE_BYTES))
        if any(file.stat().st_size > MAX_FILE_BYTES for file in folder.glob("*")):
            raise ValueError("too large")  # before its checksum is computed
        return _load(dataset, root, description=f"{_TITLES[dataset]}, official archive")
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise FastcifarError(f"{tempfile.gettempdir()}: too full to unpack {path} ({error.strerror})") from error
        difference = _find_difference(dataset, folder)
        raise DataError(
            f"{path}: not the official {_TITLES[dataset]} files ({difference}); expected those of "
            f"{_torchvision_class(dataset).filename}, unchanged"
        ) from error


def _find_difference(dataset: str, folder: Path) -> str:
    """The first file that is missing or has another checksum."""
    from torchvision.datasets.utils import calculate_md5

    for name, expected in _checksums(dataset).items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size > MAX_FILE_BYTES:
            return f"{name} has {file.stat().st_size:,} bytes"
        actual = calculate_md5(str(file))
        if actual != expected:
            return f"{name} has the MD5 {actual}; expected {expected}"
    return "they cannot be read"


def _load(dataset: str, root: Path, *, description: str, download: bool = False) -> Source:
    kind = _torchvision_class(dataset)
    with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout is for results
        train = kind(str(root), train=True, download=download)
    test = kind(str(root), train=False)
    return Source(
        description=description,
        class_names=tuple(train.classes),
        splits={"train": OfficialSplit(train), "test": OfficialSplit(test)},
    )


def _torchvision_class(dataset: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
