"""Names of splits and classes, wherever they come from: folders, tables, arrays."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fastcifar.data.manifest import MAX_NAME
from fastcifar.errors import DataError

log = logging.getLogger(__name__)
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = {"train": (TRAIN_NAMES,), "test": (TEST_NAMES, VALIDATION_NAMES)}
"""The folders of each split, in any case; those that come first are preferred."""
SPLIT_KIND = {name: kind[0] for kind in (TRAIN_NAMES, TEST_NAMES, VALIDATION_NAMES) for name in kind}
"""'train', 'test' or 'val' for each name."""
SPLIT_OF = {name: split for split, kinds in SPLIT_NAMES.items() for kind in kinds for name in kind}
_INVISIBLE = {"\u00ad", "\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Invisible characters that Unicode counts neither as spaces nor as format characters."""


def assign_splits(path: Path, names: Iterable[str], shown: str) -> dict[str, str]:
    """The split of each of `names`, e.g. {'Train': 'train', 'val': 'test'}. Without a test set, the validation set is
    used to test; else it is not in the result.

    names: at most one of each kind, e.g. not both 'train' and 'training'. shown: how a warning shows one, e.g. '{}/'.
    """
    chosen: dict[str, str] = {}
    for split, all_kinds in SPLIT_NAMES.items():
        for kinds in all_kinds:
            for name in sorted(name for name in names if name.lower() in kinds):
                if split in chosen.values():
                    log.warning("%s: %s is not used: there is a test set of its own", path, shown.format(name))
                    continue
                chosen[name] = split
                if kinds is VALIDATION_NAMES:
                    log.warning("%s: no test images; the images of %s are used to test", path, shown.format(name))
    return chosen


def check_class_names(path: Path, names: Iterable[tuple[str, str]], what: str = "class folder") -> None:
    """Raise DataError unless each class name is printable, and distinguishable from the others.

    names: pairs of what is shown, e.g. train/cat, and a class name. what: of which it is the name, for messages.
    """
    known: dict[str, tuple[str, str]] = {}
    for shown, name in names:
        key = _comparison_key(name)
        if not name.isprintable() or not key:
            problem = "has characters that are not printable"
            if any("\ud800" <= c <= "\udfff" for c in name):
                problem = f"is not UTF-8 and {problem}"
            raise DataError(f"{path}: the {what} {name!a} {problem}; rename it")
        if len(name) > MAX_NAME:
            raise DataError(
                f"{path}: the {what} {name[:20]}… has {len(name):,} characters; expected at most {MAX_NAME}"
            )
        other = known.setdefault(key, (shown, name))
        if other[1] != name:
            raise DataError(
                f"{path}: the {what}s {other[0]!a} and {shown!a} differ only in case, spaces or Unicode form; rename "
                "or merge them"
            )


def _comparison_key(name: str) -> str:
    """Equal for names that look alike, or that some file systems treat as one."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    visible = (
        c for c in text if c not in _INVISIBLE and not "\ufe00" <= c <= "\ufe0f" and unicodedata.category(c) != "Cf"
    )
    return " ".join("".join(visible).split())
