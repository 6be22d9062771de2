"""The files of a comparison: its table as Markdown, CSV and LaTeX, curves, and images on which the entries differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastcifar import plotting
from fastcifar.data.beton import Beton, open_beton
from fastcifar.errors import FastcifarError
from fastcifar.inference.predictions import Predictions
from fastcifar.io.atomic import wrap_write_errors, write_csv, write_text
from fastcifar.io.paths import make_folder
from fastcifar.runs.compare import Comparison, Entry
from fastcifar.runs.scores import shown
from fastcifar.runs.summary import RunSummary, setting_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SHOWN = 36
Table = list[list[str]]


def table_of(comparison: Comparison) -> Table:
    """A heading and a row for each setting that differs and each score; a column for each entry."""
    rows = [["", *(entry.name for entry in comparison.entries)]]
    rows += [[key, *map(setting_text, values)] for key, values in comparison.settings.items()]
    rows.append(["runs", *(str(len(entry.runs)) for entry in comparison.entries)])
    if any(entry.num_diverged for entry in comparison.entries):
        rows.append(["diverged, left out", *(str(entry.num_diverged) for entry in comparison.entries)])
    for score in comparison.scores:
        means = [entry.scores.get(score.key) for entry in comparison.entries]
        rows.append([score.name, *("–" if mean is None else shown(score, mean) for mean in means)])
    return rows


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write table.md, table.csv, table.tex, curves.png and galleries into `folder`; returns their paths.

    Galleries of an earlier comparison in this folder are removed, if this one has none of their name.
    """
    make_folder(folder)
    table, files = table_of(comparison), [folder / name for name in ("table.md", "table.csv", "table.tex")]
    sentences = [f"- {difference.sentence}." for difference in comparison.differences]
    write_text(files[0], as_markdown(table) + "\n" + "\n".join(map(_markdown, sentences)) + "\n")
    write_csv(files[1], table[0], table[1:])
    write_text(files[2], as_latex(table))
    histories = {entry.name: [run.history for run in entry.runs] for entry in comparison.entries}
    drawn: list[Path | None] = []
    with plotting.figure_writer(folder, "repeat the command to draw them") as write:
        drawn.append(write("curves.png", lambda: plotting.group_curves(histories)))
        first = comparison.entries[0]
        for number, second in enumerate(comparison.entries[1:], 2):
            names = f"only-1-not-{number}.png", f"only-{number}-not-1.png"
            for name, draw in zip(names, _galleries(first, second), strict=True):
                if draw is not None:
                    drawn.append(write(name, draw))
    written = (*files, *filter(None, drawn))
    with wrap_write_errors(folder):
        for path in folder.iterdir():
            if re.fullmatch(r"only-\d+-not-\d+\.png", path.name) and path not in written:
                path.unlink()
    return written


def _galleries(first: Entry, second: Entry) -> tuple[partial[Figure] | None, partial[Figure] | None]:
    """Drawings of the test images that the first classifies correctly more often than the second, and the reverse;
    None where there are none, or if they have no test images in common, or those cannot be read."""
    ours, theirs = first.predictions(), second.predictions()
    if not ours or not theirs or len({(p.data_sha256, len(p)) for p in (*ours, *theirs)}) > 1:
        return None, None
    beton = _test_images([*first.runs, *second.runs], ours[0])
    if beton is None:
        return None, None
    shares = [np.mean([p.is_correct for p in each], axis=0) for each in (ours, theirs)]
    drawings: list[partial[Figure] | None] = []
    pairs = ((first, second, shares[0] - shares[1], theirs), (second, first, shares[1] - shares[0], ours))
    for better, worse, margin, wrong in pairs:
        loss = np.mean([p.losses for p in wrong], axis=0)
        positions = np.lexsort((-loss, -margin))[: min(MAX_SHOWN, int((margin > 0).sum()))]
        if not len(positions):
            drawings.append(None)
            continue
        heading = (
            f"Correctly classified by {better.name}, not by {worse.name}: {len(positions)} of "
            f"{int((margin > 0).sum()):,} test images, with the prediction of {worse.name}"
        )
        if len(ours) > 1 or len(theirs) > 1:
            heading = (
                f"Correctly classified more often by the runs of {better.name} than by those of {worse.name}: "
                f"{len(positions)} of {int((margin > 0).sum()):,} test images, with a prediction of {worse.name}"
            )
        drawings.append(partial(_gallery, beton, _wrong_run(wrong, positions), heading))
    return drawings[0], drawings[1]


def _wrong_run(predictions: Sequence[Predictions], positions: npt.NDArray[np.int64]) -> Predictions:
    """The predictions at `positions` of the run with the largest loss there on average."""
    return max((each.select(positions) for each in predictions), key=lambda each: float(each.losses.mean()))


def _test_images(runs: Sequence[RunSummary], predictions: Predictions) -> Beton | None:
    for run in runs:
        try:
            beton = open_beton(Path(run.run.read_config().data.data_dir) / "test.beton", in_memory=False)
        except (FastcifarError, OSError):
            continue
        if beton.sha256 == predictions.data_sha256:
            return beton
    return None


def _gallery(beton: Beton, predictions: Predictions, heading: str) -> Figure:
    names = [
        name or str(index)
        for name, index in zip(*(beton.origins(predictions.indices), predictions.indices), strict=True)
    ]
    names = [name.rpartition("/")[2] for name in names]
    captions = plotting.captions(predictions, names, beton.class_names)
    return plotting.gallery(beton.images(predictions.indices), captions, heading)


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    lines = ["| " + " | ".join(map(_markdown, row)) + " |" for row in table]
    lines.insert(1, "| --- |" + " ---: |" * (len(table[0]) - 1))
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split()))


def as_latex(table: Table) -> str:
    """A table of LaTeX's booktabs package."""
    rows = [" & ".join(map(_latex, row)) + r" \\" for row in table]
    columns = "l" + "r" * (len(table[0]) - 1)
    body = "\n".join(rows[1:])
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{rows[0]}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))
