"""`train` and `Run`: a training and what came of it, in Python. Above all other packages, next to `cli`."""

from __future__ import annotations

import base64
import copy
import html
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastcifar import plotting, recipes, report
from fastcifar.bars import Bars
from fastcifar.config import SPLITS, TTA_MODES, ExplainConfig, TrainConfig
from fastcifar.errors import CheckpointError, DataError, UsageError, describe
from fastcifar.explain import Maps
from fastcifar.explain.run import explain_images
from fastcifar.inference.evaluation import Evaluation, evaluate_run
from fastcifar.inference.export import Export, export
from fastcifar.inference.metrics import Metrics, compute_metrics
from fastcifar.inference.predict_files import ImagePredictions, predict_images
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.checks import require_choice, shown
from fastcifar.io.paths import user_path
from fastcifar.runs.log_run import train_and_log
from fastcifar.runs.summary import RunSummary, read_history, read_metrics
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.distributed import Distributed
from fastcifar.training.run_folder import COLUMNS, RunFolder, find_run
from fastcifar.training.weights import read_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
StrPath: TypeAlias = "str | os.PathLike[str]"


class Run:
    """A trained run: the files of its folder, and its network.

    The files are read whenever they are asked for, so they grow with a training; the network is loaded once.

    Examples:
        >>> run = Run("fast")  # or Run("runs/fast"); Run() is the latest in runs/
        >>> run.history["train_loss"].shape  # one value per epoch
        (1,)
        >>> predictions = run.predictions("test")
        >>> predictions.logits.shape, predictions.confidence.shape
        ((40, 10), (40,))
        >>> maps = run.explain(n=4, methods=["hirescam"], layers=["layer2"])
        >>> maps.maps.shape  # (targets, methods, images, layers, H, W)
        (1, 1, 4, 1, 32, 32)
        >>> figure = maps.grid()
    """

    def __init__(
        self,
        run: StrPath | None = None,
        *,
        runs_dir: StrPath = "runs",
        data_dir: StrPath | None = None,
        device: str = "auto",
        trusted: str | None = None,
    ) -> None:
        """run: its name in `runs_dir`, or its path; None for the latest. data_dir: the folder of its betons, by default
        where they were in training. device: 'auto', 'cpu', 'cuda', …. trusted: 'package.module:function', the code of
        its network, if that is your own.

        Raises DataError if there is no such run; CheckpointError if it has no weights.
        """
        # absolute: the run stays the same when the working folder changes
        self._folder = RunFolder(find_run(run, runs_dir, trained=True).path.absolute())
        data_dir = None if data_dir is None else user_path(data_dir, "data_dir").absolute()
        self._options: dict[str, Any] = {"data_dir": data_dir, "device": device, "trusted": trusted}

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self._folder.path

    def __fspath__(self) -> str:
        """The folder: a run can be given wherever the path of one is expected."""
        return str(self.path)

    @property
    def config(self) -> TrainConfig:
        """Its settings. Raises DataError if they are damaged."""
        return self._folder.read_config()

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: test_accuracy (0..1), test_loss (nats), …; empty before training has ended.
        Raises DataError if it is damaged."""
        return read_metrics(self._folder)

    @property
    def history(self) -> dict[str, npt.NDArray[np.float64]]:
        """The columns of results.csv by name: epoch, lr, train_loss, …, (epochs,) float64 each; NaN where there is no
        value. `pandas.DataFrame(run.history)` is a table. Raises DataError if the file is damaged."""
        rows = read_history(self._folder)
        return {name: np.array([row.get(name, np.nan) for row in rows], np.float64) for name in COLUMNS}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the C classes, in the order of the logits."""
        return read_info(self._folder.best).class_names

    @standard_torch_defaults()
    def model(self) -> nn.Module:
        """A copy of the network with the best weights, (N, 3, H, W) float32 -> (N, C) logits, in evaluation mode, on
        the device.

        Images are normalised first: `normalise`.
        """
        return copy.deepcopy(self._trained.model)

    @standard_torch_defaults()
    def normalise(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 on the device, with the mean and std of the training images.
        Raises UsageError for other arrays."""
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[3:] != (3,):
            is_array = isinstance(images, np.ndarray)
            given = f"{images.dtype} of shape {images.shape}" if is_array else type(images).__name__
            raise UsageError(f"images is {given}; expected a NumPy array, uint8 of shape (N, H, W, 3)")
        return self._trained.normalise(images if images.flags.writeable else images.copy())  # else torch warns

    @standard_torch_defaults()
    def predictions(self, split: str = "test", *, tta: str = "none") -> Predictions:
        """The predictions on 'test', or on 'val', the images held out from training; stored ones where there are.

        tta: test-time augmentation, 'none', 'flip' or 'flip-shift'. Raises DataError if the beton is missing or does
        not fit; UsageError if no image was held out. Nothing is written.
        """
        require_choice("split", split, SPLITS)
        require_choice("tta", tta, TTA_MODES)
        return self._trained.predictions(split, tta=tta)

    def scores(self, split: str = "test", *, tta: str = "none") -> Metrics:
        """Accuracy with its interval, precision, recall, F1 and calibration error of `predictions`."""
        return compute_metrics(self.predictions(split, tta=tta))

    def confusion(self, split: str = "test", *, tta: str = "none") -> npt.NDArray[np.int64]:
        """(C, C): number of images by true class (row) and predicted class (column)."""
        return self.scores(split, tta=tta).confusion

    @standard_torch_defaults()
    def explain(self, images: StrPath | Iterable[StrPath] | None = None, **settings: Any) -> Maps:
        """Class activation maps of misclassified test images, or of your own; no file is written.

        images: files, folders, patterns, archives or betons; None: test images. What cannot be read is left out, with a
        warning. settings: those of `fastcifar.config.ExplainConfig`: n, select, correct, layers, methods, target, seed.
        Raises UsageError for a wrong setting; DataError if test.beton is missing, or none of the images can be read.
        """
        explanation = explain_images(self._trained, ExplainConfig(**settings), images)
        errors = () if explanation.own is None else explanation.own.errors
        if errors and not len(explanation.maps):
            name, reason = errors[0]
            raise DataError(f"{name}: {reason}" + f"; none of the {len(errors):,} can be read" * (len(errors) > 1))
        for name, reason in errors:
            log.warning("%s: %s; left out", name, reason)
        return explanation.maps

    @standard_torch_defaults()
    def predict(self, paths: StrPath | Iterable[StrPath]) -> ImagePredictions:
        """Classify images of any size: files, folders, patterns, archives, betons. See `fastcifar.predict`."""
        return predict_images(self._trained, paths)

    def evaluate(self, split: str = "test", *, tta: str = "none") -> Evaluation:
        """Write metrics, predictions.csv and figures to eval/ in the folder, as `fastcifar eval` does."""
        return evaluate_run(self._folder, split=split, tta=tta, **self._options)

    def export(self, output: StrPath | None = None, *, format: str = "onnx", model_card: bool = False) -> Export:
        """Write the network as 'onnx' or 'torch' (.pt2), compared with torch on all test images. See
        `fastcifar.export`."""
        options = {key: value for key, value in self._options.items() if key != "device"}
        return export(self._folder, format=format, output=output, model_card=model_card, **options)

    def report(self) -> Path:
        """Write report.html, one page with all that is known of the run; returns its path."""
        return report.write_report(self._folder)

    def curves(self) -> Figure:
        """Loss, accuracy and learning rate by epoch."""
        return plotting.curves(self._rows(), best=(self._summary.best or {}).get("epoch"))

    @cached_property
    def _trained(self) -> TrainedRun:
        return TrainedRun(self._folder, is_read_only=True, **self._options)

    def _rows(self) -> list[dict[str, Any]]:
        rows = read_history(self._folder)
        return [{**{name: row.get(name) for name in COLUMNS}, "epoch": int(row["epoch"])} for row in rows]

    @property
    def _summary(self) -> RunSummary:
        return RunSummary(self._folder, self._folder.path.name)

    def __repr__(self) -> str:
        accuracy = self._summary.score("test_accuracy")
        return f"Run({str(self.path)!r}" + ("" if accuracy is None else f", test_accuracy={accuracy:.4f}") + ")"

    def _repr_html_(self) -> str:
        """Scores and curves, in notebooks."""
        summary = self._summary
        rows = {"run": str(self.path), "recipe": summary.config and summary.config.recipe}
        for name, key, form in (
            ("test accuracy", "test_accuracy", "{:.2%}"),
            ("with test-time augmentation", "tta_accuracy", "{:.2%}"),
            ("test loss", "test_loss", "{:.4f}"),
            ("epochs", "epochs", "{:.0f}"),
            ("training time", "train_seconds", "{:,.0f} s"),
        ):
            score = summary.score(key)
            rows[name] = None if score is None else form.format(score)
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
            if value
        )
        return f"<table>{cells}</table>{self._curves_html()}"

    def _curves_html(self) -> str:
        if not self._summary.history:
            return ""
        try:
            picture = base64.b64encode(plotting.png(self.curves())).decode()
        except Exception as error:  # noqa: BLE001 (whatever matplotlib fails with, the table is there)
            log.warning("%s: its curves cannot be drawn: %s", self.path, describe(error))
            return ""
        source, alt = f"data:image/png;base64,{picture}", "loss, accuracy and learning rate by epoch"
        return f"<img src='{source}' alt='{alt}' style='max-width:100%'>"


def train(
    config: TrainConfig | None = None,
    *,
    runs_dir: StrPath = "runs",
    name: str | None = None,
    resume: StrPath | None = None,
    progress: bool = True,
) -> Run:
    """Train a network; returns the finished run, whose folder holds weights, predictions, curves and report.html.

    config: all settings, by default those of a run that is resumed, otherwise the defaults. name: of the folder in
    `runs_dir`, by default that of the recipe or the network. resume: continue this run, from where it was saved;
    `Run()` is the latest.
    progress: show a progress bar, in a terminal or a notebook; elsewhere what log.txt records. Warnings are shown in
    any case. If the program has configured `logging`, that alone says what is shown next to the bar.
    Raises DataError, DivergedError, CheckpointError, UsageError, MissingExtraError, all of them FastcifarError; and
    Stopped after a signal, once all is saved.

    Examples:
        >>> config = TrainConfig.from_settings(model="small", epochs=1, batch_size=40)
        >>> run = train(config, name="first", progress=False)
        >>> 0 <= run.metrics["test_accuracy"] <= 1
        True
    """
    if config is not None:
        _check_config(config)
    folder = None
    if resume is not None:
        if name is not None:
            raise UsageError(
                f"name is {name!r}, and resume continues a run, which keeps its name; expected one of them"
            )
        folder = find_run(resume, runs_dir)
        if config is None:
            config = folder.read_config()
            if config.model.names_code:
                raise CheckpointError(
                    f"{folder.path}: its network is {config.model.name}, {config.model.origin}; if you trust it, give "
                    "its settings: config"
                )
    is_main = Distributed.from_environment().is_main
    config = config or TrainConfig()
    shown = progress and is_main
    with Bars(shown) as bars, _log_to_stderr(logging.INFO if shown and not bars.is_shown else logging.WARNING):
        folder, _ = train_and_log(config, runs_dir=runs_dir, name=name, resume=folder, reporter=bars)
    if is_main:
        report.write_report_or_warn(folder)
    trusted = config.model.name if config.model.names_code else None
    return Run(folder.path, device=config.runtime.device, trusted=trusted)


@contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    """In the block, messages from `level` on are shown, unless the program has configured `logging`, which by itself
    shows no warning while a run has its log file."""
    logger = logging.getLogger("fastcifar")
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _check_config(config: TrainConfig) -> None:
    """Raise UsageError for another type, or a config with the name of a recipe and none of its settings."""
    if not isinstance(config, TrainConfig):
        raise UsageError(f"config is {shown(config)}; expected a TrainConfig, e.g. TrainConfig.from_settings(epochs=3)")
    if config.recipe in recipes.names():
        recipe, settings = recipes.load(str(config.recipe)), config.to_settings()
        usual = TrainConfig().to_settings()
        if all(settings[name] == usual[name] for name in recipe.settings):
            raise UsageError(
                f"recipe is {config.recipe!r}, but config has none of its settings; start from it: "
                f"fastcifar.recipes.load({config.recipe!r}).config"
            )
