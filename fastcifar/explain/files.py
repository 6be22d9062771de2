"""What `explain` writes: grid, sheets, table and arrays."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcifar.explain.cam import best_layer
from fastcifar.explain.maps import MapTable, Subjects
from fastcifar.io.atomic import wrap_write_errors, write_arrays, write_text
from fastcifar.io.figures import pictures
from fastcifar.io.locks import lock_folder
from fastcifar.training.progress import Reporter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("index", "true", "predicted", "confidence", "loss", "file")
WRITTEN = ("grid.png", "index.csv", "maps.npz", "sheets")
METHOD_NAMES = {"gradcam": "Grad-CAM", "gradcampp": "Grad-CAM++", "hirescam": "HiResCAM"}


def write_explanation(
    folder: Path,
    subjects: Subjects,
    table: MapTable,
    names: tuple[str, ...],
    run_name: str,
    selection: str,
    reporter: Reporter,
) -> tuple[Path, ...]:
    """Write index.csv, maps.npz and then grid.png and sheets/ into `folder`, which is there; returns their paths.

    selection: which images these are, in words. All is made before anything of an earlier explanation is replaced,
    and that is put back if not everything can be. A picture that cannot be drawn is left out, with a warning.
    """
    with wrap_write_errors(folder):
        made = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        _write_index(made / "index.csv", subjects, names)
        _write_maps(made / "maps.npz", subjects, table, selection)
        with wrap_write_errors(folder):
            (made / "sheets").mkdir()
        with pictures(folder, "repeat the command to draw them", made_in=made) as draw:
            draw("grid.png", partial(_grid, subjects, table, names, f"{run_name}: {selection}"))
            reporter.begin("sheets", len(subjects.files))
            for i, file in enumerate(subjects.files):
                draw(f"sheets/{file}", partial(_sheet, i, subjects, table, names))
                reporter.advance(1)
        with wrap_write_errors(folder):
            _put_in_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    paths = [folder / name for name in (*WRITTEN[:-1], *(f"sheets/{file}" for file in subjects.files))]
    return tuple(path for path in paths if path.exists())


def _put_in_place(made: Path, folder: Path) -> None:
    """Move what was made into `folder`, and what was there out of it: all, or nothing."""
    earlier = made / "earlier"
    earlier.mkdir()
    with lock_folder(folder):  # another explanation of the run may end at the same moment
        there = [name for name in WRITTEN if os.path.lexists(folder / name)]
        moves = [(folder / name, earlier / name) for name in there]
        moves += [(made / name, folder / name) for name in WRITTEN if (made / name).exists()]
        try:
            for before, after in moves:
                before.rename(after)
        except BaseException:
            for before, after in reversed(moves):
                if not os.path.lexists(before):  # a signal may come when it is moved, and before that is known
                    after.rename(before)
            raise


def _grid(subjects: Subjects, table: MapTable, names: tuple[str, ...], heading: str) -> Figure:
    from fastcifar import plotting
    from fastcifar.plotting.images import Caption

    predictions, labels = subjects.predictions, plotting.class_labels(names)
    titles = [
        Caption(labels[t] if t >= 0 else "", labels[p], bool(t == p), name, c)
        for t, p, name, c in zip(
            predictions.labels, predictions.predicted, subjects.short_names, predictions.confidence, strict=True
        )
    ]
    best = best_layer(table.sizes)
    target = target_name(table.targets[0])
    target = labels[names.index(target)] if target in names else target
    shown = f"{METHOD_NAMES[table.methods[0]]} of {target} at {_layer(table, best)}"
    return plotting.cam_grid(
        subjects.images,
        table.maps[0, 0, :, best],
        table.has_evidence[0, 0, :, best].tolist(),
        titles,
        f"{heading}\n{shown}",
    )


def _sheet(i: int, subjects: Subjects, table: MapTable, names: tuple[str, ...]) -> Figure:
    from fastcifar import plotting
    from fastcifar.plotting.images import SheetRow

    predictions, labels = subjects.predictions, plotting.class_labels(names)
    rows = [
        SheetRow(
            f"{_layer(table, k)}\nfor {labels[table.classes[t, i]]}",
            list(table.maps[t, :, i, k]),
            table.has_evidence[t, :, i, k].tolist(),
        )
        for k in range(len(table.layers))
        for t in range(len(table.targets))
    ]
    is_known = predictions.labels[i] >= 0
    true = f"true {labels[predictions.labels[i]]}, " if is_known else ""
    loss = f", loss {predictions.losses[i]:.2f}" if is_known else ""
    predicted, confidence = labels[predictions.predicted[i]], predictions.confidence[i]
    title = f"{subjects.names[i]}: {true}predicted {predicted} {confidence:.0%}{loss}"
    methods = [METHOD_NAMES[method] for method in table.methods]
    return plotting.cam_sheet(subjects.images[i], rows, methods, title)


def _layer(table: MapTable, k: int) -> str:
    height, width = table.sizes[k]
    return f"{table.layers[k]} ({height}x{width})"


def target_name(target: str) -> str:
    """A kind of target, in words."""
    return {"pred": "the predicted class", "true": "the true class"}.get(target, target)


def _write_index(path: Path, subjects: Subjects, names: tuple[str, ...]) -> None:
    predictions = subjects.predictions
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(subjects.files):
        is_known = predictions.labels[i] >= 0
        rows.append(
            {
                "index": int(predictions.indices[i]) if is_known else subjects.names[i],
                "true": names[predictions.labels[i]] if is_known else "",
                "predicted": names[predictions.predicted[i]],
                "confidence": round(float(predictions.confidence[i]), 6),
                "loss": round(float(predictions.losses[i]), 6) if is_known else "",
                "file": f"sheets/{name}",
            }
        )

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_maps(path: Path, subjects: Subjects, table: MapTable, selection: str) -> None:
    arrays = {
        "selection": np.array(selection),
        "weights_sha256": np.array(table.weights_sha256),
        "index": subjects.predictions.indices,
        "images": subjects.images,
        "targets": np.array(table.targets),
        "methods": np.array(table.methods),
        "layers": np.array(table.layers),
        "sizes": np.array(table.sizes),
        "classes": table.classes,
        "maps": table.maps,
        "has_evidence": table.has_evidence,
    }

    write_arrays(path, **arrays)
