"""Which columns of a table are the paths, the labels and the split: named by options, or detected."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastcifar.converters.file_index import FileIndex
from fastcifar.converters.names import SPLIT_OF
from fastcifar.converters.sources import SourceOptions
from fastcifar.converters.table_files import Table
from fastcifar.data.image_files import EXTENSIONS
from fastcifar.errors import DataError, UsageError, escape, join_names
from fastcifar.io.checks import format_choices

log = logging.getLogger(__name__)
IMAGE_NAMES = {"file", "filename", "file_name", "filepath", "file_path", "path", "image", "images", "img", "name"}
IMAGE_NAMES |= {"image_path", "image_name", "image_file", "image_filename", "img_path", "img_name", "img_file"}
IMAGE_NAMES |= {"image_id", "img_id", "id", "id_code", "uuid", "relative_path"}
LABEL_NAMES = {"label", "labels", "label_name", "class", "classes", "class_name", "class_label", "classname", "y"}
LABEL_NAMES |= {"target", "targets", "category", "category_name", "breed", "species", "diagnosis", "dx"}
SPLIT_COLUMNS = {"split", "splits", "set", "subset", "partition", "fold", "phase", "usage", "dataset", "data_set"}
ROW_NUMBERS = {"", "index", "unnamed:_0", "row"}
"""Columns that programs add."""


class Columns(NamedTuple):
    """Indices of columns."""

    image: int
    label: int
    split: int | None
    names: tuple[str, ...]
    has_header: bool


def find_columns(table: Table, files: FileIndex, options: SourceOptions) -> Columns:
    """The columns with paths of `files`, with labels, and with the split if there is one.

    Raises UsageError if an option names another column, DataError if it is not clear which they are.
    """
    path, head = table.path, table.head
    has_header = table.names is None and _is_header(head[0], files)
    given = table.names or (head[0] if has_header else [""] * len(head[0]))
    names = tuple(name.strip() or str(number) for number, name in enumerate(given, 1))
    if has_header:
        head = head[1:]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: has two columns {escape(max(names, key=names.count))!r}; rename one")
    if not head:
        raise DataError(f"{path}: has no rows; expected a row for each image")
    shown = join_names(map(escape, names), 20)
    keys = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in given]
    named = {
        kind: _named(path, names, kind, getattr(options, kind))
        for kind in ("image_column", "label_column", "split_column")
    }
    free = [column for column in range(len(names)) if column not in named.values()]
    split = named["split_column"]
    if split is None:
        known = [c for c in free if keys[c] in SPLIT_COLUMNS and any(r[c].strip().lower() in SPLIT_OF for r in head)]
        split = _choose(path, known, known, "split", shown) if known else None
        free = [column for column in free if column != split]
    image = named["image_column"]
    if image is None:
        image = _find_image_column(path, free, keys, head, files, shown)
        free = [column for column in free if column != image]
    label = named["label_column"]
    if label is None:
        usual = [column for column in free if keys[column] in LABEL_NAMES]
        others = [column for column in free if not has_header or keys[column] not in ROW_NUMBERS]
        label = _choose(path, usual or others, usual, "label", shown)
    columns = Columns(image, label, split, names, has_header or table.names is not None)
    if len({image, label, split}) < 3:
        raise UsageError(f"image_column, label_column and split_column name one column twice; {path} has: {shown}")
    if None in named.values():
        text = f"paths in column {escape(names[image])!r}, labels in {escape(names[label])!r}"
        text += "" if split is None else f", split in {escape(names[split])!r}"
        log.info("%s: detected: %s%s", path, text, "" if columns.has_header else " (no header)")
    return columns


def _is_header(first: Sequence[str], files: FileIndex) -> bool:
    """False if the first row holds a file, as in a table without header."""
    return not any(value.strip().lower().endswith(EXTENSIONS) or _finds(files, value) for value in first)


def _named(path: Path, names: Sequence[str], option: str, value: str | None) -> int | None:
    if value is None:
        return None
    if value.strip() not in names:
        raise UsageError(f"{option} is {value!r}; expected a column of {path}: {format_choices(names, value)}")
    return names.index(value.strip())


def _choose(path: Path, candidates: Sequence[int], usual: Iterable[int], kind: str, shown: str) -> int:
    if len(candidates) == 1:
        return candidates[0]
    several = "more than one column may be" if list(usual) else "it is not clear which column is"
    raise DataError(f"{path}: {several} the {kind}; name it with --{kind}-column; columns: {shown}")


def _find_image_column(
    path: Path, free: Sequence[int], keys: Sequence[str], head: Sequence[Sequence[str]], files: FileIndex, shown: str
) -> int:
    rows = head[:100]
    usual = [column for column in free if keys[column] in IMAGE_NAMES]
    found = [column for column in free if 2 * sum(_finds(files, row[column]) for row in rows) >= len(rows)]
    if not usual and any(re.fullmatch(r"pixels?_?\d*", key) for key in keys):
        raise DataError(
            f"{path}: its columns hold pixels, not paths; save them as arrays with numpy.savez: images (N, H, W) and "
            "labels (N,)"
        )
    if not found:
        found = [c for c in free if all(row[c].strip().lower().endswith(EXTENSIONS) for row in rows)]  # all missing
    best = [column for column in found if column in usual] or found or usual
    with_suffix = [c for c in best if all(row[c].strip().lower().endswith(EXTENSIONS) for row in rows)]
    if len(best) > 1 and len(with_suffix) == 1:
        best = with_suffix  # 'id' and 'filename' of the same files
    return _choose(path, best, best, "image", shown)


def _finds(files: FileIndex, value: str) -> bool:
    if not value.strip():
        return False
    try:
        return bool(files.find(value))
    except ValueError:  # an absolute path elsewhere
        return False
