"""The end of a run: one look at the test set with the best weights, and what the folder keeps of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.errors import CheckpointError
from fastcifar.inference.predictions import Predictions
from fastcifar.io.figures import figure_writer
from fastcifar.io.paths import command_line
from fastcifar.loaders import Loader
from fastcifar.models import count_parameters
from fastcifar.models.probe import place
from fastcifar.training import checkpoint
from fastcifar.training.data import Loaders
from fastcifar.training.distributed import Processes
from fastcifar.training.learner import Learner
from fastcifar.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class Evaluate(Protocol):
    """How a network is run on the images of a loader; `what` is shown meanwhile."""

    def __call__(self, model: nn.Module, loader: Loader, what: str, tta: str = "none") -> Predictions: ...


def finish(run: RunFolder, learner: Learner, loaders: Loaders, evaluate: Evaluate) -> dict[str, Any]:
    """Score the test images with weights/best.safetensors; write results.csv, predictions.npz, metrics.json and, after
    them, curves.png; return what metrics.json holds. Called in all processes, written by the first."""
    first, config = learner.processes.first, learner.config
    if first:
        run.write_results(learner.progress.history)
    learner.processes.everyones(None)  # the best weights are written
    best, _, facts = checkpoint.load_weights(run.best, trusted=config.model.name)
    kept = learner.progress.best
    if kept is None or facts.get("epoch") != kept["epoch"]:
        go_on = command_line("fastcifar", "train", "--resume", run.path)
        raise CheckpointError(f"{run.best}: was exchanged while the run went on; write it again with: {go_on}")
    place(best, learner.device)
    predictions = evaluate(best, loaders.test, "test")
    scores: dict[str, Any] = {"test_accuracy": predictions.accuracy, "test_loss": predictions.loss}
    if config.tta != "none":
        augmented = evaluate(best, loaders.test, f"test, {config.tta}", config.tta)
        log.info("with test-time augmentation (%s): %.2f%%", config.tta, augmented.accuracy * 100)
        scores |= {"tta": config.tta, "tta_accuracy": augmented.accuracy, "tta_loss": augmented.loss}
    metrics = {**scores, "num_test_images": len(predictions), **_facts(learner, loaders)}
    if first:
        owners = {"weights_sha256": facts["file_sha256"], "data_sha256": loaders.test.beton.sha256}
        replace(predictions, **owners).save(run.predictions)
        run.write_metrics(metrics)
    log.info(
        "test accuracy %.2f%%, loss %.4f, on %d images",
        predictions.accuracy * 100,
        predictions.loss,
        len(predictions),
    )
    if first:
        _draw_curves(run, learner)
    return metrics


def _facts(learner: Learner, loaders: Loaders) -> dict[str, Any]:
    config, progress = learner.config, learner.progress
    held_out = loaders.val is not None
    return {
        "weights": "of the best validation accuracy" if held_out else "of the last epoch",
        "best": progress.best,
        "epochs": progress.epoch,
        "steps": progress.step,
        "plateau_watches": f"{'validation' if held_out else 'training'} {config.schedule.monitor}",
        "val_size": loaders.num_val,
        "train_seconds": round(sum(row["seconds"] for row in progress.history), 3),
        "recipe": config.recipe,
        "model": config.model.name,
        "num_parameters": count_parameters(learner.network),
        "loader": loaders.train.name,
        "device": str(learner.device),
        "processes": learner.processes.count,
        "amp": learner.amp,
        "lr": config.optimizer.lr,
        "data_sha256": learner.data.sha256,
        "test_data_sha256": loaders.test.beton.sha256,
        "seed": config.seed,
    }


def resume_command(run: RunFolder, config: TrainConfig, processes: Processes) -> str:
    """The command that goes on with a run; after its last step it writes again what `finish` writes."""
    line: list[Any] = ["fastcifar", "train", "--resume", run.path]
    line += ["--model", config.model.name] if config.model.names_code else []
    if processes.count > 1:
        line[:1] = ["torchrun", "--nproc-per-node", str(processes.local_count), "-m", "fastcifar"]
    return command_line(*line)


def _draw_curves(run: RunFolder, learner: Learner) -> None:
    def curves() -> Figure:
        from fastcifar import plotting

        return plotting.curves(learner.progress.history)

    again = f"draw it with: {resume_command(run, learner.config, learner.processes)}"
    with figure_writer(run.path, again) as write:
        write(run.curves.name, curves)
