"""`eval`: the metrics of a run on its test or validation images, and figures of them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar import plotting
from fastcifar.config import SPLITS, TTA_MODES, ExplainConfig
from fastcifar.inference.metrics import Metrics, compute_metrics
from fastcifar.inference.predictions import Predictions, select_images
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.atomic import write_csv, write_text
from fastcifar.io.checks import require_choice
from fastcifar.io.paths import command_line, data_folder
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

GALLERY_SIZE = 64
GALLERIES = (
    ("wrong.png", False, "misclassified, largest loss first"),
    ("correct.png", True, "correctly classified, least confident first"),
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate_run`."""

    metrics: Metrics
    class_names: tuple[str, ...]
    worst: tuple[dict[str, Any], ...]
    """The misclassified images of largest loss: index, true, predicted, confidence, loss, origin."""
    files: tuple[Path, ...]


@standard_torch_defaults()
def evaluate_run(
    run: RunFolder,
    *,
    split: str = "test",
    tta: str = "none",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate the best weights of a run; metrics, figures and predictions go to eval/<split>[-<tta>]/ in its folder.

    split: 'test', or 'val' for the images held out from training. tta: test-time augmentation. For the other arguments
    see `TrainedRun`. Raises DataError (4) if a beton is missing, damaged or does not fit; CheckpointError (6);
    UsageError (2).
    """
    require_choice("split", split, SPLITS)
    require_choice("tta", tta, TTA_MODES)
    trained = TrainedRun(run, data_dir=data_dir, device=device, trusted=trusted, reporter=reporter)
    predictions = trained.predictions(split, tta=tta)
    class_names, metrics = trained.info.class_names, compute_metrics(predictions)
    rows = predictions.to_rows(class_names)
    for row, origin in zip(rows, trained.beton(split).origins(predictions.indices), strict=True):
        row["origin"] = origin
    row_of = {row["index"]: row for row in rows}
    worst = [row_of[index] for index in select_images(predictions, ExplainConfig(n=10)).indices.tolist()]
    folder = run.make_subfolder(run.path / "eval" / (split if tta == "none" else f"{split}-{tta}"))
    described = {"run": run.path.name, "split": split, "tta": tta, **metrics.to_dict(class_names), "worst": worst}
    described |= {"weights_sha256": predictions.weights_sha256, "data_sha256": predictions.data_sha256}
    write_text(folder / "metrics.json", json.dumps(described, indent=1, allow_nan=False) + "\n")
    predictions.save(folder / "predictions.npz")
    write_csv(folder / "predictions.csv", (*rows[0],), (tuple(row.values()) for row in rows))
    title = f"{run.path.name}: {len(predictions):,} {'test' if split == 'test' else 'validation'} images"
    title += "" if tta == "none" else f", test-time augmentation {tta}"
    command: list[Any] = ["fastcifar", "eval", run.path, "--split", split, "--tta", tta]
    command += ["--data-dir", data_folder(data_dir)] if data_dir else []
    command += ["--model", trusted] if trusted else []
    files: list[Path | None] = [folder / "metrics.json"]
    with plotting.figure_writer(folder, f"draw them with: {command_line(*command)}") as write:
        files += [
            write("confusion.png", lambda: plotting.confusion_matrix(metrics.confusion, class_names, title)),
            write("reliability.png", lambda: plotting.reliability_diagram(*metrics.bins, title)),
        ]
        for name, correct, kind in GALLERIES:
            selected = select_images(predictions, ExplainConfig(n=GALLERY_SIZE, correct=correct))
            if len(selected):
                heading = f"{title}\n{len(selected)} of {(predictions.is_correct == correct).sum():,} {kind}"
                images = trained.beton(split).images(selected.indices)
                files.append(write(name, partial(_gallery, selected, images, class_names, heading)))
            else:
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)  # of an earlier evaluation
    files += [folder / "predictions.csv", folder / "predictions.npz"]
    return Evaluation(metrics=metrics, class_names=class_names, worst=tuple(worst), files=tuple(filter(None, files)))


def _gallery(
    selected: Predictions, images: npt.NDArray[np.uint8], class_names: tuple[str, ...], heading: str
) -> Figure:
    captions = plotting.captions(selected, list(map(str, selected.indices)), class_names)
    return plotting.gallery(images, captions, heading)
