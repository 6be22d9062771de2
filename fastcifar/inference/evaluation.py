"""`eval`: how good a run is on its validation or test images, in numbers and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastcifar.config import TTA_MODES, ExplainConfig
from fastcifar.inference.metrics import Scores, score
from fastcifar.inference.selection import Verdicts, choose, verdicts
from fastcifar.inference.trained_run import Trained
from fastcifar.io.atomic import write_text
from fastcifar.io.checks import require_choice
from fastcifar.io.figures import pictures
from fastcifar.io.paths import command_line, data_folder
from fastcifar.training import checkpoint
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter, SilentReporter
from fastcifar.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("test", "val")
IN_GALLERY = 64


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was made."""

    scores: Scores
    class_names: tuple[str, ...]
    worst: tuple[dict[str, Any], ...]
    """The misclassified images of largest loss: index, true, predicted, confidence, loss."""
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
    """Score the best weights of a run; numbers and pictures go to eval/<split>[-<tta>]/ in its folder.

    split: 'test', or 'val' for the images that training held out. tta: test-time augmentation. trusted: see
    `explain_run`. Raises DataError (4) if a beton is missing, damaged or of another kind; CheckpointError (6);
    UsageError (2).
    """
    require_choice("split", split, SPLITS)
    require_choice("tta", tta, TTA_MODES)
    reporter = reporter or SilentReporter()
    trained = Trained(run, data_dir=data_dir, device=device, trusted=trusted)
    beton = trained.open_beton("test" if split == "test" else "train")
    predictions = trained.predictions(split, beton, tta, reporter)
    names = trained.info.class_names
    scores, found = score(predictions.logits, predictions.label, len(names)), verdicts(predictions)
    folder = run.own(run.path / "eval" / (split if tta == "none" else f"{split}-{tta}"))
    title = f"{run.path.name}: {len(found.index):,} {'test' if split == 'test' else 'validation'} images"
    title += "" if tta == "none" else f", test-time augmentation {tta}"
    worst = tuple(
        {
            "index": int(found.index[k]),
            "true": names[found.true[k]],
            "predicted": names[found.predicted[k]],
            "confidence": round(float(found.confidence[k]), 6),
            "loss": round(float(found.loss[k]), 6),
        }
        for k in choose(found, ExplainConfig(n=10))
    )
    facts = {"run": run.path.name, "split": split, "tta": tta, **scores.facts(names), "worst": list(worst)}
    facts |= {"weights_sha256": predictions.weights_sha256, "data_sha256": predictions.data_sha256}
    write_text(folder / "scores.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
    checkpoint.save_predictions(folder / "predictions.npz", predictions)
    again: list[Any] = ["fastcifar", "eval", run.path, "--split", split, "--tta", tta]
    again += ["--data-dir", data_folder(data_dir)] if data_dir else []
    again += ["--model", trusted] if trusted else []
    made = _draw(folder, title, scores, found, names, beton.images, f"draw them with: {command_line(*again)}")
    return Evaluation(
        scores=scores,
        class_names=names,
        worst=worst,
        files=(folder / "scores.json", *made, folder / "predictions.npz"),
    )


def _draw(
    folder: Path,
    title: str,
    scores: Scores,
    found: Verdicts,
    names: tuple[str, ...],
    images_of: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]],
    again: str,
) -> list[Path]:
    """The pictures that could be drawn."""

    def confusion() -> Figure:
        from fastcifar import plotting

        return plotting.confusion(scores.confusion, plotting.class_labels(names), title)

    def reliability() -> Figure:
        from fastcifar import plotting

        return plotting.reliability(scores.bin_confidence, scores.bin_accuracy, scores.bin_count, scores.ece, title)

    def gallery(chosen: npt.NDArray[np.int64], images: npt.NDArray[np.uint8], right: bool) -> Figure:
        from fastcifar import plotting
        from fastcifar.plotting.images import Named

        labels = plotting.class_labels(names)
        called = [
            Named(labels[t], labels[p], bool(t == p), str(row))
            for t, p, row in zip(found.true[chosen], found.predicted[chosen], found.index[chosen], strict=True)
        ]
        kind = "rightly classified, the least sure first" if right else "misclassified, of largest loss first"
        heading = f"{title}\n{len(chosen)} of {(found.right == right).sum():,} {kind}"
        return plotting.gallery(images, called, heading)

    with pictures(folder, again) as draw:
        made = [draw("confusion.png", confusion), draw("reliability.png", reliability)]
        for name, right in (("wrong", False), ("correct", True)):
            chosen = choose(found, ExplainConfig(n=IN_GALLERY, correct=right))
            if len(chosen):
                made.append(draw(f"{name}.png", partial(gallery, chosen, images_of(found.index[chosen]), right)))
            else:
                with suppress(OSError):
                    (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier evaluation
    return [path for path in made if path is not None]
