"""CIFAR-10 and CIFAR-100 as their authors publish them: the python version by torchvision, and the binary version.

The batches of the python version are pickles, which can run code when they are loaded: torchvision loads one only if
its MD5 is the official one. The files may therefore also come from an archive that was packed again, or another folder.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from fastcifar.converters import cifar_binary
from fastcifar.converters.archives import MAX_FILE_BYTES, READ_ERRORS
from fastcifar.converters.layout import Listing
from fastcifar.converters.sources import Sample, Source
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.io.atomic import FULL
from fastcifar.io.paths import link_or_copy, make_folder
from fastcifar.io.reading import read_bytes

DATASETS = ("cifar10", "cifar100")
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
DOWNLOADED = {name: f"{title}, official archive, downloaded" for name, title in _TITLES.items()}
"""The description of a source that is downloaded, which its manifests keep."""
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_FILES: dict[tuple[str, str], tuple[set[str], ...]] = {
    ("cifar10", "python"): ({"batches.meta"}, {"data_batch_1"}, {"test_batch"}),
    ("cifar10", "binary"): ({"batches.meta.txt"}, {"data_batch_1.bin"}, {"test_batch.bin"}),
    ("cifar10", "matlab"): ({"batches.meta.mat"}, {"data_batch_1.mat"}, {"test_batch.mat"}),
    ("cifar100", "python"): ({"meta", "train", "test"},),
    ("cifar100", "binary"): ({"fine_label_names.txt"}, {"train.bin", "test.bin"}),
    ("cifar100", "matlab"): ({"meta.mat", "train.mat", "test.mat"},),
}
"""Files of a folder, any set of which identifies a dataset and its version."""
_FOLDER_KINDS = {
    "cifar-10-batches-py": ("cifar10", "python"),
    "cifar-10-batches-bin": ("cifar10", "binary"),
    "cifar-10-batches-mat": ("cifar10", "matlab"),
    "cifar-100-python": ("cifar100", "python"),
    "cifar-100-binary": ("cifar100", "binary"),
    "cifar-100-matlab": ("cifar100", "matlab"),
}
_KNOWN_FILES = {name for kinds in _FILES.values() for names in kinds for name in names}
MAX_FOLDERS = 1_000
"""Folders in which the files are looked for."""


class OfficialSplit:
    """One split of an official dataset, in memory, as torchvision loads it: its files one after another."""

    def __init__(self, dataset: Any, files: Sequence[str]) -> None:
        self._images, self._labels, self._files = dataset.data, dataset.targets, files

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Sample]:
        num_in_file = len(self) // len(self._files)
        for index, (image, label) in enumerate(zip(self._images, self._labels, strict=True)):
            file, row = divmod(index, num_in_file)
            yield Sample(image, label, f"{self._files[file]}[{row}]")


def download(dataset: str, folder: Path) -> Source:
    """Download the official archive into `folder`, unless it is there already."""
    if dataset not in DATASETS:
        raise UsageError(f"dataset is {dataset!r}; expected one of: {', '.join(DATASETS)}")
    make_folder(folder)
    try:
        return _load(dataset, folder, download=True, description=DOWNLOADED[dataset])
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{_TITLES[dataset]} cannot be downloaded ({error}); give the archive or a folder of images with "
            "--source PATH, or use --source synthetic"
        ) from error


def open_folder(path: Path, resources: ExitStack) -> Source | None:
    """The unpacked official archive at `path`, or in a folder there; None if it is something else."""
    found = _identify(_files_near(path))
    if found is None:
        return None
    dataset, version, name = found
    folder = path / name
    if _require_supported(path, dataset, version) == "binary":
        return _open_binary(dataset, path, lambda file, max_bytes: read_bytes(folder / file, max_bytes), resources)
    with tempfile.TemporaryDirectory() as root:
        link_or_copy(folder.resolve(), Path(root) / _FOLDERS[dataset])
        return _open_local(dataset, Path(root), path)


def open_archive(path: Path, listing: Listing, resources: ExitStack) -> Source | None:
    """The official files in the archive at `path`, whose content is `listing`; None if it has others."""
    found = _identify(listing.files)
    if found is None:
        return None
    dataset, version, folder = found
    names = {PurePosixPath(name).name: name for name in listing.files if posixpath.dirname(name) == folder}
    if _require_supported(path, dataset, version) == "binary":
        return _open_binary(dataset, path, lambda file, max_bytes: listing.read(names[file], max_bytes), resources)
    with tempfile.TemporaryDirectory() as root:
        return _open_local(dataset, Path(root), path, lambda file: listing.read(names[file], MAX_FILE_BYTES), names)


def refuse_single_file(path: Path) -> None:
    """Raise DataError if `path` is one of the unpacked official files."""
    for (dataset, _), all_names in _FILES.items():
        if any(names == {path.name} for names in all_names):
            raise DataError(f"{path}: one file of {_TITLES[dataset]}; expected the whole folder")


def _files_near(path: Path) -> Iterator[str]:
    """The files in a folder and in the folders there."""
    folders = ["."]
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        folders += islice((entry.name for entry in entries if entry.is_dir()), MAX_FOLDERS)
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(path / folder) as entries:
            for entry in entries:
                if (entry.name in _KNOWN_FILES or folder in _FOLDER_KINDS) and entry.is_file():
                    yield posixpath.normpath(f"{folder}/{entry.name}")


def _identify(files: Iterable[str]) -> tuple[str, str, str] | None:
    """The official dataset that is among `files`, its version and its folder; None if there is none."""
    folders: dict[str, set[str]] = {}
    for file in files:
        folder, name = posixpath.split(file)
        if name in _KNOWN_FILES or posixpath.basename(folder) in _FOLDER_KINDS:
            folders.setdefault(folder, set()).add(name)
    for folder in sorted(folders):
        for kind, all_names in _FILES.items():
            if any(names <= folders[folder] for names in all_names):
                return *kind, folder
    for folder in sorted(folders):
        if named := _FOLDER_KINDS.get(posixpath.basename(folder)):
            return *named, folder
    return None


def _require_supported(path: Path, dataset: str, version: str) -> str:
    """The version, 'python' or 'binary'. Raises DataError for another."""
    if version == "matlab":
        archive = _torchvision_class(dataset)
        raise DataError(
            f"{path}: the {version} version of {_TITLES[dataset]}, which is not supported; expected the python "
            f"version, {archive.filename} (MD5 {archive.tgz_md5}), the binary version, or the unpacked folder of one"
        )
    return version


def _open_binary(dataset: str, path: Path, read: cifar_binary.Read, resources: ExitStack) -> Source:
    return cifar_binary.open_binary(path, read, dataset, f"{_TITLES[dataset]}, binary version", resources)


def _checksums(dataset: str) -> dict[str, str]:
    """The MD5 of each file of the python version."""
    kind = _torchvision_class(dataset)
    return {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}


def _open_local(
    dataset: str, root: Path, path: Path, read: Callable[[str], bytes] | None = None, names: Iterable[str] = ()
) -> Source:
    """The dataset in a folder of `root`, into which the files `names` of an archive are written. path: for messages."""
    folder = root / _FOLDERS[dataset]
    try:
        if read is not None:
            folder.mkdir()
            for name in set(names) & set(_checksums(dataset)):
                (folder / name).write_bytes(read(name))
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
        splits={
            "train": OfficialSplit(train, [name for name, _ in kind.train_list]),
            "test": OfficialSplit(test, [name for name, _ in kind.test_list]),
        },
    )


def _torchvision_class(dataset: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
