"""How often does `fastcifar runs compare` find a difference where there is none?

    python -m benchmarks.false_alarms --data-dir data --recipe fast --max-steps 60 --batch-size 256

Trains a pool of runs of one recipe that differ in their seed alone (a group of `fastcifar train --seeds`, resumed if it
exists), draws pairs of groups from it, without common runs, and compares each pair by Welch's t-test at level 0.05.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import Command, options, row, save_rows, show
from fastcifar import recipes
from fastcifar.bench.results import environment
from fastcifar.runs.group import create_group, is_group, load_group, seed_members
from fastcifar.runs.statistics import LEVEL, welch
from fastcifar.runs.summary import summaries
from fastcifar.runs.train_group import train_group


@click.command(cls=Command)
@click.option("--pool", "pool_dir", default="build/false-alarms", show_default=True, help="Folder of the runs.")
@click.option("--recipe", default="fast", show_default=True)
@click.option("--max-steps", default=60, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(2))
@click.option("--num-runs", default=40, show_default=True, type=click.IntRange(4), help="Runs in the pool.")
@click.option("--num-seeds", default=5, show_default=True, type=click.IntRange(2), help="Runs in each group.")
@click.option("--comparisons", default=200, show_default=True, type=click.IntRange(1))
@options("data_dir")
def main(
    pool_dir: str,
    recipe: str,
    max_steps: int,
    batch_size: int,
    num_runs: int,
    num_seeds: int,
    comparisons: int,
    data_dir: str,
    save: bool,
    as_json: bool,
) -> None:
    """Count false alarms of comparisons of groups of runs."""
    path = Path(pool_dir)
    if is_group(path):
        pool = load_group(path)
    else:
        config = recipes.load(recipe).config.with_settings(
            max_steps=max_steps, batch_size=batch_size, data_dir=data_dir, tta="none"
        )
        pool = create_group(path.parent, path.name, "seeds", config, seed_members(range(num_runs)))
    train_group(pool)
    scores = np.array([run.score("test_accuracy") for run in summaries(pool)], dtype=np.float64)
    random = np.random.default_rng(0)
    drawn = [random.permutation(len(scores))[: 2 * num_seeds] for _ in range(comparisons)]
    tests = [welch(scores[each[:num_seeds]].tolist(), scores[each[num_seeds:]].tolist()) for each in drawn]
    rows = [
        row(
            f"{num_seeds} against {num_seeds} of {len(scores)} runs",
            comparisons=comparisons,
            false_alarms=float(np.mean([test.is_significant for test in tests])),
            level=LEVEL,
            mean_accuracy=float(scores.mean()),
            std_accuracy=float(scores.std(ddof=1)),
        )
    ]
    show(rows, ("name", "comparisons", "false_alarms", "level", "mean_accuracy", "std_accuracy"), as_json)
    if save:
        about = f"{recipe}, {max_steps} steps of {batch_size} images of {data_dir}"
        save_rows(__file__, rows, environment(about, torch.device("cpu")))


if __name__ == "__main__":
    main()
