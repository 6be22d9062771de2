"""Ten label errors and ten duplicates of a finished audit, as one figure.

python -m benchmarks.audit_picture docs/audit.png --issues audit/issues.csv --data-dir data
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure

from benchmarks import OPTIONS, Command
from fastcifar import open_beton
from fastcifar.audit.issues import NUM_DIGITS, SPLITS, Image, Issue, read_issues
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError
from fastcifar.plotting import own_context, write_png
from fastcifar.plotting.style import layout

NUM = 10
PAIRS = ("near-leak", "near-duplicate")
"""Those of the first kind come first; exact ones would show the same picture twice."""


@click.command(cls=Command)
@click.argument("figure", type=click.Path(path_type=Path))
@click.option("--issues", default="audit/issues.csv", show_default=True, type=click.Path(path_type=Path))
@OPTIONS["data_dir"]
def main(figure: Path, issues: Path, data_dir: str) -> None:
    """Draw the first ten doubtful labels and the first ten pairs of issues.csv, without those marked 'keep'."""
    file = read_issues(issues)
    splits = {name: path for name in SPLITS if (path := Path(data_dir) / f"{name}.beton").exists()}
    betons = {name: open_beton(path) for name, path in splits.items()}
    for line in file.lines:
        beton = betons.get(line.issue.image.split)
        if beton is None or beton.sha256[:NUM_DIGITS] != line.data_sha256:
            raise DataError(f"{issues}: line {line.number} is of other data than {data_dir}")
    write_png(figure, draw([line.issue for line in file.lines if line.issue.action != "keep"], betons))


@own_context()
def draw(issues: Sequence[Issue], splits: Mapping[str, Beton]) -> Figure:
    """A row of images with the given and the suggested label; below, two rows with an image of each pair.

    issues: the worst of a kind first.
    """
    labels = [issue for issue in issues if issue.kind == "label"][:NUM]
    pairs = [issue for kind in PAIRS for issue in issues if issue.kind == kind][:NUM]
    figure = Figure(figsize=(11, 4.7), layout=layout())
    axes = figure.subplots(3, NUM)
    for axis in axes.flat:
        axis.set_axis_off()

    def show(axis: Any, image: Image, title: str) -> None:
        axis.imshow(splits[image.split].images([image.index])[0], interpolation="nearest")
        axis.set_title(title, fontsize=9, parse_math=False)

    for issue, axis in zip(labels, axes[0], strict=False):
        show(axis, issue.image, f"given: {issue.label}\nsuggested:\n{issue.suggested}")
    for issue, first, second in zip(pairs, axes[1], axes[2], strict=False):
        assert issue.other is not None
        for image, axis in ((issue.image, first), (issue.other, second)):
            beton = splits[image.split]
            show(axis, image, f"{image.split} {image.index}\n{beton.class_names[beton.labels[image.index]]}")
    return figure


if __name__ == "__main__":
    main()
