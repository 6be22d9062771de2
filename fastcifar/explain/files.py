"""The files of an explanation: grid, sheets, index and arrays."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastcifar import plotting
from fastcifar.explain.cam import best_layer
from fastcifar.explain.maps import ExplainedImages, MapTable
from fastcifar.inference.predictions import UNKNOWN
from fastcifar.io.atomic import wrap_write_errors, write_arrays, write_csv
from fastcifar.io.locks import lock_folder
from fastcifar.training.progress import Reporter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("index", "true", "predicted", "confidence", "loss", "file", "origin")
ENTRIES = ("grid.png", "index.csv", "maps.npz", "sheets")
METHOD_NAMES = {"gradcam": "Grad-CAM", "gradcampp": "Grad-CAM++", "hirescam": "HiResCAM"}


def write_explanation(
    folder: Path,
    explained: ExplainedImages,
    table: MapTable,
    class_names: tuple[str, ...],
    run_name: str,
    selection: str,
    reporter: Reporter,
) -> tuple[Path, ...]:
    """Write index.csv, maps.npz, grid.png and sheets/ into an existing folder; returns their paths.

    selection: which images these are, in words. An earlier explanation is replaced when all files are written, and
    restored if that fails. A figure that cannot be drawn is left out, with a warning.
    """
    with wrap_write_errors(folder):
        partial_folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        rows = explained.predictions.to_rows(class_names)
        for row, name, sheet, origin in zip(rows, explained.names, explained.sheets, explained.origins, strict=True):
            row.update(index=name, file=f"sheets/{sheet}", origin=origin)
        write_csv(partial_folder / "index.csv", COLUMNS, ([row[key] for key in COLUMNS] for row in rows))
        write_arrays(
            partial_folder / "maps.npz",
            selection=np.array(selection),
            indices=explained.predictions.indices,
            images=explained.images,
            **{name: np.asarray(value) for name, value in vars(table).items()},
        )
        with wrap_write_errors(folder):
            (partial_folder / "sheets").mkdir()
        with plotting.figure_writer(folder, "repeat the command to draw them", write_to=partial_folder) as write:
            write("grid.png", partial(draw_grid, explained, table, class_names, f"{run_name}: {selection}"))
            reporter.begin("sheets", len(explained.sheets))
            for i, sheet in enumerate(explained.sheets):
                write(f"sheets/{sheet}", partial(_sheet, i, explained, table, class_names))
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


def draw_grid(explained: ExplainedImages, table: MapTable, class_names: tuple[str, ...], heading: str) -> Figure:
    """The images with the maps of the first target and method at the best layer."""
    best, target = best_layer(table.sizes), table.targets[0]
    labels = plotting.class_labels(class_names)
    target = labels[class_names.index(target)] if target in class_names else target_name(target)
    return plotting.cam_grid(
        explained.images,
        table.maps[0, 0, :, best],
        table.has_evidence[0, 0, :, best].tolist(),
        plotting.captions(explained.predictions, explained.short_names, class_names),
        f"{heading}\n{METHOD_NAMES[table.methods[0]]} of {target} at {_layer(table, best)}",
    )


def _sheet(i: int, explained: ExplainedImages, table: MapTable, class_names: tuple[str, ...]) -> Figure:
    predictions, labels = explained.predictions, plotting.class_labels(class_names)
    rows = [
        plotting.SheetRow(
            f"{_layer(table, k)}\nfor {labels[table.classes[t, i]]}",
            list(table.maps[t, :, i, k]),
            table.has_evidence[t, :, i, k].tolist(),
        )
        for k in range(len(table.layers))
        for t in range(len(table.targets))
    ]
    heading = f"{labels[predictions.predicted[i]]} {predictions.confidence[i]:.0%}"
    if predictions.labels[i] == UNKNOWN:
        heading = f"{explained.names[i]}: predicted {heading}"
    else:
        true = labels[predictions.labels[i]]
        heading = f"test image {explained.names[i]}: true {true}, predicted {heading}, loss {predictions.losses[i]:.2f}"
        heading += f"\n{explained.origins[i]}" if explained.origins[i] else ""
    return plotting.cam_sheet(explained.images[i], rows, [METHOD_NAMES[m] for m in table.methods], heading)


def _layer(table: MapTable, k: int) -> str:
    height, width = table.sizes[k]
    return f"{table.layers[k]} ({height}x{width})"


def target_name(target: str) -> str:
    """A target in words."""
    return {"pred": "the predicted class", "true": "the true class"}.get(target, target)
