"""Does a recipe reproduce its experiment? Each, shortened, next to the same training written in plain PyTorch.

    python -m benchmarks.recipes --data-dir data --shorten 10 --json
    python -m benchmarks.recipes --data-dir data --shorten 1 --recipes layernorm

`--shorten 10` trains a tenth of the epochs and shortens what counts in epochs with it (patience, step size), so that
the learning rate decays alike; 1 trains to the end. `peers/plain_training.py` is the plain training; where the learning
rate comes from a range test, it gets ours. Each training is a process of its own; its row is saved when it is done.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks import Command, options, save_rows, show
from benchmarks.subprocesses import run_json
from fastcifar import recipes
from fastcifar.bench.results import environment
from fastcifar.config import TrainConfig
from fastcifar.training.device import choose_device

KEYS = ("test_accuracy", "train_accuracy", "train_seconds")
ORIGINS = tuple(name for name in recipes.names() if "origin" in recipes.load(name).about)


def shortened(config: TrainConfig, by: float) -> TrainConfig:
    """The same schedule of the learning rate in fewer epochs."""
    return config.with_settings(
        epochs=max(1, round(config.epochs / by)),
        patience=round(config.schedule.patience / by),
        step_size=max(1, round(config.schedule.step_size / by)),
        warmup_epochs=config.schedule.warmup_epochs / by,
    )


def ours(config: TrainConfig, data_dir: str, device: str) -> dict[str, Any]:
    """Train with `fastcifar train`; what its metrics and results.csv say."""
    with tempfile.TemporaryDirectory() as runs:
        flags = ["--recipe", str(config.recipe), "--data-dir", data_dir, "--runs-dir", runs, "--device", device]
        for name in ("epochs", "patience", "step_size", "warmup_epochs"):
            flags += [f"--{name.replace('_', '-')}", str(config.to_settings()[name])]
        metrics = run_json("fastcifar", "train", "--json", *flags)
        last = (Path(runs) / str(config.recipe) / "results.csv").read_text(encoding="utf-8").splitlines()
        trained = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    values = {key: metrics[key] for key in ("test_accuracy", "train_seconds", "lr")}
    return {**values, "train_accuracy": float(trained["train_accuracy"])}


def train_reference(config: TrainConfig, data_dir: str, device: str) -> dict[str, Any]:
    """The same in plain PyTorch."""
    return run_json("benchmarks.peers.plain_training", json.dumps(config.to_settings()), data_dir, device)


@click.command(cls=Command)
@click.option("--recipes", "names", multiple=True, default=ORIGINS, type=click.Choice(ORIGINS), help="One or several.")
@click.option("--shorten", default=10.0, show_default=True, type=click.FloatRange(1), help="Train 1/N of the epochs.")
@click.option(
    "--reference/--no-reference", "with_reference", default=True, show_default=True, help="Train in plain PyTorch too."
)
@options("data_dir", "device")
def main(
    data_dir: str, names: tuple[str, ...], shorten: float, with_reference: bool, device: str, save: bool, as_json: bool
) -> None:
    """Scores of the recipes that reproduce an experiment."""
    data = str(Path(data_dir).resolve())
    has_peer = find_spec("albumentations") is not None
    rows = []
    for name in names:
        whole = recipes.load(name).config
        config = shortened(whole, shorten)
        row: dict[str, Any] = {"name": name, "epochs": config.epochs, "of_epochs": whole.epochs}
        row |= ours(config, data, device)
        if with_reference and not has_peer:
            row["note"] = "reference skipped: Albumentations is not installed"
        elif with_reference:
            metrics = train_reference(config.with_settings(lr=row["lr"]), data, device)
            row |= {f"reference_{key}": metrics[key] for key in KEYS}
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        rows.append(row)
        if save:
            save_rows(__file__, [row], environment(data_dir, choose_device(device)))
    show(rows, ("name", "epochs", "of_epochs", "lr", *KEYS, *(f"reference_{key}" for key in KEYS), "note"), as_json)


if __name__ == "__main__":
    main()
