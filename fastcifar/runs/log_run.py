"""Logs runs to dashboards: a training with its pictures; or, later, what the files of a run folder hold."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastcifar import plotting
from fastcifar.config import LENGTH, ExplainConfig, TrainConfig
from fastcifar.errors import DataError, UsageError, describe
from fastcifar.explain.run import explanation_grid
from fastcifar.inference.metrics import MAX_MATRIX, compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import command_line
from fastcifar.loggers import Loggers, open_loggers
from fastcifar.runs.group import group_path, is_group, load_group
from fastcifar.runs.summary import RunSummary, summaries
from fastcifar.training.distributed import Distributed
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder, find_run
from fastcifar.training.start import train
from fastcifar.training.weights import file_sha256, read_info

log = logging.getLogger(__name__)
ALL_STEPS = 2**62


def train_and_log(
    config: TrainConfig, *, group: str | None = None, reporter: Reporter | None = None, **arguments: Any
) -> tuple[RunFolder, dict[str, Any]]:
    """`fastcifar.training.train`, with pictures of the run in its logs at the end.

    group: the name of its group, if that is trained. reporter: shows progress, e.g. a `fastcifar.bars.Bars`. arguments:
    runs_dir, name and resume, as of `fastcifar.train`, but `resume` is a run folder. Returns the folder of the run, and
    the content of its metrics.json. Raises UsageError if a resumed run of a group would get another length than the
    others.
    """
    if group is None and (resumed := arguments.get("resume")) is not None:
        _require_length_of_group(config, resumed)
    is_main = Distributed.from_environment().is_main
    with open_loggers(config.runtime.log, group=group, is_main=is_main) as loggers:
        run, metrics = train(config, reporter=reporter, loggers=loggers, **arguments)
        log_images(run, loggers, trusted=config.model.name, reporter=reporter)
    return run, metrics


def _require_length_of_group(config: TrainConfig, run: RunFolder) -> None:
    """The group has means over its runs, which have to be alike."""
    if not is_group(run.path.resolve().parent):
        return
    given, own = config.to_settings(), run.read_config().to_settings()
    for name in LENGTH:
        if given[name] != own[name] and not (name == "max_steps" and config.max_minutes is not None):
            raise UsageError(
                f"{name} is {given[name]}; {run.path} is one of a group whose runs keep theirs: expected {own[name]}"
            )


def log_run(
    name: str | os.PathLike[str],
    to: Sequence[str],
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[Path, list[str]]:
    """Log the epochs, settings, final scores and pictures of a run, or of each run of a group, to dashboards.

    name: of the run or group, or its path. to: 'tensorboard', 'wandb', 'trackio'. trusted: 'package.module:function',
    the code of the run's network, if you trust it. reporter: shows progress, e.g. a `fastcifar.bars.Bars`.
    Returns the path, and the names of the runs. Existing TensorBoard events of steps are kept, all others replaced; in
    the other dashboards it is a new run. Raises MissingExtraError (3); DataError (4) if there is no such run, or it is
    damaged; CheckpointError (6); FastcifarError (1) if a dashboard fails, or a run is being trained.
    """
    open_loggers(to)  # a missing package fails before anything is written
    path = group_path(name, runs_dir)
    if path is None:
        run = find_run(name, runs_dir)
        path, group, runs = run.path, None, [RunSummary(run, run.path.resolve().name)]
    else:
        group, runs = path.resolve().name, [run for run in summaries(load_group(path)) if run.history]
    if not any(run.history for run in runs):
        command = command_line("fastcifar", "train", "--resume", path)
        raise DataError(f"{path}: no epoch is completed; train it with: {command}")
    for each in runs:
        busy = "another process is training this run; log it when that has ended"
        with lock_folder(each.run.path, busy), open_loggers(to, group=group, strict=True) as loggers:
            settings = each.run.read_config().to_settings()
            loggers.begin(each.run.path, settings, step=ALL_STEPS, history=(), is_resumed=False)
            for row in each.history:
                loggers.epoch({**row, "epoch": int(row["epoch"])})
            if not each.has_diverged and each.is_finished:
                loggers.finish(each.metrics)
                log_images(each.run, loggers, trusted=trusted, reporter=reporter)
    return path, [run.name for run in runs]


def log_images(
    run: RunFolder, loggers: Loggers, *, trusted: str | None = None, reporter: Reporter | None = None
) -> None:
    """Log the confusion matrix of the test images, and class activation maps of those of largest loss.

    A run that was not tested has none; what cannot be drawn is left out, with a warning.
    """
    if not loggers.is_active or not run.predictions.is_file():
        return
    drawings: dict[str, Callable[[], bytes | None]] = {
        "confusion": lambda: _confusion(run),
        "class_activation_maps": lambda: _maps(run, trusted, reporter),
    }
    for name, draw in drawings.items():
        try:
            picture = draw()
        except Exception as error:  # noqa: BLE001 (the training is complete, whatever matplotlib or explain fail with)
            log.warning("%s: the picture %r is not logged: %s", run.path, name, describe(error))
            continue
        if picture is not None:
            loggers.image(name, picture)


def _confusion(run: RunFolder) -> bytes | None:
    predictions, names = Predictions.load(run.predictions), read_info(run.best).class_names
    if predictions.weights_sha256 != file_sha256(run.best):
        raise DataError(f"{run.predictions}: of other weights; make it again with 'fastcifar eval'")
    if len(names) > MAX_MATRIX:
        return None
    title = f"{run.path.resolve().name}: {len(predictions):,} test images"
    return plotting.png(plotting.confusion_matrix(compute_metrics(predictions).confusion, names, title))


def _maps(run: RunFolder, trusted: str | None, reporter: Reporter | None) -> bytes | None:
    """None if no image is misclassified."""
    figure = explanation_grid(run, ExplainConfig(methods=("hirescam",)), trusted=trusted, reporter=reporter)
    return None if figure is None else plotting.png(figure)
