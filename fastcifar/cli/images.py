"""The user's own images on the command line, for `predict` and `explain`: which they are, and what is shown of them."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli.param_types import UserPath
from fastcifar.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastcifar.inference.predict_files import ImagePredictions

STDIN = "-"
PATH_OR_STDIN = UserPath(words=(STDIN,))
MAX_LIST_BYTES = 64 * 2**20
RUN_FILE_SUFFIXES = (".pt", ".safetensors", ".html", ".yaml", ".json", ".csv", ".npz", ".txt")


def split_words(words: Iterable[str], runs_dir: Path, context: click.Context) -> tuple[list[str], list[Path | str]]:
    """The runs and the images among the words of a command that takes both.

    A word is a run if one in `runs_dir` has this name; else an image if it is a file of another kind than those of
    runs; else a run if it is the path of one; else an image if it exists, is a pattern or has the name of an image.
    """
    from fastcifar.data.image_files import EXTENSIONS
    from fastcifar.training.run_folder import RunFolder, is_run

    runs: list[str] = []
    images: list[Path | str] = []
    for word in words:
        path = PATH_OR_STDIN.convert(word, None, context) if word else word
        if isinstance(path, str):  # empty, or stdin
            (images if word else runs).append(word)
        elif RunFolder(runs_dir / path).is_trained:
            runs.append(word)
        elif os.path.isfile(path) and path.suffix not in RUN_FILE_SUFFIXES:
            images.append(path)
        elif is_run(path, runs_dir) or os.path.isfile(path):
            runs.append(word)
        elif os.path.lexists(path) or glob.has_magic(word) or path.name.lower().endswith(EXTENSIONS):
            images.append(path)
        else:
            runs.append(word)
    return runs, images


def require_no_run(paths: Iterable[Path | str], runs_dir: Path) -> None:
    """Raise UsageError for a path that is a run, and cannot be images."""
    from fastcifar.cli.output import command_line
    from fastcifar.training.run_folder import RunFolder

    for path in paths:
        if isinstance(path, Path):
            is_name = not os.path.lexists(path) and RunFolder(runs_dir / path).is_trained
            if is_name or RunFolder(path).is_trained:
                raise UsageError(f"{path} is a run; expected images; name the run with: {command_line('--run', path)}")


def with_stdin(paths: Iterable[Path | str]) -> list[Path]:
    """The paths, and in the place of '-' those on stdin. Raises DataError if there is none."""
    found: list[Path] = []
    for path in paths:
        found += [path] if isinstance(path, Path) else _read_list()
    return found


def _read_list() -> list[Path]:
    """Paths from stdin: one on each line, or each before a NUL, as `find -print0` writes them."""
    text = sys.stdin.buffer.read(MAX_LIST_BYTES + 1) if sys.stdin else b""
    if len(text) > MAX_LIST_BYTES:
        raise DataError(f"stdin: over {MAX_LIST_BYTES >> 20} MiB; expected the paths of images, one on each line")
    lines = text.split(b"\0") if b"\0" in text else text.splitlines()
    paths = [Path(os.fsdecode(line)) for line in lines if line.strip()]
    if not paths:
        raise DataError("stdin: no paths; expected those of images, one on each line")
    return paths


def show_images(found: ImagePredictions, num_classes: int = 3) -> None:
    """Print a table of the most probable classes of each image."""
    from fastcifar.cli.output import table

    rows = [["file", "true", "predicted"]]
    for row in found.to_rows(num_classes):
        where = f"{row['file']} {row['origin']}" if row.get("origin") else row["file"]
        rows.append([where, row.get("true", ""), *(f"{name} {value:.1%}" for name, value in row["classes"])])
    rows[0] += [f"class {i}" for i in range(2, len(rows[-1]) - 1)]
    if not found.num_labelled:
        rows = [[where, *rest] for where, _, *rest in rows]
    click.echo(table(rows))


def summary(found: ImagePredictions) -> list[tuple[str, Any]]:
    """What there is to say about all images, for `fastcifar.cli.output.table`."""
    failed = f"; {len(found.errors):,} could not be read" if found.errors else ""
    rows = [("images", f"{len(found):,}{failed}")]
    if found.accuracy is not None:
        rows.append(("accuracy", f"{found.accuracy:.2%} of {found.num_labelled:,} images whose class is known"))
    return [*rows, ("probabilities", calibration_text(found))]


def calibration_text(found: ImagePredictions) -> str:
    """Whether the probabilities are calibrated."""
    if found.calibration is None:
        return f"not calibrated: {found.not_calibrated}"
    temperature, num_images = found.calibration.temperature, found.calibration.num_images
    return f"calibrated: temperature {temperature:.3f}, fitted on {num_images:,} validation images"


def to_json(found: ImagePredictions, num_classes: int = 3) -> dict[str, Any]:
    """The predictions for JSON."""
    calibration = found.calibration
    return {
        "images": found.to_rows(num_classes),
        "errors": [{"file": file, "reason": reason} for file, reason in found.errors],
        "accuracy": found.accuracy,
        "calibrated": calibration is not None,
        "calibration": vars(calibration) if calibration else None,
    }


def to_csv(found: ImagePredictions, num_classes: int) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: file; index, origin and true class, if an image is from a beton; classes and probabilities."""
    rows = found.to_rows(num_classes)
    num_classes = len(rows[0]["classes"]) if rows else 1
    of_beton = ["index", "origin", "true"] if any("index" in row for row in rows) else []
    others = [column for i in range(2, num_classes + 1) for column in (f"class_{i}", f"probability_{i}")]
    columns = ["file", *of_beton, "predicted", "confidence", *others]
    cells = [
        [row["file"], *(row.get(column) for column in of_beton), *(cell for pair in row["classes"] for cell in pair)]
        for row in rows
    ]
    return columns, cells


def show_files(*files: Path | None) -> None:
    """Print the paths of what was written: of sheets, their folder and number."""
    written = [file for file in files if file]
    sheets = [file for file in written if file.parent.name == "sheets"]
    for file in written:
        if file not in sheets:
            click.echo(file)
        elif file == sheets[0]:
            click.echo(f"{file.parent}/ ({len(sheets)} sheet{'s' * (len(sheets) > 1)})")


def report_errors(found: ImagePredictions) -> None:
    """Print a line on stderr for each file that could not be read, and raise DataError if there is one."""
    if len(found.errors) == 1 and not len(found):
        ((file, reason),) = found.errors
        raise DataError(f"{file}: {reason}")
    for file, reason in found.errors:
        click.echo(f"{file}: {reason}", err=True)
    if found.errors:
        total = len(found.errors) + len(found)
        raise DataError(f"{len(found.errors):,} of {total:,} images could not be read; the lines above say why")
