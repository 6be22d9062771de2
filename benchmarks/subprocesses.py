"""Candidates that would disturb each other in one process (allocator, threads): a process each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import last_line
from fastcifar import measure


def rates_in_turn(script: str, names: tuple[str, ...], flags: list[object], repeats: int) -> list[measure.Rate]:
    """Run `script --only NAME …flags`, whose last line is images a second, for each name, round after round."""
    rates = [measure.Rate(name) for name in names]
    for number in range(repeats):
        click.echo(f"round {number + 1} of {repeats}", err=True)
        for rate in rates:
            if rate.note:
                continue
            command = [sys.executable, script, "--only", rate.name, *map(str, flags)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                rate.note = f"skipped: {last_line(done.stderr)}"
            else:
                rate.images_per_s.append(float(done.stdout.splitlines()[-1]))
    return rates


def told_by(module: str, *args: str) -> dict[str, Any]:
    """Run `python -m module args`, its messages shown as they come; the JSON object in the last line of its output."""
    command = [sys.executable, "-m", module, *args]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    if done.returncode:
        raise click.ClickException(f"{module} ended with exit code {done.returncode}; its own message is above")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))
