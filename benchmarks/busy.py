"""Training steps next to other busy processes: what do OpenMP threads that spin while they wait cost?

    python benchmarks/busy.py --data-dir data

`spin` is libgomp's default, `sleep` is OMP_WAIT_POLICY=PASSIVE, `one thread` needs neither. `fastcifar train` takes as
many threads as CPUs are free (fastcifar/training/cpu_threads.py), and lets them sleep after a short spin.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import Command, failed, row, save_rows, show  # noqa: E402
from fastcifar import measure  # noqa: E402
from fastcifar.cli.program import OPENMP  # noqa: E402

POLICIES: dict[str, dict[str, str]] = {
    "spin": {},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "fastcifar train": OPENMP,
}
WARM_UP_S = 8.0


def images_per_s(data_dir: str, model: str, batch_size: int, seconds: float, adapts: bool) -> float:
    """The rate of training steps in this process. adapts: with the number of threads that `fastcifar train` takes."""
    import torch

    from fastcifar import AugmentConfig, make_loader
    from fastcifar.config import TrainConfig
    from fastcifar.models import make_model
    from fastcifar.training.cpu_threads import CpuThreads
    from fastcifar.training.device import choose_amp, keep_freed_memory
    from fastcifar.training.optimizer import make_optimizer
    from fastcifar.training.step import Step

    keep_freed_memory()
    loader = make_loader(Path(data_dir) / "train.beton", AugmentConfig(cutout_size=8), batch_size=batch_size)
    config = TrainConfig.from_settings(model=model, lr=0.01)
    network: Any = make_model(config.model, len(loader.beton.class_names), loader.beton.image_shape)
    network = network.to(memory_format=torch.channels_last)
    step = Step(network, network, make_optimizer(network, config), config, choose_amp(torch.device("cpu"), "auto"))
    threads = CpuThreads() if adapts else None
    count, started = 0, time.perf_counter()
    begin = math.inf
    while time.perf_counter() - begin < seconds:
        for batch in loader:
            if begin == math.inf and time.perf_counter() - started > WARM_UP_S:
                count, begin = 0, time.perf_counter()
            step(batch.images, batch.labels)
            if threads is not None:
                threads.after_step()
            count += 1
            if time.perf_counter() - begin >= seconds:
                break
    return count * batch_size / (time.perf_counter() - begin)


@click.command(cls=Command)
@click.option("--data-dir", default="data", show_default=True, envvar="FASTCIFAR_DATA_DIR")
@click.option("--model", default="small", show_default=True)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(2))
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1), help="Of one measurement.")
@click.option("--busy", "most", default=2, show_default=True, type=click.IntRange(0), help="Up to so many processes.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(5))
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="Of these.")
@click.option("--only", hidden=True, help="Measure this one in this process, and print the rate.")
@click.option("--save/--no-save", default=True, show_default=True, help="To benchmarks/results/busy.jsonl.")
@click.option("--json", "as_json", is_flag=True)
def main(
    data_dir: str,
    model: str,
    batch_size: int,
    seconds: float,
    most: int,
    repeats: int,
    policies: str,
    only: str | None,
    save: bool,
    as_json: bool,
) -> None:
    """Images a second alone, and next to busy processes, with threads that spin and threads that sleep."""
    if only:
        click.echo(images_per_s(data_dir, model, batch_size, seconds, only == "fastcifar train"))
        return
    flags = ["--data-dir", data_dir, "--model", model, "--batch-size", batch_size, "--seconds", seconds]
    rates = {
        (name, busy): measure.Rate(f"{name}, {busy} busy") for busy in range(most + 1) for name in policies.split(",")
    }
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for number in range(repeats):
        click.echo(f"round {number + 1} of {repeats}", err=True)
        for (name, busy), rate in rates.items():
            with ExitStack() as stack:
                for _ in range(busy):
                    other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                    stack.callback(other.kill)
                command = [sys.executable, __file__, "--only", name, *map(str, flags)]
                env = {**clean, **POLICIES[name]}
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise failed(rate.name, done.stderr)
            rate.images_per_s.append(float(done.stdout.splitlines()[-1]))
    rows = [{**row(rate.name), **rate.row()} for rate in rates.values()]
    for found in rows:
        found["of_quiet"] = round(found["images_per_s"] / median(rates[policies.split(",")[0], 0].images_per_s), 3)
    show(rows, ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "of_quiet"), as_json)
    if save:
        save_rows(__file__, rows, measure.circumstances(f"{data_dir}, {model}, batch {batch_size}"))


if __name__ == "__main__":
    main()
