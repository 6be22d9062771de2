"""Training steps next to other busy processes: what do OpenMP threads that spin while they wait cost?

    python -m benchmarks.busy --data-dir data

`spin` is libgomp's default, `sleep` is OMP_WAIT_POLICY=PASSIVE, `one thread` needs neither. `fastcifar train` uses as
many threads as CPUs are free (CpuThreads in fastcifar/training/device.py), and lets them sleep after a short spin.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks import Command, options, row, save_rows, show
from benchmarks.subprocesses import failure
from fastcifar.bench.measure import Throughput
from fastcifar.bench.results import environment
from fastcifar.cli.program import OPENMP
from fastcifar.errors import UsageError

POLICIES: dict[str, dict[str, str]] = {
    "spin": {},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "fastcifar train": OPENMP,
}
WARM_UP_S = 8.0


def images_per_s(data_dir: str, model: str, batch_size: int, seconds: float, adapts: bool) -> float:
    """The rate of training steps in this process. adapts: with the number of threads that `fastcifar train` uses."""
    import torch

    from fastcifar import AugmentConfig, make_loader
    from fastcifar.config import TrainConfig
    from fastcifar.models import make_model
    from fastcifar.training.device import CpuThreads, choose_amp, keep_freed_memory
    from fastcifar.training.optimizer import make_optimizer
    from fastcifar.training.step import TrainStep

    keep_freed_memory()
    loader = make_loader(Path(data_dir) / "train.beton", AugmentConfig(cutout_size=8), batch_size=batch_size)
    config = TrainConfig.from_settings(model=model, lr=0.01)
    network: Any = make_model(config.model, len(loader.beton.class_names), loader.beton.image_shape)
    network = network.to(memory_format=torch.channels_last)
    step = TrainStep(network, network, make_optimizer(network, config), config, choose_amp(torch.device("cpu"), "auto"))
    threads = CpuThreads(adapts)
    count, started = 0, time.perf_counter()
    begin = math.inf
    while time.perf_counter() - begin < seconds:
        for batch in loader:
            if begin == math.inf and time.perf_counter() - started > WARM_UP_S:
                count, begin = 0, time.perf_counter()
            step(batch.images, batch.labels)
            threads.after_step()
            count += 1
            if time.perf_counter() - begin >= seconds:
                break
    return count * batch_size / (time.perf_counter() - begin)


@click.command(cls=Command)
@click.option("--model", default="small", show_default=True)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(2))
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1), help="Duration of one measurement."
)
@click.option(
    "--busy", "max_busy", default=2, show_default=True, type=click.IntRange(0), help="Busy processes, at most."
)
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="Which of these.")
@click.option("--only", hidden=True, help="Measure this policy in this process.")
@options("data_dir", "repeats")
def main(
    data_dir: str,
    model: str,
    batch_size: int,
    seconds: float,
    max_busy: int,
    repeats: int,
    policies: str,
    only: str | None,
    save: bool,
    as_json: bool,
) -> None:
    """Images per second alone and next to busy processes, with threads that spin or sleep."""
    if only:
        click.echo(images_per_s(data_dir, model, batch_size, seconds, only == "fastcifar train"))
        return
    flags = ["--data-dir", data_dir, "--model", model, "--batch-size", batch_size, "--seconds", seconds]
    names = policies.split(",")
    if unknown := [name for name in names if name not in POLICIES]:
        raise UsageError(f"--policies has {unknown[0]!r}; expected of: {', '.join(POLICIES)}")
    results = {(name, busy): Throughput(f"{name}, {busy} busy") for busy in range(max_busy + 1) for name in names}
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for number in range(repeats):
        click.echo(f"round {number + 1} of {repeats}", err=True)
        for (name, busy), result in results.items():
            with ExitStack() as stack:
                for _ in range(busy):
                    other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                    stack.callback(other.kill)
                command = [sys.executable, "-m", "benchmarks.busy", "--only", name, *map(str, flags)]
                env = {**clean, **POLICIES[name]}
                process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if process.returncode:
                raise failure(result.name, process.stderr, process.returncode)
            result.images_per_s.append(float(process.stdout.splitlines()[-1]))
    rows = [{**row(result.name), **result.row()} for result in results.values()]
    quiet = median(results[names[0], 0].images_per_s)
    for values in rows:
        values["of_quiet"] = round(values["images_per_s"] / quiet, 3)
    show(rows, ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "of_quiet"), as_json)
    if save:
        save_rows(__file__, rows, environment(f"{data_dir}, {model}, batch {batch_size}"))


if __name__ == "__main__":
    main()
