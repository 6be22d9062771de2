"""The images that a run was trained and tested on: what they are, and whether its test is a fair one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastcifar.audit.record import read_record
from fastcifar.data.manifest import SYNTHETIC, read_manifest
from fastcifar.errors import DataError
from fastcifar.io.paths import command_line
from fastcifar.report.run_files import CONFIG, ENVIRONMENT, METRICS, WEIGHTS, RunFiles, clean
from fastcifar.training.weights import read_info


class Dataset(NamedTuple):
    """A dataset by its name."""

    name: str
    """What it was converted from, e.g. 'CIFAR-10, official archive'."""
    is_synthetic: bool
    """Whether `convert --source synthetic` drew the images."""


def dataset(files: RunFiles) -> Dataset | None:
    """That of metrics.json; of a run which does not name it, that of the manifest next to its images, if those are
    still the ones. None if it is unknown."""
    metrics = files.mapping(METRICS)
    source = (metrics or {}).get("data_source")
    if metrics is None:  # not finished
        info = files.load(WEIGHTS, read_info)
        source = _source_of(files, "train.beton", info.sha256) if info else ""
    elif not isinstance(source, str) or not source:
        source = _source_of(files, "test.beton", metrics.get("test_data_sha256"))
    return Dataset(clean(source), source.startswith(SYNTHETIC)) if source else None


def _source_of(files: RunFiles, beton: str, sha256: object) -> str:
    folder = _data_dir(files)
    try:
        manifest = read_manifest(folder / beton) if folder is not None and folder.is_dir() else None
    except DataError:
        return ""
    return manifest.source if manifest is not None and manifest.sha256 == sha256 else ""


def _data_dir(files: RunFiles) -> Path | None:
    """The data folder of the run, as its settings name it; it may no longer exist."""
    folder = (files.attempt(lambda files: files.mapping(CONFIG)) or {}).get("data_dir")
    return Path(folder) if isinstance(folder, str) else None


def shown_data_dir(files: RunFiles, folder: Path) -> Path:
    """The data folder as the command of the run named it, while the run is near it: a reader of the report elsewhere
    has no use for the whole path."""
    words = (files.attempt(lambda files: files.mapping(ENVIRONMENT)) or {}).get("command")
    for word in (*(words if isinstance(words, list) else ()), "data"):
        typed = Path(str(word).removeprefix("--data-dir="))
        base = Path(*folder.parts[: -len(typed.parts)])
        if base / typed == folder and files.root.absolute().is_relative_to(base):
            return typed
    return folder


def leaks(files: RunFiles, metrics: Mapping[str, Any]) -> str | None:
    """How many test images are also training images, as an audit of the data found; or why that is not known. None if
    the run does not say which data it used."""
    sha256 = {name: metrics.get(key) for name, key in (("train", "data_sha256"), ("test", "test_data_sha256"))}
    folder = _data_dir(files)
    if not all(sha256.values()) or folder is None:
        return None
    if not folder.is_dir():
        return "unknown: the data are not where the run used them"
    record = read_record(folder)
    part = record.parts.get("duplicates") if record is not None and record.data_sha256 == sha256 else None
    if part is None:
        command = command_line("fastcifar", "audit", "--data-dir", shown_data_dir(files, folder))
        return f"the data were not audited for test images that are also training images: {clean(command, 300)}"
    if not sum(part.leaked.values()):
        return "no test image is also a training image"
    exact, near, possible = (part.leaked.get(name, 0) for name in ("exact", "near", "possible"))
    more = f"; {possible:,} more may be" if possible else ""
    return f"{exact + near:,} test images are also training images, {exact:,} of them exactly{more}"
