"""Other test sets that the run was evaluated on by `eval --on`: their scores, and the curve of corrupted images."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np

from fastcifar import plotting
from fastcifar.errors import DataError
from fastcifar.inference.corruption_scores import COLUMNS, MAX_CORRUPTIONS, NUM_SEVERITIES, is_counted
from fastcifar.report.figures import drawing
from fastcifar.report.run_files import RunFiles, clean, interval, number

MAX_SETS = 20


def other_sets(files: RunFiles) -> dict[str, Any] | None:
    """The sets in eval/, by name: those with scores, and those of corrupted images.

    sets: name, num_images, accuracy, interval, loss, ece, calibrated_ece (None if unknown) of each. corrupted: name,
    drawing, mean_accuracy, mean_error, and rows of (corruption, accuracy by severity and mean, whether it counts).
    """
    folder = files.root / "eval"
    try:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"eval: cannot be read ({error.strerror})") from error
    found: dict[str, list[dict[str, Any]]] = {"sets": [], "corrupted": []}
    for name in names:
        if sum(map(len, found.values())) == MAX_SETS:
            files.note(f"eval/: only the first {MAX_SETS} test sets are shown")
            break
        if result := files.attempt(partial(_read, name)):
            found["corrupted" if "drawing" in result else "sets"].append(result)
    return found if any(found.values()) else None


def _read(name: str, files: RunFiles) -> dict[str, Any] | None:
    """The results in a folder of eval/; None if they are not of another test set."""
    file = f"eval/{name}/metrics.json"
    metrics = files.mapping(file)
    if metrics is None or "on" not in metrics:
        return None
    weights_sha256 = files.attempt(lambda files: files.weights_sha256)
    if weights_sha256 not in (None, metrics.get("weights_sha256")):
        files.note(f"eval/{name}/: made with other weights than those of the run; make it again with 'fastcifar eval'")
    return _corrupted(files, name) if "corruptions" in metrics else _scores(file, name, metrics)


def _scores(file: str, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    has_calibration = "calibrated_ece" in metrics
    return {
        "name": clean(name),
        "interval": interval(file, metrics, "accuracy_interval"),
        "calibrated_ece": number(file, metrics, "calibrated_ece") if has_calibration else None,
        **{key: number(file, metrics, key) for key in ("num_images", "accuracy", "loss", "ece")},
    }


def _corrupted(files: RunFiles, name: str) -> dict[str, Any] | None:
    file = f"eval/{name}/corruptions.csv"
    rows = files.rows(file, COLUMNS)
    if not rows:
        return None
    by_name: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_name[row["corruption"]].append(number(file, row, "accuracy"))
    if len(by_name) > MAX_CORRUPTIONS or any(len(values) != NUM_SEVERITIES for values in by_name.values()):
        raise DataError(
            f"{file}: damaged: expected {NUM_SEVERITIES} severities of at most {MAX_CORRUPTIONS} corruptions"
        )
    names, accuracy = [clean(each) for each in by_name], np.array(list(by_name.values()))
    counted = is_counted(names)
    mean = float(accuracy[counted].mean())
    alt = f"Accuracy by severity of {len(names)} corruptions; the mean is {mean:.2%}"
    return {
        "name": clean(name),
        "mean_accuracy": mean,
        "mean_error": 1 - mean,
        "rows": [
            (each, [*values, sum(values) / len(values)], bool(is_part))
            for each, values, is_part in zip(names, accuracy.tolist(), counted, strict=True)
        ],
        "drawing": drawing(files, lambda: plotting.corruption_curves(names, accuracy, counted, ""), alt),
    }
