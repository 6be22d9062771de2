"""Which arrays are the images and labels of which split, by name and shape: x_train, train_labels, X, arr_0, …"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastcifar.converters.array_files import ArrayHeader
from fastcifar.converters.names import SPLIT_KIND, SPLIT_OF, assign_splits
from fastcifar.errors import DataError, escape, join_names

log = logging.getLogger(__name__)
IMAGES = {"x", "image", "images", "img", "imgs", "data", "pixels", "features"}
LABELS = {"y", "label", "labels", "target", "targets"}
CLASS_NAMES = {"class_names", "label_names", "target_names", "classes", "categories", "class_name"}
_JOINED = re.compile(rf"([xy])({'|'.join(SPLIT_OF)})|({'|'.join(SPLIT_OF)})([xy])")
EXPECTED = "expected e.g. x_train and y_train, x_test and y_test"


class Words(NamedTuple):
    """What a name says."""

    split: str | None
    """'train', 'test' or 'val'."""
    role: str | None
    """'images', 'labels' or 'class names'."""
    others: tuple[str, ...]


class Pair(NamedTuple):
    """The arrays of a split."""

    images: ArrayHeader
    labels: ArrayHeader


def read_words(name: str) -> Words:
    """What the name of an array, or of a file without its suffix, says."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    tokens: list[str] = []
    for token in re.findall(r"[^\W_]+", text):
        joined = _JOINED.fullmatch(token)
        tokens += [part for part in joined.groups() if part] if joined else [token]
    if "_".join(tokens) in CLASS_NAMES:
        return Words(None, "class names", ())
    if len(tokens) == 2 and tokens[0] == "arr" and tokens[1].isdigit():
        return Words(None, None, ())
    split = next((SPLIT_KIND[token] for token in tokens if token in SPLIT_KIND), None)
    role = "labels" if LABELS & set(tokens) else "images" if IMAGES & set(tokens) else None
    known = SPLIT_KIND.keys() | IMAGES | LABELS
    return Words(split, role, tuple(token for token in tokens if token not in known))


def choose_arrays(
    path: Path, arrays: Sequence[tuple[Words, ArrayHeader]]
) -> tuple[dict[str, Pair], ArrayHeader | None]:
    """The images and labels of 'train' and, if there are any, 'test'; and the class names.

    Raises DataError if it is not clear which they are. path: of the source, for messages.
    """
    shown = join_names(f"{header.name} {header.problem or header.shape}" for _, header in arrays) or "nothing"
    names = [header for words, header in arrays if words.role == "class names" and header.dtype.kind in "US"]
    rest = [(words, header) for words, header in arrays if words.role != "class names"]
    groups = {words.others: _pairs(rest, words.others) for words, _ in rest}
    groups = {others: pairs for others, pairs in groups.items() if pairs}
    plain = [
        others for others in groups if all(set(others) <= set(other) for other in groups)
    ]  # x_train, not old_x_train
    complete = [groups[plain[0]]] if len(plain) == 1 else list(groups.values())
    if not complete:
        complete = [pairs] if (pairs := _pairs(rest, None)) else []
    if len(complete) != 1:
        problem = "it is not clear which arrays to use" if complete else "no pair of images and labels"
        raise DataError(f"{path}: {problem}; {EXPECTED}; found: {shown}")
    found: dict[str, Pair] = {}
    for kind, (images, labels) in complete[0].items():
        if len(images) != 1 or len(labels) != 1:
            several = ", ".join(header.name for header in (images if len(images) > 1 else labels))
            problem = f"several are possible: {several}" if several else "no labels" if images else "no images"
            raise DataError(f"{path}: {kind or 'arrays'}: {problem}; {EXPECTED}; found: {shown}")
        found[kind or "train"] = Pair(images[0], labels[0])
    if None in complete[0] and "train" in complete[0]:
        raise DataError(f"{path}: has arrays for 'train', and others without split; {EXPECTED}; found: {shown}")
    chosen = {split: found[kind] for kind, split in assign_splits(path, found, "'{}'").items()}
    if "train" not in chosen:
        raise DataError(f"{path}: no training images; {EXPECTED}; found: {shown}")
    used = "; ".join(f"{split}: {images.name}, {labels.name}" for split, (images, labels) in chosen.items())
    log.info("%s: images and labels: %s", escape(str(path)), used)
    return chosen, names[0] if len(names) == 1 else None


def _pairs(
    arrays: Iterable[tuple[Words, ArrayHeader]], others: tuple[str, ...] | None
) -> dict[str | None, tuple[list[ArrayHeader], list[ArrayHeader]]]:
    """Candidates for images and labels of each split, among the arrays of these other words (None: of any); none if
    no split has both."""
    pairs: dict[str | None, tuple[list[ArrayHeader], list[ArrayHeader]]] = {}
    members = [(words, header) for words, header in arrays if others is None or words.others == others]
    for split in dict.fromkeys(words.split for words, _ in members):
        own = [(words.role, header) for words, header in members if words.split == split]
        images = [header for role, header in own if role == "images"]
        labels = [header for role, header in own if role == "labels"]
        unnamed = [header for role, header in own if role is None and not header.problem]
        images = images or [header for header in unnamed if len(header.shape) > 2]
        labels = labels or [header for header in unnamed if 0 < len(header.shape) <= 2]
        if len(images) > 1:  # scikit-learn's digits have 'images' and, flat, 'data'
            images = [header for header in images if len(header.shape) != 2] or images
        if images or labels:
            pairs[split] = images, labels
    return pairs if any(images and labels for images, labels in pairs.values()) else {}
