"""Class names from the labels in tables and arrays: text, or whole numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fastcifar.converters.names import check_class_names
from fastcifar.converters.sources import Labels
from fastcifar.data.tables import MAX_CLASSES
from fastcifar.errors import DataError, join_names

log = logging.getLogger(__name__)
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,17}))(?:\.0{1,30})?")
_NUMBER = re.compile(r"[-+]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})(e[-+]?\d{1,5})?|[-+]?inf(inity)?", re.IGNORECASE)
_MISSING = ("", "nan", "<na>", "null")


def is_missing(text: str) -> bool:
    """True for what programs write where there is no value."""
    return text.strip().lower() in _MISSING


def normalise_labels(path: Path, texts: Sequence[str], where: Callable[[int], str]) -> tuple[str, ...]:
    """The class name that each of the labels `texts` means: '3' for '3.0' if all are whole numbers, else the text.

    where: the place of a text in the file, for messages, e.g. 'line 4'. Raises DataError for fractions.
    """
    stripped = [text.strip() for text in texts]
    _require_few(path, len(stripped))
    whole = [_WHOLE.fullmatch(text) for text in stripped]
    if all(whole):
        return tuple(str(int(match[1])) for match in whole if match)
    if all(map(_NUMBER.fullmatch, stripped)) and not all(text.isdigit() for text in stripped):
        index = next(index for index, match in enumerate(whole) if match is None)
        raise DataError(
            f"{path}: {where(index)}: label {stripped[index][:40]}; expected a class: a name, or a whole number"
        )
    return tuple(stripped)  # e.g. '01' and '02'


def number_labels(
    path: Path, splits: Mapping[str, tuple[Labels, Sequence[str]]], class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """The class names, and the label of each image by split.

    splits: for each split the indices (N,) int64 of its labels in a list, and the list; 'train' is one of the splits.
    class_names: by default the labels in 'train', sorted as numbers if all are numbers, else as text.
    """
    present = {split: [texts[index] for index in np.unique(indices)] for split, (indices, texts) in splits.items()}
    names = tuple(class_names) if class_names is not None else sort_names(set(present["train"]))
    check_class_names(path, ((name, name) for name in names), "label")
    warn_of_unlabelled(path, names)
    _require_few(path, len(names))
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) < len(names):
        raise DataError(f"{path}: the class name {max(names, key=names.count)!r} occurs twice; rename one")
    labels = {}
    for split, (indices, texts) in splits.items():
        unknown = [text for text in present[split] if text not in label_of]
        if unknown:
            raise DataError(
                f"{path}: {split} has the label {unknown[0]!a:.60}, which train does not have; expected one of: "
                f"{join_names(names)}"
            )
        labels[split] = np.array([label_of.get(text, -1) for text in texts], np.int64)[indices]
    return names, labels


def warn_of_unlabelled(where: object, names: Iterable[str]) -> None:
    """Warn of a class -1 next to others from 0 on: it usually marks images without a label."""
    if {"-1", "0"} <= set(names):
        log.warning(
            "%s: the label -1 is a class of its own; remove its images if it marks those without a label", where
        )


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """As numbers if all are whole numbers, else as text."""
    names = list(names)
    is_numeric = all(_WHOLE.fullmatch(name) and "." not in name for name in names)
    return tuple(sorted(names, key=int) if is_numeric else sorted(names))


def _require_few(path: Path, num_classes: int) -> None:
    if num_classes > MAX_CLASSES:
        raise DataError(f"{path}: has {num_classes:,} different labels; expected at most {MAX_CLASSES:,} classes")
