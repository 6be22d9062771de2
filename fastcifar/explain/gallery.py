"""The misclassified test images of a run, with their class activation maps, as a picture and a table."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.beton import Beton
from fastcifar.checks import require_int
from fastcifar.errors import DataError
from fastcifar.explain.cam import default_stage, grad_cam
from fastcifar.files import write_atomically
from fastcifar.loaders import make_loader, open_for
from fastcifar.training import checkpoint
from fastcifar.training.checkpoint import DataInfo, Predictions
from fastcifar.training.device import choose_device
from fastcifar.training.evaluate import evaluate
from fastcifar.training.run_folder import RunFolder

log = logging.getLogger(__name__)
CAM_BATCH = 128
COLUMNS = ("index", "true", "predicted", "confidence", "loss", "has_evidence")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `explain_run` made."""

    num_test: int
    num_wrong: int
    num_shown: int
    stage: str
    map_size: tuple[int, int]
    files: tuple[Path, ...]
    """grid.png and index.csv; nothing if no image is misclassified."""


def explain_run(
    run: RunFolder,
    *,
    n: int = 25,
    data_dir: str | None = None,
    device: str = "auto",
    trusted: str | None = None,
    begin: Callable[[str, int], None] = lambda what, total: None,
    advance: Callable[[int], None] = lambda count: None,
) -> Explanation:
    """Grad-CAM of the `n` misclassified test images of largest loss, for the predicted class, into the run folder.

    trusted: 'package.module:function', if that is the run's network and you know what it does.
    Raises DataError (4) if test.beton is missing, damaged or of another kind; CheckpointError (6); UsageError (2).
    """
    require_int("n", n, 1)
    model, info, _ = checkpoint.load_weights(run.best, trusted)
    where = choose_device(device)
    model.to(where)
    beton = open_for("resident", Path(data_dir or run.read_config().data_dir) / "test.beton")
    _check_same_kind(beton, info)
    predictions = _predictions(run, model, info, beton, where, begin, advance)
    logits = torch.from_numpy(predictions.logits).double()
    labels = torch.from_numpy(predictions.label)
    guesses, losses = logits.argmax(dim=1), F.cross_entropy(logits, labels, reduction="none")
    confidence = logits.softmax(dim=1).amax(dim=1)
    wrong = torch.nonzero(guesses != labels)[:, 0]
    chosen = wrong[torch.argsort(losses[wrong], descending=True, stable=True)][:n]
    stage, map_size = default_stage(model, info.image_shape)
    files: tuple[Path, ...] = ()
    if len(chosen):
        rows = predictions.index[chosen.numpy()]
        images = beton.images(rows)
        begin("maps", len(rows))
        heats, has_evidence = _maps(model, images, info, stage, guesses[chosen].to(where), advance)
        names = info.class_names
        table = [
            {
                "index": int(rows[i]),
                "true": names[int(labels[k])],
                "predicted": names[int(guesses[k])],
                "confidence": round(float(confidence[k]), 6),
                "loss": round(float(losses[k]), 6),
                "has_evidence": bool(has_evidence[i]),
            }
            for i, k in enumerate(chosen.tolist())
        ]
        files = _write(
            run,
            images,
            heats,
            table,
            f"{len(wrong):,} of {len(labels):,} test images misclassified",
            stage,
            map_size,
        )
    return Explanation(
        num_test=len(labels),
        num_wrong=len(wrong),
        num_shown=len(chosen),
        stage=stage,
        map_size=map_size,
        files=files,
    )


def _check_same_kind(beton: Beton, info: DataInfo) -> None:
    if not beton.verified:
        log.warning("%s has no manifest: its structure was checked, its pixels cannot be", beton.path)
    if beton.image_shape != info.image_shape or (beton.verified and beton.class_names != info.class_names):
        raise DataError(
            f"{beton.path}: {len(beton.class_names)} classes, images {beton.image_shape}; the network was trained on "
            f"{len(info.class_names)} classes, images {info.image_shape}; give its data with --data-dir"
        )
    if int(beton.labels.max()) >= len(info.class_names):
        raise DataError(
            f"{beton.path}: has label {int(beton.labels.max())}; the network knows {len(info.class_names)} classes"
        )


def _predictions(
    run: RunFolder,
    model: nn.Module,
    info: DataInfo,
    beton: Beton,
    device: torch.device,
    begin: Callable[[str, int], None],
    advance: Callable[[int], None],
) -> Predictions:
    weights = checkpoint.file_sha256(run.best)
    known = checkpoint.load_predictions(run.predictions, weights, beton.sha256)
    if known is not None:
        return known
    loader = make_loader(
        beton, train=False, batch_size=1_000, loader="resident", device=device, mean=info.mean, std=info.std
    )
    begin("test", loader.num_images)
    answers = evaluate(model, loader, advance=advance)
    made = Predictions(
        index=answers.indices,
        label=answers.labels,
        logits=answers.logits,
        weights_sha256=weights,
        data_sha256=beton.sha256,
    )
    checkpoint.save_predictions(run.predictions, made)
    return made


def _maps(
    model: nn.Module,
    images: np.ndarray,
    info: DataInfo,
    stage: str,
    targets: torch.Tensor,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    from fastcifar.augment.torch_ops import normalisation, normalise
    from fastcifar.plotting import ENLARGE

    mean, inv_std = (torch.from_numpy(v) for v in normalisation(np.array(info.mean), np.array(info.std)))
    size = (images.shape[1] * ENLARGE, images.shape[2] * ENLARGE)
    heats, evidence = [], []
    for start in range(0, len(images), CAM_BATCH):
        part = normalise(torch.from_numpy(images[start : start + CAM_BATCH]), mean, inv_std).to(targets.device)
        result = grad_cam(model, part, stage, targets[start : start + CAM_BATCH])
        large = F.interpolate(result.maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        heats.append(large.clamp(0, 1).cpu().numpy())
        evidence.append(result.has_evidence.cpu().numpy())
        advance(len(part))
    return np.concatenate(heats), np.concatenate(evidence)


def _write(
    run: RunFolder,
    images: np.ndarray,
    heats: np.ndarray,
    table: list[dict[str, object]],
    heading: str,
    stage: str,
    map_size: tuple[int, int],
) -> tuple[Path, ...]:
    from fastcifar import plotting

    titles = [(f"true: {row['true']}", f"{row['predicted']} {row['confidence']:.0%}") for row in table]
    heading = f"{run.path.name}: {heading}\nGrad-CAM of the predicted class at {stage} ({map_size[0]}x{map_size[1]})"
    figure = plotting.cam_grid(images, heats, titles, heading)
    run.explain.mkdir(exist_ok=True)
    grid, index = run.explain / "grid.png", run.explain / "index.csv"
    write_atomically(grid, lambda partial: plotting.save(figure, partial))

    def write_index(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)

    write_atomically(index, write_index)
    return grid, index
