"""`eval`: the metrics of a run on its test or validation images, and figures of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar import plotting
from fastcifar.config import SPLITS, TTA_MODES, ExplainConfig
from fastcifar.data.origins import short_names
from fastcifar.errors import UsageError
from fastcifar.inference.calibration import Calibration
from fastcifar.inference.metrics import MAX_MATRIX, Metrics, compute_metrics
from fastcifar.inference.predictions import Ints, Predictions, select_images
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.inference.without import LeftOut, ReducedScore, reduced_scores
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

log = logging.getLogger(__name__)
GALLERY_SIZE = 64
GALLERIES = (
    ("wrong.png", False, "misclassified, largest loss first"),
    ("correct.png", True, "correctly classified, least confident first"),
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate_run`, or of `fastcifar.inference.other_sets.evaluate_on`."""

    metrics: Metrics
    calibration: Calibration | None
    not_calibrated: str
    """Why there is no calibration; empty if there is one."""
    calibrated: Metrics | None
    """The metrics of the calibrated probabilities."""
    class_names: tuple[str, ...]
    worst: tuple[dict[str, Any], ...]
    """The misclassified images of largest loss: index, true, predicted, confidence, loss, origin; and, where there is a
    calibration, calibrated_confidence."""
    files: tuple[Path, ...] = ()
    reduced: tuple[ReducedScore, ...] = ()
    """The scores without some images, if that was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            **self.metrics.to_dict(self.class_names),
            **describe_calibration(self.calibration, self.not_calibrated),
            **(
                {"calibrated_loss": self.calibrated.loss, "calibrated_ece": self.calibrated.ece}
                if self.calibrated
                else {}
            ),
            "worst": self.worst,
            **({"without": {score.name: score.to_dict() for score in self.reduced}} if self.reduced else {}),
        }


@dataclass(frozen=True, kw_only=True)
class EvaluatedImages:
    """The images that are evaluated, and their predictions."""

    title: str
    """What they are, for figures."""
    predictions: Predictions
    origins: Sequence[str]
    """Where each image came from; '' if that is unknown."""
    read: Callable[[Ints], npt.NDArray[np.uint8]]
    """`Predictions.indices` of some images, (M,) -> their pixels, (M, H, W, 3)."""


@standard_torch_defaults()
def evaluate_run(
    run: RunFolder,
    *,
    split: str = "test",
    tta: str = "none",
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    without: LeftOut | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate the best weights of a run; metrics, figures and predictions go to eval/<split>[-<tta>]/ in its folder.

    split: 'test', or 'val' for the images held out from training. tta: test-time augmentation. A run without a
    calibration of these weights is calibrated, if its validation images are there. without: test images that a second
    score leaves out, e.g. those of `fastcifar.audit.edits.read_left_out`.
    data_dir: the folder of the betons, by default where they were in training. device: 'auto', 'cpu', 'cuda', …
    trusted: 'package.module:function', the code of the run's network, if you trust it. reporter: shows progress, e.g. a
    `fastcifar.bars.Bars`.
    Raises DataError (4) if a beton is missing, damaged or does not fit; CheckpointError (6); UsageError (2).
    """
    require_choice("split", split, SPLITS)
    require_choice("tta", tta, TTA_MODES)
    if without is not None and split != "test":
        raise UsageError(f"split is {split!r}, and without names test images; expected split 'test'")
    trained = TrainedRun(run, data_dir=data_dir, device=device, trusted=trusted, reporter=reporter)
    predictions = trained.predictions(split, tta=tta)
    beton = trained.beton(split)
    if split == "test":
        trained.warn_of_other_test_images()
    reduced = () if without is None else reduced_scores(predictions, beton, without)
    images = EvaluatedImages(
        title=f"{len(predictions):,} {'test' if split == 'test' else 'validation'} images",
        predictions=predictions,
        origins=beton.origins(predictions.indices),
        read=beton.images,
    )
    command = command_of(run, ["--split", split], tta, data_dir, trusted)
    about = {"split": split, **({"issues_sha256": without.file_sha256} if without else {})}
    return write_evaluation(trained, images, split, about, tta, command, reduced)


def command_of(
    run: RunFolder,
    images: Sequence[str | os.PathLike[str]],
    tta: str,
    data_dir: str | os.PathLike[str] | None,
    trusted: str | None,
) -> str:
    """The command that evaluates these images, e.g. ['--split', 'test']."""
    arguments = [*images, "--tta", tta]
    arguments += ["--data-dir", data_folder(data_dir)] if data_dir else []
    arguments += ["--model", trusted] if trusted else []
    return command_line("fastcifar", "eval", run.path, *arguments)


def result_folder(run: RunFolder, name: str, tta: str) -> Path:
    """The folder for the results of the images called `name`, in eval/ of a run."""
    return run.path / "eval" / (name if tta == "none" else f"{name}-{tta}")


def make_folder(run: RunFolder, name: str, tta: str) -> Path:
    """Create `result_folder`, if needed."""
    return run.make_subfolder(result_folder(run, name, tta))


def find_calibration(trained: TrainedRun, tta: str) -> tuple[Calibration | None, str]:
    """That of `TrainedRun.find_calibration`; None with test-time augmentation."""
    if tta != "none":
        return None, "the temperature belongs to predictions without test-time augmentation"
    return trained.find_calibration()


def describe_calibration(calibration: Calibration | None, not_calibrated: str) -> dict[str, Any]:
    """The temperature, or why there is none, for JSON."""
    return {"temperature": calibration.temperature} if calibration else {"not_calibrated": not_calibrated}


def write_evaluation(
    trained: TrainedRun,
    images: EvaluatedImages,
    name: str,
    about: dict[str, Any],
    tta: str,
    command: str,
    reduced: tuple[ReducedScore, ...] = (),
) -> Evaluation:
    """Write metrics, figures and predictions of images to eval/<name>[-<tta>]/ in the folder of a run.

    about: which images they are, for metrics.json. command: which repeats the evaluation. reduced: for the result.
    """
    run, predictions, class_names = trained.run, images.predictions, trained.info.class_names
    calibration, not_calibrated = find_calibration(trained, tta)
    scaled = None if calibration is None else predictions.with_temperature(calibration.temperature)
    rows = _rows(images, scaled, class_names)
    row_of = {row["index"]: row for row in rows}
    evaluation = Evaluation(
        metrics=compute_metrics(predictions),
        calibration=calibration,
        not_calibrated=not_calibrated,
        calibrated=None if scaled is None else compute_metrics(scaled),
        class_names=class_names,
        worst=tuple(row_of[index] for index in select_images(predictions, ExplainConfig(n=10)).indices.tolist()),
        reduced=reduced,
    )
    folder = make_folder(run, name, tta)
    described = {"run": run.path.name, **about, "tta": tta, **evaluation.to_dict()}
    described |= {"weights_sha256": predictions.weights_sha256, "data_sha256": predictions.data_sha256}
    write_text(folder / "metrics.json", json.dumps(described, indent=1, allow_nan=False) + "\n")
    predictions.save(folder / "predictions.npz")
    write_csv(folder / "predictions.csv", (*rows[0],), (tuple(row.values()) for row in rows))
    title = f"{run.path.name}: {images.title}"
    title += "" if tta == "none" else f", test-time augmentation {tta}"
    files: list[Path | None] = [folder / "metrics.json"]
    with plotting.figure_writer(folder, f"draw them with: {command}") as write:
        if len(class_names) <= MAX_MATRIX:
            confusion = partial(plotting.confusion_matrix, evaluation.metrics.confusion, class_names, title)
            files.append(write("confusion.png", confusion))
        files.append(
            write("reliability.png", lambda: draw_reliability(evaluation.metrics, evaluation.calibrated, title))
        )
        for file, correct, kind in GALLERIES:
            selected = select_images(predictions, ExplainConfig(n=GALLERY_SIZE, correct=correct))
            if len(selected):
                heading = f"{title}\n{len(selected)} of {(predictions.is_correct == correct).sum():,} {kind}"
                names = short_names(
                    (row_of[index]["origin"] for index in selected.indices.tolist()), map(str, selected.indices)
                )
                pixels = images.read(selected.indices)
                files.append(write(file, partial(_gallery, selected, pixels, names, class_names, heading)))
            else:
                with suppress(OSError):
                    (folder / file).unlink(missing_ok=True)  # of an earlier evaluation
    files += [folder / "predictions.csv", folder / "predictions.npz"]
    return replace(evaluation, files=tuple(filter(None, files)))


def draw_reliability(metrics: Metrics, calibrated: Metrics | None, title: str) -> Figure:
    """The reliability diagram, next to that of the calibrated probabilities if there are any."""
    return plotting.reliability_diagram(*metrics.bins, title, None if calibrated is None else calibrated.bins)


def _rows(images: EvaluatedImages, scaled: Predictions | None, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of predictions.csv. scaled: the calibrated predictions."""
    rows = images.predictions.to_rows(class_names)
    if scaled is not None:
        for row, confidence in zip(rows, scaled.confidence.tolist(), strict=True):
            row["calibrated_confidence"] = round(confidence, 6)
    for row, origin in zip(rows, images.origins, strict=True):
        row["origin"] = origin
    return rows


def _gallery(
    selected: Predictions,
    images: npt.NDArray[np.uint8],
    names: Sequence[str],
    class_names: tuple[str, ...],
    heading: str,
) -> Figure:
    return plotting.gallery(images, plotting.captions(selected, names, class_names), heading)
