"""Datasets of Python: map-style or iterable, of (image, label); each item is read once, in order, on one thread."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastcifar.converters.columns import ClassEncoder, choose_column, choose_splits
from fastcifar.converters.python_images import to_image
from fastcifar.converters.sources import Broken, IndexedSplit, Sample, Source, SourceOptions
from fastcifar.converters.spool import Spool
from fastcifar.data.image_files import Decoded, ImageError
from fastcifar.errors import DataError, FastcifarError, UsageError, describe, join_names
from fastcifar.io.checks import shown

EXPECTED = "expected (image, label), or a mapping with a column of each"


class Item(NamedTuple):
    """What a dataset gave."""

    image: Decoded | ImageError
    label: int
    """As `ClassEncoder.encode` gives it; -1 if the item could not be read."""


def open_dataset(
    train: Any,
    test: Any,
    class_names: Sequence[str] | None,
    options: SourceOptions,
    *,
    where: str = "dataset",
    image_roots: Sequence[Path] = (),
) -> Source:
    """The images of a training and a test set, or of a mapping of sets by split; see `fastcifar.convert`.

    Items that are not decoded yet are files in `image_roots`. Sets are read while they are converted if the classes are
    known and there is a test set; else they are read at once, into an unnamed temporary file.
    """
    datasets = _by_split(train, test, where)
    if "test" not in datasets and options.test_share is None:
        raise DataError(f"{where}: no test images; give them as `test`, or a test_share, e.g. 0.2")
    if "test" in datasets and options.test_share is not None:
        raise UsageError(f"test_share is {options.test_share}, but {where} has test images already")
    columns = _feature_columns(datasets, where, options)
    names = _known_classes(datasets, columns, where) if class_names is None else _to_names(class_names)
    encoder = ClassEncoder(where, names)
    readers = {
        split: _Reader(dataset, split, where, encoder, options, image_roots, columns)
        for split, dataset in datasets.items()
    }
    description = f"{type(datasets['train']).__name__}, Python" if where == "dataset" else where
    if encoder.has_names and "test" in readers and all(reader.length is not None for reader in readers.values()):
        final, _ = encoder.finish({})
        return Source(
            description=description,
            class_names=final,
            kind="a dataset of Python",
            splits={split: _Streamed(reader) for split, reader in readers.items()},
            preprocessing=options.preprocessing,
        )
    with ExitStack() as resources:
        spools = {split: _spool(reader, resources) for split, reader in readers.items()}
        final, labels = encoder.finish(
            {split: np.frombuffer(codes, np.int64).copy() for split, (_, codes) in spools.items()}
        )
        splits = {
            split: IndexedSplit(
                labels=np.maximum(labels[split], 0),  # that of a broken image is not used
                fetch=spool.read,
                decode=_pass,
                origin=readers[split].origin,
            )
            for split, (spool, _) in spools.items()
        }
        return Source(
            description=description,
            class_names=final,
            kind="a dataset of Python",
            splits=splits,
            preprocessing=options.preprocessing,
            resources=resources.pop_all(),
        )


def _to_names(class_names: object) -> list[str]:
    names = list(class_names) if isinstance(class_names, Iterable) and not isinstance(class_names, str) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"class_names is {shown(class_names)}; expected names, e.g. ['cat', 'dog']")
    return names


def _pass(image: Decoded) -> Decoded:
    return image


@dataclass(frozen=True)
class _Streamed:
    """A split that is read while it is converted."""

    reader: _Reader

    def __len__(self) -> int:
        return self.reader.length or 0

    def __iter__(self) -> Iterator[Sample | Broken]:
        for index, item in enumerate(self.reader):
            origin = self.reader.origin(index)
            if isinstance(item.image, ImageError):
                yield Broken(origin, str(item.image))
            else:
                yield Sample(item.image.pixels, item.label, origin, item.image.size, item.image.changes)


def _spool(reader: _Reader, resources: ExitStack) -> tuple[Spool, array[int]]:
    """All images of a set, in a temporary file, and their labels."""
    spool, labels = resources.enter_context(Spool()), array("q")
    for item in reader:
        spool.add(item.image)
        labels.append(item.label)
    if not labels:
        raise DataError(f"{reader.where}: no images in {reader.split}")
    return spool, labels


class _Reader:
    """The items of a dataset, in order. The dataset is called from the thread that iterates."""

    def __init__(
        self,
        dataset: Any,
        split: str,
        where: str,
        encoder: ClassEncoder,
        options: SourceOptions,
        image_roots: Sequence[Path],
        columns: tuple[str, str] | None,
    ) -> None:
        self._dataset, self.split, self.where = dataset, split, where
        self._encoder, self._options, self._image_roots = encoder, options, image_roots
        self._columns = columns
        self.length = _length(dataset)
        """None if the dataset is an iterable."""
        if self.length is None and not hasattr(dataset, "__iter__"):
            raise UsageError(
                f"{split} is {type(dataset).__name__}; expected a path, a dataset with __len__ and __getitem__, or an "
                "iterable of (image, label)"
            )
        if self.length == 0:
            raise DataError(f"{where}: no images in {split}")

    def origin(self, index: int) -> str:
        return f"{self.split}[{index}]"

    def __iter__(self) -> Iterator[Item]:
        for index, item in enumerate(self._items()):
            if isinstance(item, ImageError):
                yield Item(item, -1)
                continue
            image, label = self._image_and_label(item, index)
            code = self._encoder.encode(self._to_label(label, index), self.origin(index))
            try:
                preprocessing = self._options.preprocessing
                yield Item(to_image(image, preprocessing, self._options.channels, self._image_roots), code)
            except ImageError as error:
                yield Item(error, code)
            except DataError as error:
                raise DataError(f"{self.where}: {self.origin(index)} {error}") from error

    def _items(self) -> Iterator[Any]:
        """What the dataset gives. An error of a map-style one is an ImageError, because the next item can be read."""
        if self.length is not None:
            for index in range(self.length):
                try:
                    item = self._dataset[index]
                except FastcifarError:
                    raise
                except Exception as error:  # noqa: BLE001 (the user's code)
                    item = ImageError(f"the dataset raised {describe(error, 300)}")
                yield item
            return
        index = 0
        try:
            for index, item in enumerate(self._dataset, start=1):  # noqa: B007 (how many were read)
                yield item
        except FastcifarError:
            raise
        except Exception as error:  # the user's code
            raise DataError(
                f"{self.where}: {self.origin(index)}: the iterable raised {describe(error, 300)}"
            ) from error

    def _image_and_label(self, item: Any, index: int) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            if self._columns is None:
                kinds = {str(name): type(value).__name__ for name, value in item.items()}
                image = choose_column(self.where, "image", self._options.image_column, (), list(kinds), kinds)
                others = [name for name in kinds if name != image]
                self._columns = image, choose_column(self.where, "label", self._options.label_column, (), others, kinds)
            if missing := [name for name in self._columns if name not in item]:
                raise DataError(f"{self.where}: {self.origin(index)}: has no {missing[0]!r}")
            return item[self._columns[0]], item[self._columns[1]]
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return item[0], item[1]
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise DataError(f"{self.where}: {self.origin(index)} is a {type(item).__name__}{length}; {EXPECTED}")

    def _to_label(self, label: Any, index: int) -> int | str:
        """The label as an int or str."""
        value = label
        if hasattr(value, "item") and getattr(value, "ndim", 0) <= 2 and np.size(_host(value)) == 1:
            value = _host(value).reshape(-1)[0].item()
        if isinstance(value, (int, str)):
            return int(value) if isinstance(value, int) else value
        shape = getattr(label, "shape", ())
        kind = f"{type(label).__name__} of shape {tuple(shape)}" if len(shape) else f"{label!r:.40}"
        raise DataError(f"{self.where}: {self.origin(index)}: the label is {kind}; expected an integer or a class name")


def _host(value: Any) -> Any:
    """A tensor or array as an array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _length(dataset: Any) -> int | None:
    """The length of a map-style dataset; None for an iterable one."""
    if not hasattr(dataset, "__getitem__"):
        return None
    if any(
        kind.__name__ == "IterableDataset" for kind in type(dataset).__mro__
    ):  # torch's has a __getitem__ that raises
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _by_split(train: Any, test: Any, where: str) -> dict[str, Any]:
    if not isinstance(train, Mapping):
        return {"train": train} if test is None else {"train": train, "test": test}
    if test is not None:
        raise UsageError("test is given twice: the training images are a mapping of splits; expected one of the two")
    by_name = {str(name): dataset for name, dataset in train.items()}
    return {split: by_name[name] for name, split in choose_splits(where, by_name).items()}


def _feature_columns(datasets: Mapping[str, Any], where: str, options: SourceOptions) -> tuple[str, str] | None:
    """The columns of images and labels that the features of a Hugging Face dataset say; None without features."""
    features = getattr(datasets["train"], "features", None)
    if not isinstance(features, Mapping) or not features:
        return None
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name in kinds if kinds[name] == "Image"]
    image = choose_column(where, "image", options.image_column, images, list(kinds), kinds)
    classes = [name for name in kinds if kinds[name] == "ClassLabel"]
    others = [name for name in kinds if name != image]
    return image, choose_column(where, "label", options.label_column, classes, others, kinds)


def _known_classes(datasets: Mapping[str, Any], columns: tuple[str, str] | None, where: str) -> list[str] | None:
    """The class names that the datasets have; None if they have none. Raises DataError if they differ."""
    known: dict[tuple[str, ...], str] = {}
    for split, dataset in datasets.items():
        for names in _class_lists(dataset, columns[1] if columns else None):
            known.setdefault(tuple(names), split)
    if len(known) > 1:
        first, second = (f"{split} has the classes {join_names(names, 6)}" for names, split in list(known.items())[:2])
        raise DataError(f"{where}: {first}; {second}; expected the same classes in the same order, or class_names")
    return list(next(iter(known))) if known else None


def _class_lists(dataset: Any, label_column: str | None) -> Iterator[list[str]]:
    """The class names of a dataset, or of those that a Subset or ConcatDataset is made of."""
    features = getattr(dataset, "features", None)
    classes = getattr(dataset, "classes", None)
    if label_column is not None and isinstance(features, Mapping):
        classes = getattr(features.get(label_column), "names", None)
    if isinstance(classes, (list, tuple)) and classes:
        # synonyms of a class, as in torchvision's ImageNet
        names = [name[0] if isinstance(name, tuple) and name else name for name in classes]
        if all(isinstance(name, str) for name in names):
            yield names
            return
    parts = getattr(dataset, "datasets", None)  # of torch.utils.data.ConcatDataset
    for part in parts if isinstance(parts, (list, tuple)) else [getattr(dataset, "dataset", None)]:
        if part is not None and part is not dataset:
            yield from _class_lists(part, label_column)
