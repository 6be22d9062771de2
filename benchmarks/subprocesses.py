"""Measurements in processes of their own, for settings that would affect others in one process (allocator, threads)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import ROOT
from fastcifar.bench.measure import Throughput


def anonymous_memory() -> int:
    """Bytes of this process that no file backs: RssAnon + RssShmem of /proc/self/status."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssShmem:"))


def last_line(stderr: str) -> str:
    """Why a process failed: the last line of its output."""
    return (stderr.strip().splitlines() or ["it exited unexpectedly"])[-1]


def failure(name: str, stderr: str) -> click.ClickException:
    """The error for a process that failed."""
    return click.ClickException(f"{name}: {last_line(stderr)}")


def measure_in_processes(module: str, names: tuple[str, ...], flags: list[object], repeats: int) -> list[Throughput]:
    """Run `python -m module --only NAME …flags` for each name, round after round. Its last line is one or several
    numbers: images per second."""
    results = [Throughput(name) for name in names]
    for number in range(repeats):
        click.echo(f"round {number + 1} of {repeats}", err=True)
        for result in results:
            if result.note:
                continue
            command = [sys.executable, "-m", module, "--only", result.name, *map(str, flags)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode:
                result.note = f"skipped: {last_line(process.stderr)}"
            else:
                result.images_per_s += map(float, process.stdout.splitlines()[-1].split())
    return results


def run_json(module: str, *args: str) -> dict[str, Any]:
    """Run `python -m module args`, with its log shown; returns the JSON object in the last line of its output."""
    command = [sys.executable, "-m", module, *args]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if process.returncode:
        raise click.ClickException(f"{module} failed with exit code {process.returncode}; its message is above")
    return dict(json.loads(process.stdout.strip().splitlines()[-1]))
