"""Seconds that `fastcifar train` takes before its first step and after its last, in a fresh process.

    python -m benchmarks.whole_program --data-dir data --json

`start_s` ends with the first update of the weights: imports, opening and hashing the betons, the loader, the network.
`exit_s` begins with the last: the test, also with test-time augmentation, calibration, the files of the run, the end of
the process. `test_s` is the test in it. The run is cut to a few steps; Numba's cache is filled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from benchmarks import ROOT, Command, options, row, save_rows, show
from benchmarks.subprocesses import failure
from fastcifar.bench.results import environment
from fastcifar.training.device import choose_device

PROGRAM = """if True:
    import atexit, json, sys, time
    from fastcifar.training.step import TrainStep
    from fastcifar.training.trainer import Trainer
    calls = {"__call__": [], "evaluate": []}
    def timed(cls, name):
        function = getattr(cls, name)
        def call(*args, **more):
            begin = time.time()
            result = function(*args, **more)
            calls[name].append((begin, time.time()))
            return result
        setattr(cls, name, call)
    timed(TrainStep, "__call__")
    timed(Trainer, "evaluate")
    answer = sys.argv.pop(1)
    atexit.register(lambda: json.dump(calls, open(answer, "w")))
    from fastcifar.cli import main
    main(prog_name="fastcifar")
"""


def one(flags: list[str]) -> dict[str, float]:
    """Seconds of a run."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "calls.json"
        command = [sys.executable, "-c", PROGRAM, str(answer), "train", *flags, "--runs-dir", folder]
        begin = time.time()
        process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        end = time.time()
        if process.returncode:
            raise failure("fastcifar train", process.stderr, process.returncode)
        calls = json.loads(answer.read_text())
    steps, tests = calls["__call__"], calls["evaluate"]
    return {
        "start_s": steps[0][1] - begin,
        "exit_s": end - steps[-1][1],
        "test_s": sum(last - first for first, last in tests),
    }


@click.command(cls=Command)
@click.option("--recipe", default="fast", show_default=True)
@click.option("--max-steps", default=20, show_default=True, type=click.IntRange(1))
@options("data_dir", "device", "repeats")
def main(recipe: str, max_steps: int, data_dir: str, device: str, repeats: int, save: bool, as_json: bool) -> None:
    """From the start to the first step, and from the last to the exit."""
    flags = ["--recipe", recipe, "--max-steps", str(max_steps), "--data-dir", str(Path(data_dir).resolve())]
    flags += ["--device", device]
    one(flags)  # fills the caches
    runs = [one(flags) for _ in range(repeats)]
    result = row(f"train --recipe {recipe}", repeats=repeats)
    for key in runs[0]:
        values = [run[key] for run in runs]
        result |= {
            key: round(median(values), 2),
            f"{key}_min": round(min(values), 2),
            f"{key}_max": round(max(values), 2),
        }
    show([result], ("name", "start_s", "exit_s", "test_s", "repeats"), as_json)
    if save:
        save_rows(__file__, [result], environment(data_dir, choose_device(device)))


if __name__ == "__main__":
    main()
