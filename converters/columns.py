"""What a dataset of Hugging Face or Python consists of: its splits, its columns, and its labels as class indices."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.converters.labels import is_missing, sort_names, warn_of_unlabelled
from fastcifar.converters.names import (
    SPLIT_OF,
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    assign_splits,
    check_class_names,
)
from fastcifar.converters.sources import Labels
from fastcifar.data.manifest import MAX_NAME
from fastcifar.data.tables import MAX_CLASSES
from fastcifar.errors import DataError, UsageError, escape, join_names

log = logging.getLogger(__name__)
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
LABEL_NAMES = ("label", "labels", "class", "target", "category")


def choose_column(
    where: object,
    kind: str,
    named: str | None,
    certain: Sequence[str],
    possible: Sequence[str],
    columns: Mapping[str, object],
) -> str:
    """The column of images or labels. kind: 'image' or 'label'; named: by the user; columns: name -> type.

    certain: columns that are declared as such; else one of `possible` is chosen by its usual name. Raises DataError if
    none or several fit, UsageError if there is no column `named`.
    """
    flag = f"--{kind}-column"
    listed = (
        f"the columns are: {join_names(f'{escape(name):.60} ({of_type!s:.60})' for name, of_type in columns.items())}"
    )
    if named is not None:
        if named not in columns:
            raise UsageError(f"{where}: {flag} is {named!r}; {listed}")
        if named not in certain and named not in possible:
            raise DataError(f"{where}: column {named!r} cannot be a column of {kind}s; {listed}")
        return named
    usual = IMAGE_NAMES if kind == "image" else LABEL_NAMES
    candidates = certain or [name for name in possible if name.lower() in usual]
    if len(candidates) > 1:
        preferred = [name for name in candidates if name in (usual[0], f"{usual[0]}s")]
        candidates = preferred if len(preferred) == 1 else candidates
    if len(candidates) != 1:
        problem = f"several columns of {kind}s: {join_names(candidates)}" if candidates else f"no column of {kind}s"
        raise DataError(f"{where}: has {problem}; name it with {flag}; {listed}")
    return candidates[0]


def choose_splits(where: object, names: Iterable[str]) -> dict[str, str]:
    """The split of each of `names` that is used, e.g. {'train': 'train', 'validation': 'test'}, see `assign_splits`.

    Raises DataError unless there is one training set.
    """
    names = list(names)
    for kinds in (TRAIN_NAMES, TEST_NAMES, VALIDATION_NAMES):
        same = [name for name in names if name.lower() in kinds]
        if len(same) > 1:
            raise DataError(f"{where}: has {join_names(same)}; expected one of them")
    chosen = assign_splits(Path(str(where)), names, "{}")
    if "train" not in chosen.values():
        raise DataError(f"{where}: has the splits {join_names(names) or '(none)'}; expected train and test")
    if unused := [name for name in names if name.lower() not in SPLIT_OF]:
        log.warning("%s: %s is not used; expected train, test or validation", where, join_names(unused))
    return chosen


class ClassEncoder:
    """Labels to class indices: indices and names of known classes, or the distinct values that occur."""

    def __init__(self, where: object, class_names: Sequence[str] | None) -> None:
        self._where, self._names = where, class_names
        self._codes: dict[Any, int] = {}
        if class_names is not None:
            check_names(where, class_names)
            self._codes = {name: index for index, name in enumerate(class_names)}

    @property
    def has_names(self) -> bool:
        """True if the classes are known before all labels are."""
        return self._names is not None

    def encode(self, value: Any, origin: str) -> int:
        """The index of a label, an int or str: final if the classes are known, else see `finish`.

        Raises DataError, which names the `origin`, for a label that is not one of the classes.
        """
        if self._names is not None:
            index = value if isinstance(value, int) else self._codes.get(value, -1)
            if not 0 <= index < len(self._names):
                what = f"0..{len(self._names) - 1}" if isinstance(value, int) else f"one of: {join_names(self._names)}"
                hint = " (-1 marks images without a label)" if value == -1 else ""
                raise DataError(f"{self._where}: {origin}: label {value!r:.60}; expected {what}{hint}")
            return index
        if isinstance(value, str) and is_missing(value):
            raise DataError(f"{self._where}: {origin}: label {value!r:.60}; expected a class name")
        if isinstance(value, str) and len(value) > MAX_NAME:
            raise DataError(
                f"{self._where}: {origin}: label {value[:20]!r}… has {len(value):,} characters; expected at most "
                f"{MAX_NAME}"
            )
        index = self._codes.setdefault(value, len(self._codes))
        if index == len(self._codes) - 1 and type(value) is not type(next(iter(self._codes))):
            raise DataError(f"{self._where}: {origin}: label {value!r:.60}; expected all integers, or all class names")
        if index >= MAX_CLASSES:
            raise DataError(
                f"{self._where}: {origin}: over {MAX_CLASSES:,} different labels, e.g. {value!r:.60}; is it the "
                "column of labels?"
            )
        return index

    def finish(self, splits: dict[str, Labels]) -> tuple[tuple[str, ...], dict[str, Labels]]:
        """The class names, and the labels of each split by what `encode` gave: (N,) int64, negative if unknown.

        Where the classes were not known, they are the values in 'train', sorted. Raises DataError for others in 'test'.
        """
        if self._names is not None:
            return tuple(self._names), splits
        values = list(self._codes)
        used = np.unique(splits["train"][splits["train"] >= 0]).tolist()
        code_of = {str(values[code]): code for code in used}
        names = sort_names(code_of)
        ordered = [code_of[name] for name in names]
        check_names(self._where, names)
        warn_of_unlabelled(self._where, names)
        final = np.full(len(values) + 1, -1, np.int64)  # the last one for unknown labels, -1
        final[ordered] = np.arange(len(ordered))
        for split, codes in splits.items():
            missing = np.flatnonzero((codes >= 0) & (final[codes] < 0))
            if len(missing):
                value = values[int(codes[missing[0]])]
                raise DataError(
                    f"{self._where}: {split}[{missing[0]}]: label {value!r:.60}, which no training image has; "
                    f"expected one of: {join_names(names)}"
                )
        return names, {split: final[codes] for split, codes in splits.items()}


def check_names(where: object, names: Iterable[str]) -> None:
    """Raise DataError unless these can be class names."""
    names = list(names)
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where}: {len(names):,} classes; expected at most {MAX_CLASSES:,}")
    if duplicates := len(names) - len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: {duplicates} of the {len(names)} class names occur twice, e.g. {twice!a}")
    check_class_names(Path(str(where)), ((name, name) for name in names), "class name")
