"""All that a GPU is needed for, in one command: what is most worth having first, each part within nine minutes.

    make gpu OUT=gpu-results FASTCIFAR_SOURCE=cifar10-images.tar.xz
    python -m benchmarks.gpu --out gpu-results --data-dir data --airbench cifar10-airbench

Each step is a benchmark of this folder, or a command, in a process of its own. When it ends, a line with its rows is
appended to OUT/results.jsonl, with GPU, driver and versions; its log is in OUT/logs/. Started again with the same OUT,
it repeats what failed, was killed at its time limit, or was left out, and goes on; another machine, other images and
`--quick` need another OUT. Nothing is downloaded: what is not installed is left out, by name. 25 minutes together
(`--minutes`); what does not fit is left for another call, and the exit code is 1. `--quick --device cpu` goes through
the same steps with tiny counts, to test this command.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import GOES_ON, ROOT, Command, append_line, lines_of, require_same
from benchmarks.gpu_steps import Plan, Step, plan_steps, rows_in
from benchmarks.subprocesses import last_line, run_group
from fastcifar.errors import DataError, UsageError

PART_S = 9 * 60.0
NO_TIME = "no time left in this call"
SAME = ("gpu", "machine", "data")
"""What the steps of one OUT have in common."""
ABOUT = """if True:
    import json, subprocess, sys
    import torch
    from fastcifar.bench.results import environment
    from fastcifar.loaders.base import usable_device
    device = usable_device(sys.argv[1])
    about = environment(sys.argv[2], device)
    about["cuda"], about["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    about["driver"] = None
    if device.type == "cuda":
        about["compute_capability"] = list(torch.cuda.get_device_capability(device))
        try:
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
            about["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
        except OSError:
            pass
    print(json.dumps(about))
"""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: done, failed, killed or skipped; the reason, unless done; and its rows."""

    status: str
    reason: str = ""
    rows: tuple[dict[str, Any], ...] = ()


def run_step(step: Step, folder: Path, limit_s: float) -> Outcome:
    """Run the command of a step, with its output in `folder`/logs; it is killed, with all it started, after
    `limit_s` seconds."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    output, errors = (logs / f"{step.file_name}{suffix}" for suffix in (".out", ".log"))
    if step.reads == "tests" and step.file is not None:
        step.file.unlink(missing_ok=True)  # of an earlier call
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        try:
            code = run_group(step.command, limit_s, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr).returncode
        except subprocess.TimeoutExpired:
            return Outcome("killed", f"not done after {limit_s:.0f} s", tuple(rows_in(step, output, complete=False)))
    rows = tuple(rows_in(step, output, complete=code == 0))
    if code != 0:
        reason = f"exit code {code}: {last_line(errors.read_text(encoding='utf-8', errors='replace'))}"
        if step.reads == "tests" and rows and rows[0]["failed"]:
            reason = f"{rows[0]['failed']} tests failed"
        return Outcome("failed", reason, rows)
    return Outcome("done", "", rows)


def finished_steps(path: Path, about: dict[str, Any]) -> set[tuple[str, str]]:
    """Names and commands of the steps that are done, by the results of earlier calls. Raises UsageError if one was
    made elsewhere."""
    done = [entry for entry in lines_of(path, "step", "status", "step_command") if entry["status"] == "done"]
    for entry in done:
        require_same(entry, about, SAME, f"{path}: step {entry['step']}", "use another --out")
    return {(entry["step"], entry["step_command"]) for entry in done}


def about_machine(device: str, data: str) -> dict[str, Any]:
    """What is saved with each step. Raises UsageError if the device cannot be used. In another process: this one does
    not hold memory of the GPU."""
    answer = subprocess.run(
        [sys.executable, "-c", ABOUT, device, data], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if answer.returncode:
        raise UsageError(last_line(answer.stderr).partition(": ")[2] or last_line(answer.stderr))
    about = dict(json.loads(answer.stdout.splitlines()[-1]))
    return about | {"command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])}


def run_steps(plan: Plan, steps: list[Step], about: dict[str, Any], minutes: float, part_s: float) -> list[Outcome]:
    """Run the steps that are not done yet, and write a line for each."""
    results, begin = plan.out / "results.jsonl", time.monotonic()
    done, spent, outcomes = finished_steps(results, about), dict.fromkeys((step.part for step in steps), 0.0), []
    for step in steps:
        step_command = shlex.join(["python", *step.command[1:]])
        if (step.name, step_command) in done:
            click.echo(f"{step.name}: done before", err=True)
            continue
        left_s = min(60 * minutes - (time.monotonic() - begin), part_s - spent[step.part])
        started = time.monotonic()
        if step.missing:
            outcome = Outcome("skipped", step.missing)
        elif left_s <= 1:
            outcome = Outcome("skipped", NO_TIME)
        else:
            click.echo(f"{step.name}: {shlex.join(step.command[1:])}", err=True)
            outcome = run_step(step, plan.out, left_s)
        seconds = time.monotonic() - started
        spent[step.part] += seconds
        outcomes.append(outcome)
        entry = {"step": step.name, "part": step.part, "status": outcome.status, "reason": outcome.reason}
        entry["step_command"] = step_command
        append_line(results, {**about, **entry, "seconds": round(seconds, 1), "rows": outcome.rows})
        click.echo(f"{step.name}: {outcome.status} after {seconds:.0f} s {outcome.reason}".rstrip(), err=True)
        if step.part == "data" and outcome.status != "done":
            break  # without images nothing can be measured
    return outcomes


def finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """The value of --minutes or --part-s; click.FloatRange accepts nan."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value}; expected a finite number")
    return value


DURATION: dict[str, Any] = {"type": click.FloatRange(0, min_open=True), "callback": finite, "show_default": True}


@click.command(cls=Command)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="For results and logs.")
@click.option("--data-dir", type=click.Path(exists=True, file_okay=False), help="Converted images; default: --source.")
@click.option("--source", envvar="FASTCIFAR_SOURCE", help="Images to convert first, e.g. an archive.")
@click.option("--airbench", envvar="FASTCIFAR_AIRBENCH", help="Checkout of cifar10-airbench.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--minutes", default=25.0, help="In all.", **DURATION)
@click.option("--part-s", default=PART_S, help="Of a part.", **DURATION)
@click.option("--only", multiple=True, help="These parts only.")
@click.option("--quick", is_flag=True, help="Tiny counts: a test of this command, not a measurement.")
def main(
    out: Path, data_dir: str | None, source: str | None, airbench: str | None, device: str, minutes: float,
    part_s: float, only: tuple[str, ...], quick: bool,
) -> None:  # fmt: skip
    """Measure on a GPU all that this project publishes."""
    if importlib.util.find_spec("fastcifar.converters") is None:
        raise UsageError("fastcifar is not installed; run: pip install --no-deps . (or make gpu, from a checkout)")
    if data_dir is None and source is None:
        raise DataError("no images: set FASTCIFAR_SOURCE=PATH (an archive or folder), or --data-dir DIR")
    click.get_current_context().meta[GOES_ON] = True
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        out=out,
        device=device,
        data_dir=str(out / "data" if data_dir is None else Path(data_dir).resolve()),
        source=None if data_dir or source is None else str(Path(source).resolve()) if Path(source).exists() else source,
        airbench=None if airbench is None else Path(airbench).resolve(),
        quick=quick,
    )
    steps = plan_steps(plan)
    parts = list(dict.fromkeys(step.part for step in steps))
    unknown = sorted(set(only) - set(parts))
    if unknown:
        raise UsageError(f"--only is {unknown[0]!r}; expected one of: {', '.join(parts)}")
    steps = [step for step in steps if not only or step.part in ("data", *only)]
    about = about_machine(device, f"{plan.source or plan.data_dir}{', tiny counts' if quick else ''}")
    outcomes = run_steps(plan, steps, about, minutes, part_s)
    click.echo(str(out / "results.jsonl"))
    unfinished = sum(outcome.status in ("failed", "killed") for outcome in outcomes)
    if unfinished:
        raise click.ClickException(f"{unfinished} of {len(outcomes)} steps failed or were killed; see {out / 'logs'}")
    if left_out := sum(outcome.reason == NO_TIME for outcome in outcomes):
        raise click.ClickException(f"no time left for {left_out} of {len(outcomes)} steps; the same command goes on")


if __name__ == "__main__":
    main()
