"""The Parquet or Arrow files of each split in a folder: as `datasets` saves it, or as a repository of the hub."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from fastcifar.converters.arrow_files import SUFFIXES
from fastcifar.converters.columns import choose_splits
from fastcifar.converters.names import SPLIT_OF
from fastcifar.errors import DataError, join_names, one_line
from fastcifar.io.reading import read_bytes

MAX_FILES = 100_000
MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 3
_SHARD = re.compile(r"(?P<name>.*?)-?(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?")


def find_files(path: Path) -> dict[str, list[Path]]:
    """The files of 'train' and, if there are any, 'test', in their order.

    Without test files, those of validation are used to test. Raises DataError if a file is missing, or if there are
    several datasets.
    """
    tables, saved = _list(path)
    by_name: dict[str, list[Path]] = {}
    if saved:
        by_name = {folder.name if folder != path else "train": _saved_files(folder) for folder in saved}
        if len({folder.parent for folder in saved}) > 1 or len(by_name) < len(saved):
            raise _several(path, [str(folder.relative_to(path)) for folder in saved])
        _require_splits(saved[0].parent if saved[0] != path else path, by_name)
    else:
        by_name = _by_split(path, tables)
    if len(by_name) == 1 and not any(name.lower() in SPLIT_OF for name in by_name):
        return {"train": next(iter(by_name.values()))}
    return {split: by_name[name] for name, split in choose_splits(path, by_name).items()}


def _list(path: Path) -> tuple[list[Path], list[Path]]:
    """The Parquet and Arrow files, and the folders that `save_to_disk` wrote, in order."""
    tables: list[Path] = []
    saved: list[Path] = []

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for base, folders, files in os.walk(path, onerror=refuse):
        folder = Path(base)
        depth = len(folder.relative_to(path).parts)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__"))) if depth < MAX_DEPTH else []
        if "state.json" in files:
            saved.append(folder)
            folders.clear()
        names = (name for name in sorted(files) if name.lower().endswith(SUFFIXES))
        tables += [folder / name for name in names if not name.startswith((".", "cache-"))]
        if len(tables) > MAX_FILES:
            raise DataError(f"{path}: has over {MAX_FILES:,} Parquet and Arrow files")
    return tables, saved


def _saved_files(folder: Path) -> list[Path]:
    """The files that the state of a saved dataset names."""
    state = _read_json(folder / "state.json")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in state.get("_data_files") or ()]
    if not names or state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{folder}: not a dataset that a current version of `datasets` has saved; save it again")
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or name in (".", "..") or "\\" in name:
            raise DataError(f"{folder / 'state.json'}: names the file {name!a}; expected one in its folder")
        if not (folder / name).is_file():
            raise DataError(f"{folder}: {name} is missing; expected {len(names)} files, as state.json says")
    return [folder / name for name in names if isinstance(name, str)]


def _require_splits(folder: Path, present: dict[str, list[Path]]) -> None:
    file = folder / "dataset_dict.json"
    if file.is_file():
        splits = _read_json(file).get("splits")
        for name in splits if isinstance(splits, list) else ():
            if name not in present:
                raise DataError(f"{folder}: the split {name!a} is missing, which dataset_dict.json names")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(file, MAX_JSON_BYTES))
        if not isinstance(value, dict):
            raise ValueError("not a mapping")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({one_line(error, 100)}); save the dataset again") from error


def _by_split(path: Path, tables: list[Path]) -> dict[str, list[Path]]:
    """The files by the name of their split; 'train' for all if none is named after a split."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    roots: dict[str, Path] = {}
    for file in tables:
        parents = list(file.relative_to(path).parts[:-1])
        names = _split_names(file.stem)
        if not names and parents and parents[-1].lower() in SPLIT_OF:
            names = [parents.pop()]
        elif parents and parents[-1].lower() in SPLIT_OF:
            parents.pop()
        if len(names) > 1:
            raise DataError(f"{file}: its name has {join_names(names)}; expected one of them")
        by_name[names[0] if names else _without_shard(file.stem)].append(file)
        roots.setdefault("/".join(parents), file)
    if len(roots) > 1:
        raise _several(path, sorted(root or "." for root in roots))
    if len({file.suffix.lower() for file in tables}) > 1:
        raise DataError(f"{path}: has Parquet and Arrow files; expected one kind: remove the other")
    if not any(name.lower() in SPLIT_OF for name in by_name):
        by_name = {"train": tables}
    for name, files in by_name.items():
        if name.lower() in SPLIT_OF:
            _require_all_shards(path, name, files)
    return dict(by_name)


def _split_names(stem: str) -> list[str]:
    """The split names in a file name, e.g. train in cifar10-train-00000-of-00001."""
    words = re.split(r"[^A-Za-z]+", stem)
    return list({SPLIT_OF[word.lower()] + word.lower(): word for word in words if word.lower() in SPLIT_OF}.values())


def _without_shard(stem: str) -> str:
    match = _SHARD.fullmatch(stem)
    return match["name"] if match else stem


def _require_all_shards(path: Path, name: str, files: list[Path]) -> None:
    """Raise DataError if there are several sets of shards, or if one is incomplete."""
    shards = [match for file in files if (match := _SHARD.fullmatch(file.stem))]
    totals = {int(shard["total"]) for shard in shards}
    numbers = sorted(int(shard["number"]) for shard in shards)
    if not shards:
        return
    if len(totals) > 1 or len(shards) < len(files) or len(set(numbers)) < len(numbers):
        raise DataError(
            f"{path}: several sets of files for {name}: {join_names(file.name for file in files)}; keep one"
        )
    missing = [number for number in range(min(totals)) if number not in set(numbers)][:1]
    if missing or len(numbers) != min(totals):
        number = missing[0] if missing else numbers[-1]
        raise DataError(f"{path}: file {number:05d}-of-{min(totals):05d} of {name} is missing; found {len(numbers)}")


def _several(path: Path, names: list[str]) -> DataError:
    return DataError(f"{path}: holds several datasets: {join_names(names)}; give one of these folders as the source")
