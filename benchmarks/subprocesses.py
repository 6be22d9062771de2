"""Candidates that would disturb each other in one process (allocator, threads): a process each, in turn."""

from __future__ import annotations

import subprocess
import sys

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
