"""A table (.csv, .tsv, .parquet) with a column of paths of images, one of labels, and perhaps one of splits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastcifar.converters.archives import read_archive
from fastcifar.converters.file_index import FileIndex
from fastcifar.converters.images import file_split, list_folder
from fastcifar.converters.labels import is_missing, normalise_labels, number_labels
from fastcifar.converters.layout import Listing
from fastcifar.converters.names import SPLIT_KIND, SPLIT_NAMES, SPLIT_OF, assign_splits
from fastcifar.converters.sources import Source, SourceOptions
from fastcifar.converters.table_columns import Columns, find_columns
from fastcifar.converters.table_files import MAX_VALUE, Table, read_table
from fastcifar.data.image_files import EXTENSIONS
from fastcifar.errors import DataError, escape, join_names
from fastcifar.io.paths import command_line, user_path, why_missing

log = logging.getLogger(__name__)
MAX_SUBFOLDERS = 10


@dataclass
class _Rows:
    """The columns of a table that are needed."""

    values: list[str] = field(default_factory=list)
    """Paths, or parts of them."""
    labels: list[int] = field(default_factory=list)
    """Index in `texts`."""
    splits: list[int] = field(default_factory=list)
    """Index in `split_texts`."""
    numbers: list[int] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)
    split_texts: dict[str, int] = field(default_factory=dict)


def open_table(path: Path, resources: ExitStack, options: SourceOptions) -> Source:
    """The images that the table at `path` names; the source closes `resources`."""
    table = read_table(path)
    root = path.parent if options.images_root is None else user_path(options.images_root, "images_root")
    listing = _list_root(root, resources)
    index = FileIndex(root, listing.files)
    columns = find_columns(table, index, options)
    rows = _read_rows(table, columns)

    def where(row: int) -> str:
        return f"{table.unit} {rows.numbers[row]}"

    files = _find_files(path, root, listing, index, rows, where)
    _refuse_duplicates(path, files, rows, where)
    if unused := sum(name.lower().endswith(EXTENSIONS) for name in listing.files) - len(files):
        log.info("%s: %s other images in %s are not in the table", path, f"{unused:,}", root)
    first_rows: dict[int, int] = {}
    for row, label in enumerate(rows.labels):
        first_rows.setdefault(label, row)
    names = normalise_labels(path, list(rows.texts), lambda label: where(first_rows[label]))
    labels = np.array(rows.labels, np.int64)
    members = _split_rows(path, columns, rows, where)
    class_names, numbered = number_labels(path, {split: (labels[rows_], names) for split, rows_ in members.items()})
    splits = {
        split: file_split(
            listing,
            [(files[row], label) for row, label in zip(rows_.tolist(), numbered[split].tolist(), strict=True)],
            options.preprocessing,
        )
        for split, rows_ in members.items()
    }
    return Source(
        description=f"images of {path.name}",
        path=str(path),
        class_names=class_names,
        kind="a table",
        splits=splits,
        preprocessing=options.preprocessing,
        num_ignored=len(listing.ignored),
        resources=resources.pop_all(),
    )


def _list_root(root: Path, resources: ExitStack) -> Listing:
    if root.is_dir():
        return list_folder(root)
    if not root.is_file():
        raise DataError(
            f"{root}: {why_missing(root, 'no such file or folder')}; expected the folder or archive of the images, "
            "as --images-root"
        )
    return read_archive(root, resources)


def _read_rows(table: Table, columns: Columns) -> _Rows:
    path, rows = table.path, _Rows()
    needed = [columns.image, columns.label, *([] if columns.split is None else [columns.split])]
    shown = [escape(columns.names[column]) for column in needed]
    missing: tuple[int, str] | None = None
    num_missing = 0
    skip = table.names is None and columns.has_header
    for number, values in table.read(needed):
        if skip:
            skip = False
            continue
        for name, value in zip(shown, values, strict=True):
            if len(value) > MAX_VALUE:
                raise DataError(
                    f"{path}: {table.unit} {number}: column {name!r} has over {MAX_VALUE:,} characters; expected a "
                    "path or label"
                )
        empty = next((name for name, value in zip(shown, values, strict=True) if is_missing(value)), None)
        if empty is not None:
            missing, num_missing = missing or (number, empty), num_missing + 1
            continue
        rows.values.append(values[0])
        rows.labels.append(rows.texts.setdefault(values[1].strip(), len(rows.texts)))
        rows.numbers.append(number)
        if columns.split is not None:
            rows.splits.append(rows.split_texts.setdefault(values[2].strip(), len(rows.split_texts)))
    if missing is not None:
        raise DataError(
            f"{path}: {table.unit} {missing[0]}: no value in column {missing[1]!r} (in {num_missing:,} of "
            f"{num_missing + len(rows.values):,} rows); fill it in, or remove the rows"
        )
    return rows


def _find_files(
    path: Path, root: Path, listing: Listing, index: FileIndex, rows: _Rows, where: Callable[[int], str]
) -> list[str]:
    """The file of each row: at the path that it gives, or, if no row is, anywhere in `root`."""
    for anywhere in (False, True):
        files, missing, ambiguous = [], [], None
        for row, value in enumerate(rows.values):
            try:
                found = index.find(value, anywhere=anywhere)
            except ValueError as error:
                raise DataError(f"{path}: {where(row)}: {value!a:.200} {error}") from None
            if len(found) > 1:
                ambiguous = ambiguous or (row, found)
            if not found:
                missing.append(row)
            files.append(found[0] if found else "")
        if len(missing) < len(files):
            break
    if missing:
        raise DataError(
            f"{path}: {where(missing[0])}: {rows.values[missing[0]]!a:.200} is not in {root} ({len(missing):,} of "
            f"{len(files):,} are missing); expected paths in that folder: give another with --images-root"
        )
    if ambiguous is None:
        return files
    return _find_in_subfolder(path, root, listing, rows, where, ambiguous)


def _find_in_subfolder(
    path: Path,
    root: Path,
    listing: Listing,
    rows: _Rows,
    where: Callable[[int], str],
    ambiguous: tuple[int, Sequence[str]],
) -> list[str]:
    """The file of each row in the only folder of `root` that has all of them, e.g. train/ next to test/."""
    row, candidates = ambiguous
    fitting: dict[str, list[str]] = {}
    folders = sorted({file.partition("/")[0] for file in candidates if "/" in file})
    for folder in folders[: MAX_SUBFOLDERS + 1] if len(folders) <= MAX_SUBFOLDERS else ():
        prefix = f"{folder}/"
        index = FileIndex(root / folder, [file[len(prefix) :] for file in listing.files if file.startswith(prefix)])
        files = []
        for value in rows.values:
            try:
                found = index.find(value)
            except ValueError:  # an absolute path in another folder
                break
            if len(found) != 1:
                break
            files.append(prefix + found[0])
        else:
            fitting[folder] = files
    chosen = list(fitting)
    if len(chosen) > 1:  # trainLabels.csv belongs to train/
        chosen = [folder for folder in fitting if path.stem.lower().startswith(folder.lower())] or chosen
    if len(chosen) == 1:
        log.info("%s: the images are those in %s", path, root / chosen[0])
        return fitting[chosen[0]]
    shown = join_names(map(escape, candidates), 3)
    remedy = "rename them"
    if folders:
        unpack = "" if root.is_dir() else "unpack the archive and "
        likely = min(chosen or folders, key=lambda folder: SPLIT_OF.get(folder.lower()) != "train")
        remedy = f"{unpack}choose a folder, e.g. {command_line('--images-root', root / likely)}"
    raise DataError(f"{path}: {where(row)}: {rows.values[row]!a:.200} may be several files: {shown}; {remedy}")


def _refuse_duplicates(path: Path, files: Sequence[str], rows: _Rows, where: Callable[[int], str]) -> None:
    if len(set(files)) == len(files):
        return
    first: dict[str, int] = {}
    texts = list(rows.texts)
    for row, file in enumerate(files):
        other = first.setdefault(file, row)
        if other != row:
            labels = f"{texts[rows.labels[other]]!a:.60} and {texts[rows.labels[row]]!a:.60}"
            raise DataError(
                f"{path}: {where(other)} and {where(row)} are both {escape(file)}, labels {labels} (repeated rows: "
                f"{len(files) - len(set(files)):,}); expected one row for each image"
            )


def _split_rows(
    path: Path, columns: Columns, rows: _Rows, where: Callable[[int], str]
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The rows of each split; all are 'train' if there is no column for it."""
    if columns.split is None:
        return {"train": np.arange(len(rows.values))}
    kinds = {text: SPLIT_KIND.get(text.lower(), "") for text in rows.split_texts}
    splits = np.array(rows.splits, np.int64)
    name = escape(columns.names[columns.split])
    for code, text in enumerate(kinds):
        if not kinds[text]:
            expected = ", ".join(kind[0] for all_kinds in SPLIT_NAMES.values() for kind in all_kinds)
            row = int(np.flatnonzero(splits == code)[0])
            raise DataError(f"{path}: {where(row)}: column {name!r} is {text!a:.60}; expected one of: {expected}")
    assigned = assign_splits(path, set(kinds.values()), "the split '{}'")
    if "train" not in assigned.values():
        raise DataError(f"{path}: no row has 'train' in column {name!r}; expected training images")
    members = {}
    for kind, split in assigned.items():
        codes = [code for code, text in enumerate(kinds) if kinds[text] == kind]
        members[split] = np.flatnonzero(np.isin(splits, codes))
    return members
