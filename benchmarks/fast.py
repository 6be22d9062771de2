"""Training time and accuracy: the recipe `fast` next to scripts that train to 94%, on the same machine and images.

    python -m benchmarks.fast --data-dir data --seeds 5 --airbench cifar10-airbench --hiverge cifar10-speedrun

`--airbench` and `--hiverge` are checkouts of github.com/KellerJordan/cifar10-airbench and of
github.com/hiverge/cifar10-speedrun; without one its row is left out, by name. All are trained once for each seed, in
turn. `train_seconds` is training alone, without evaluation, for all. Accuracies are means over the seeds, and `ci95`
is half the width of their 95% interval (Student's t); seconds are the median.
With `--trainings FILE` each training is appended to FILE when it ends, and those in it are not repeated: the same
command goes on where it stopped, on the same machine; `commits` are those of all calls. `--without TRICK` adds the
recipe without one of the things that make it fast, to see what that one brings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from benchmarks import GOES_ON, Command, append_line, lines_of, options, require_same, save_rows, show
from benchmarks.peers.speedrun import source_of
from benchmarks.subprocesses import run_json
from fastcifar.bench.results import environment
from fastcifar.errors import UsageError
from fastcifar.loaders.base import usable_device
from fastcifar.runs.statistics import mean_of

WITHOUT = {
    "progressive": "--progressive=",
    "muon": "--optimizer sgd --lr 0.5 --momentum 0.9 --weight-decay 0.0005 --pct-start 0.2",
    "sgd-for-the-rest": "--aux-optimizer adamw --aux-lr 0.01 --bias-lr 0.01 --weight-decay 0",
    "label-smoothing": "--label-smoothing 0",
    "alternating-flips": "--flip-mode random",
    "reflected-crops": "--padding-mode zero",
    "bf16": "--amp off",
}
"""Flags that replace each trick by the usual method."""
KEYS = ("train_seconds", "test_accuracy", "tta_accuracy")
SAME = ("machine", "fast_bf16", "cores", "threads", "gpu", "versions", "data")
"""What the trainings of one row have in common."""
PEERS = {"airbench94_muon": "airbench", "cifar10_speedrun": "hiverge"}
"""The other scripts, and the option that names a checkout of each."""


def summary(name: str, trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of one way to train."""
    row: dict[str, Any] = {"name": name, "trainings": len(trainings)}
    if not trainings:
        return {**row, **dict.fromkeys(KEYS), "note": f"skipped: no --{PEERS[name]}"}
    row["train_seconds"] = round(median(each["train_seconds"] for each in trainings), 1)
    for key in KEYS[1:]:
        scores = mean_of([each[key] for each in trainings])
        row[key] = round(scores.mean, 4)
        row[key.replace("accuracy", "ci95")] = None if scores.half_width is None else round(scores.half_width, 4)
    row["commits"] = sorted({each["commit"] for each in trainings if each.get("commit")})
    row["each"] = [{key: round(each[key], 4) for key in KEYS} for each in trainings]
    return row


def finished(path: Path, about: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """The trainings in a file of earlier calls, by name and seed. Raises UsageError if one was made elsewhere."""
    path.touch()  # fails here if it cannot be written
    trainings = {}
    for each in lines_of(path, "name", "seed", *KEYS):
        name, seed = each["name"], each["seed"]
        require_same(each, about, SAME, f"{path}: {name}, seed {seed}", "use another file")
        trainings[name, seed] = each
    return trainings


def script_in(checkout: str | None, name: str, device: torch.device) -> Path | None:
    """The script of a peer in the checkout of its option, if that is given. Raises UsageError if it has none, or
    another version, before anything is trained."""
    if checkout is None:
        return None
    script = Path(checkout).resolve() / f"{name}.py"
    if not script.is_file():
        raise UsageError(f"--{PEERS[name]} is {checkout!r}, which has no {script.name}; expected a checkout with it")
    source_of(script, device)
    return script


@click.command(cls=Command)
@click.option("--recipe", default="fast", show_default=True)
@click.option("--airbench", type=click.Path(exists=True, file_okay=False), help="Checkout of cifar10-airbench.")
@click.option("--hiverge", type=click.Path(exists=True, file_okay=False), help="Checkout of cifar10-speedrun.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Trainings of each.")
@click.option("--trainings", type=click.Path(dir_okay=False, path_type=Path), help="File to go on from.")
@click.option("--without", multiple=True, type=click.Choice([*WITHOUT, "all"]), help="Leave this out, in a row more.")
@options("data_dir", "device")
def main(
    data_dir: str, recipe: str, device: str, seeds: int, trainings: Path | None, without: tuple[str, ...], save: bool,
    as_json: bool, **checkouts: str | None,
) -> None:  # fmt: skip
    """Time and accuracy of trainings."""
    data = str(Path(data_dir).resolve())
    left_out = tuple(WITHOUT) if "all" in without else without
    ways = {f"fastcifar {recipe}": ""}
    ways |= {f"fastcifar {recipe}, without {name}": WITHOUT[name] for name in left_out}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (*ways, *PEERS)}
    torch_device = usable_device(device)
    scripts = {name: script_in(checkouts[option], name, torch_device) for name, option in PEERS.items()}
    about = environment(data_dir, torch_device)
    done = {} if trainings is None else finished(trainings, about)
    click.get_current_context().meta[GOES_ON] = trainings is not None

    def run(name: str, seed: int, *command: str) -> None:
        training = done.get((name, seed))
        if training is None:
            printed = run_json(*command)
            made = {key: about[key] for key in (*SAME, "time", "commit")}
            training = {"name": name, "seed": seed, **{key: printed[key] for key in KEYS}, **made}
            if trainings is not None:
                append_line(trainings, training)
        results[name].append(training)
        click.echo(f"{name}, seed {seed}: {summary(name, [training])['each'][0]}", err=True)

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--recipe", recipe, "--data-dir", data, "--runs-dir", folder, "--device", device, "--json"]
        for seed in range(seeds):
            for name, changes in ways.items():
                run(name, seed, "fastcifar", "train", *flags, "--seed", str(seed), *changes.split())
            for name, script in scripts.items():
                if script is not None:
                    run(name, seed, "benchmarks.peers.speedrun", str(script), data, device, str(seed))
    rows = [summary(name, runs) for name, runs in results.items()]
    show(rows, ("name", *KEYS, "test_ci95", "tta_ci95", "trainings", "note"), as_json)
    if save:
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
