"""Is the suggestion of the range test a good rate? Trainings at it, at a third of it and at three times it.

    python -m benchmarks.lr_find_check --data-dir data --networks small,resnet18:layer,mobilenet_v3_small --seeds 3

`fastcifar lr-find` suggests a learning rate for each network, optimiser and seed; `fastcifar train` trains at each of
the three, constant, on all training images, and scores test.beton: build it from images that no final score uses. Each
row is saved at once, and saved rows are not measured again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import ROOT, Command, lines_of, options, save_rows, show
from benchmarks.subprocesses import run_json
from fastcifar.bench.results import environment
from fastcifar.config import AUTO_SUGGESTIONS, OPTIMIZERS
from fastcifar.errors import DivergedError

FACTORS = (1.0, 1 / 3, 3.0)
KEYS = ("name", "optimizer", "seed", "steps", "batch_size", "epochs", "factor")


def known_rows(data_dir: str) -> list[dict[str, Any]]:
    """Those that were saved for this data."""
    path = ROOT / "benchmarks" / "results" / f"{Path(__file__).stem}.jsonl"
    return [row for line in lines_of(path, "data", "rows") if line["data"] == data_dir for row in line["rows"]]


def accuracy(flags: list[str], lr: float, epochs: int) -> float | None:
    """Test accuracy after some epochs at a constant rate; None if the training diverged."""
    constant = ["--epochs", str(epochs), "--sched", "none", "--val-size", "0", "--lr", repr(lr)]
    try:
        return float(run_json("fastcifar", "train", "--json", *flags, *constant)["test_accuracy"])
    except click.ClickException as error:
        if error.exit_code != DivergedError.exit_code:
            raise
        return None


@click.command(cls=Command)
@click.option("--networks", default="small,mobilenet_v3_small,resnet18,resnet18:layer", help="NAME or NAME:NORM, each.")
@click.option("--optimizers", default="sgd", show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=100, show_default=True, type=click.IntRange(2), help="Of the range test.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1))
@options("data_dir")
def main(
    data_dir: str, networks: str, optimizers: str, seeds: int, steps: int, batch_size: int, epochs: int, save: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """The suggestion, a third of it and three times it: accuracies."""
    data = str(Path(data_dir).resolve())
    rows = known_rows(data_dir)
    known = {tuple(row[key] for key in KEYS): row for row in rows}
    cases = [(n, o, s) for o in optimizers.split(",") for n in networks.split(",") for s in range(seeds)]
    for network, optimizer, seed in cases:
        if optimizer not in OPTIMIZERS:
            raise click.BadParameter(f"{optimizer!r}; expected of: {', '.join(OPTIMIZERS)}")
        model, _, norm = network.partition(":")
        for factor in FACTORS:
            row: dict[str, Any] = dict(
                zip(KEYS, (network, optimizer, seed, steps, batch_size, epochs, round(factor, 3)), strict=True)
            )
            key = tuple(row[key] for key in KEYS)
            if key in known:
                continue
            with tempfile.TemporaryDirectory() as runs:
                flags = ["--data-dir", data, "--runs-dir", runs, "--model", model, "--norm", norm or "batch"]
                flags += ["--optimizer", optimizer, "--seed", str(seed), "--batch-size", str(batch_size)]
                if factor == 1:
                    answer = run_json("fastcifar", "lr-find", "--json", "--steps", str(steps), *flags)
                    lr = answer["suggestions"].get(AUTO_SUGGESTIONS[optimizer])
                    row |= {"suggestions": answer["suggestions"], "failure_reason": answer["failure_reason"]}
                else:
                    lr = known[(*key[:-1], 1.0)]["suggested"]
                row |= {"suggested": lr, "lr": lr and lr * factor}
                row["accuracy"] = None if lr is None else accuracy(flags, lr * factor, epochs)
            known[key] = row
            rows.append(row)
            if save:
                save_rows(__file__, [row], environment(data_dir, torch.device("cpu")))
    show(rows, ("name", "optimizer", "seed", "steps", "factor", "lr", "accuracy"), as_json)


if __name__ == "__main__":
    main()
