"""Datasets of torchvision by name, downloaded by it, e.g. `torchvision:SVHN`.

Only the labels and the list of images are read through torchvision: image files are decoded here, as those of a folder.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.converters.columns import check_names
from fastcifar.converters.images import read_image_file
from fastcifar.converters.python_images import to_image
from fastcifar.converters.sources import IndexedSplit, Source, SourceOptions
from fastcifar.data.image_files import decode_image
from fastcifar.errors import DataError, UsageError, describe
from fastcifar.io.paths import data_folder, make_folder

log = logging.getLogger(__name__)
TIMEOUT_S = 60
"""Without an answer of the server; torchvision sets none."""


@dataclass(frozen=True)
class _Dataset:
    """The arguments of each split, and the attributes that hold its images and labels."""

    splits: Mapping[str, Mapping[str, Any]]
    images: str = "data"
    """(N, ...) uint8, paths, or pairs of path and label."""
    labels: str = "targets"
    num_images: Mapping[str, int] = field(default_factory=dict)
    """Of each split, where torchvision takes the files that are there: they may be incomplete."""


_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
DATASETS = {
    "DTD": _Dataset(_BY_SPLIT, "_image_files", "_labels"),
    "EuroSAT": _Dataset({"train": {}}, "samples", "samples", {"train": 27_000}),
    "FashionMNIST": _Dataset(_TRAIN_FLAG),
    "FGVCAircraft": _Dataset({**_BY_SPLIT, "train": {"split": "trainval"}}, "_image_files", "_labels"),
    "Food101": _Dataset(_BY_SPLIT, "_image_files", "_labels"),
    "GTSRB": _Dataset(_BY_SPLIT, "_samples", "_samples", {"train": 26_640, "test": 12_630}),
    "Imagenette": _Dataset(
        {**_BY_SPLIT, "test": {"split": "val"}}, "_samples", "_samples", {"train": 9_469, "test": 3_925}
    ),
    "KMNIST": _Dataset(_TRAIN_FLAG),
    "MNIST": _Dataset(_TRAIN_FLAG),
    "OxfordIIITPet": _Dataset({**_BY_SPLIT, "train": {"split": "trainval"}}, "_images", "_labels"),
    "STL10": _Dataset(_BY_SPLIT, labels="labels"),
}
"""Classification sets by the name of their class in torchvision: those that need no further library."""
OFFICIAL = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}
NAMES = tuple(sorted((*DATASETS, *OFFICIAL, "SVHN")))


def open_named(name: str, options: SourceOptions) -> Source:
    """The dataset of torchvision of this name, in any case; downloaded into `options.download_dir` unless it is there.

    Raises UsageError for another name, DataError if it cannot be downloaded or is damaged.
    """
    known = {key.lower(): key for key in NAMES}
    title = known.get(name.lower())
    if title is None:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean torchvision:{known[close[0]]}? " if close else ""
        raise UsageError(f"source is 'torchvision:{name}'; {hint}expected one of: {', '.join(NAMES)}")
    folder = data_folder(options.download_dir, "download_dir")
    if title in OFFICIAL:
        from fastcifar.converters import official

        return official.download(OFFICIAL[title], folder)
    make_folder(folder)
    if title == "SVHN":
        return _open_svhn(folder, options)
    dataset = DATASETS[title]
    loaded = {split: _load(title, folder, arguments) for split, arguments in dataset.splits.items()}
    labels = {split: _labels(title, getattr(part, dataset.labels)) for split, part in loaded.items()}
    class_names = _class_names(title, loaded["train"], max(int(part.max()) for part in labels.values()) + 1)
    for split, part in labels.items():
        if len(part) < dataset.num_images.get(split, 0):
            log.warning(
                "%s: %s images in %s, and %s in the official set; if the download was interrupted, remove its folder "
                "in %s and convert again",
                *(title, f"{len(part):,}", split, f"{dataset.num_images[split]:,}", folder),
            )
        if part.min() < 0 or part.max() >= len(class_names):
            row = int(np.argmax((part < 0) | (part >= len(class_names))))
            raise DataError(f"{folder}: {title}: {split}[{row}]: label {part[row]}; expected 0..{len(class_names) - 1}")
    return Source(
        description=f"{title}, torchvision",
        path=f"torchvision:{title}",
        class_names=class_names,
        splits={
            split: _split(title, split, folder, getattr(part, dataset.images), labels[split], options)
            for split, part in loaded.items()
        },
        preprocessing=options.preprocessing,
    )


def _open_svhn(folder: Path, options: SourceOptions) -> Source:
    """SVHN, downloaded by torchvision, whose own reader needs SciPy and holds all images in memory."""
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    from fastcifar.converters import arrays

    with _downloading("SVHN", folder):
        for split in ("train", "test"):
            url, name, md5 = SVHN.split_list[split]
            download_url(url, str(folder), name, md5)  # which verifies a file that is there
    with ExitStack() as resources:
        source = arrays.open_file(folder / SVHN.split_list["train"][1], resources, options)
        return replace(source, description="SVHN, torchvision", path="torchvision:SVHN")


def _load(title: str, folder: Path, arguments: Mapping[str, Any]) -> Any:
    from torchvision import datasets

    if (folder / title / "processed").exists():  # of torchvision before 0.9: pickles
        raise DataError(f"{folder / title / 'processed'}: files of an old torchvision; remove the folder")
    with _downloading(title, folder):
        return getattr(datasets, title)(str(folder), **arguments, download=True)


@contextlib.contextmanager
def _downloading(title: str, folder: Path) -> Iterator[None]:
    """What torchvision prints goes to stderr, its errors become DataError, and a silent server is one."""
    try:
        with _timeout(TIMEOUT_S), contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            yield
    except Exception as error:  # torchvision raises many types for a missing network, and for damaged files
        raise DataError(
            f"torchvision:{title} cannot be downloaded into {folder}, or is damaged there ({describe(error, 300)}); "
            "check the network, or put its files there"
        ) from error


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _labels(title: str, values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(N,) int64, of labels, or of pairs of path and label."""
    if isinstance(values, list) and values and isinstance(values[0], tuple):
        values = [label for _, label in values]
    labels = np.asarray(values, dtype=np.int64).reshape(-1)
    if not len(labels):
        raise DataError(f"torchvision:{title} has no images")
    return labels


def _class_names(title: str, dataset: Any, num_classes: int) -> tuple[str, ...]:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return tuple(map(str, range(num_classes)))
    names = tuple(name[0] if isinstance(name, tuple) else str(name) for name in classes)
    check_names(f"torchvision:{title}", names)
    return names


def _split(title: str, split: str, folder: Path, images: Any, labels: Any, options: SourceOptions) -> IndexedSplit:
    """Images in an array, or in files."""
    if not isinstance(images, list):
        pixels = np.asarray(images)  # (N, H, W) or (N, 3, H, W) uint8
        if len(pixels) != len(labels):
            raise DataError(f"torchvision:{title}: {len(pixels)} images and {len(labels)} labels in {split}")
        return IndexedSplit(
            labels=labels,
            fetch=lambda position: pixels[position],
            decode=lambda image: to_image(image, options.preprocessing, "first"),
            origin=lambda position: f"{split}[{position}]",
        )
    paths = [os.fspath(image[0] if isinstance(image, tuple) else image) for image in images]
    root = os.path.abspath(folder)
    origins = [os.path.relpath(os.path.abspath(path), root) for path in paths]
    if outside := [path for path, origin in zip(paths, origins, strict=True) if origin.startswith("..")]:
        raise DataError(f"{folder}: {title} names the file {outside[0]!a}, which is outside that folder")
    return IndexedSplit(
        labels=labels,
        fetch=lambda position: read_image_file(Path(paths[position])),
        decode=partial(decode_image, rule=options.preprocessing),
        origin=lambda position: origins[position],
    )
