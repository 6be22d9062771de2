"""The files of an explanation: grid, sheets, index and arrays."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from fastcifar import plotting
from fastcifar.explain.drawing import Maps
from fastcifar.io.atomic import wrap_write_errors, write_arrays, write_csv
from fastcifar.io.locks import lock_folder
from fastcifar.training.progress import Reporter

COLUMNS = ("index", "true", "predicted", "confidence", "loss", "file", "origin")
ENTRIES = ("grid.png", "index.csv", "maps.npz", "sheets")


def write_explanation(folder: Path, maps: Maps, reporter: Reporter) -> tuple[Path, ...]:
    """Write index.csv, maps.npz, grid.png and sheets/ into an existing folder; returns their paths.

    An earlier explanation is replaced when all files are written, and restored if that fails. A figure that cannot be
    drawn is left out, with a warning.
    """
    explained = maps.explained
    with wrap_write_errors(folder):
        partial_folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        rows = explained.predictions.to_rows(maps.class_names)
        for row, name, sheet, origin in zip(rows, explained.names, explained.sheets, explained.origins, strict=True):
            row.update(index=name, file=f"sheets/{sheet}", origin=origin)
        write_csv(partial_folder / "index.csv", COLUMNS, ([row[key] for key in COLUMNS] for row in rows))
        write_arrays(
            partial_folder / "maps.npz",
            selection=np.array(maps.selection),
            indices=explained.predictions.indices,
            images=explained.images,
            data_sha256=np.array(explained.predictions.data_sha256),
            **{name: np.asarray(value) for name, value in vars(maps.table).items()},
        )
        with wrap_write_errors(folder):
            (partial_folder / "sheets").mkdir()
        with plotting.figure_writer(folder, "repeat the command to draw them", write_to=partial_folder) as write:
            write("grid.png", maps.grid)
            reporter.begin("sheets", len(explained.sheets))
            for i, sheet in enumerate(explained.sheets):
                write(f"sheets/{sheet}", partial(maps.sheet, i))
                reporter.advance(1)
        with wrap_write_errors(folder):
            _replace(partial_folder, folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    paths = [folder / name for name in (*ENTRIES[:-1], *(f"sheets/{sheet}" for sheet in explained.sheets))]
    return tuple(path for path in paths if path.exists())


def _replace(source: Path, folder: Path) -> None:
    """Move the entries of `source` into `folder`, and those of an earlier explanation out of it: all or nothing."""
    earlier = source / "earlier"
    earlier.mkdir()
    with lock_folder(folder):  # another explanation of the run may finish at the same moment
        moves = [(folder / name, earlier / name) for name in ENTRIES if os.path.lexists(folder / name)]
        moves += [(source / name, folder / name) for name in ENTRIES if (source / name).exists()]
        try:
            for before, after in moves:
                before.rename(after)
        except BaseException:
            for before, after in reversed(moves):
                if not os.path.lexists(before):  # moved; a signal may arrive before the loop records it
                    after.rename(before)
            raise
