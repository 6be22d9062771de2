"""Measurements in processes of their own, for settings that would affect others in one process (allocator, threads)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from benchmarks import ROOT
from fastcifar.bench.measure import Throughput
from fastcifar.errors import MissingExtraError

GRACE_S = 10.0  # between SIGTERM and SIGKILL


def anonymous_memory() -> int:
    """Bytes of this process that no file backs: RssAnon + RssShmem of /proc/self/status."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssShmem:"))


def last_line(stderr: str) -> str:
    """Why a process failed: the last line of its output."""
    return (stderr.strip().splitlines() or ["it exited unexpectedly"])[-1].removeprefix("Error: ")


def failure(name: str, stderr: str, code: int) -> click.ClickException:
    """The error for a process that failed, with its exit code; 1 if a signal ended it."""
    error = click.ClickException(f"{name}: {last_line(stderr)}")
    error.exit_code = max(code, 1)
    return error


def measure_in_processes(module: str, names: tuple[str, ...], flags: list[object], repeats: int) -> list[Throughput]:
    """Run `python -m module --only NAME …flags` for each name, round after round. Its last line is one or several
    numbers: images per second. The first name is the reference: raises ClickException if it fails. Another one that
    fails is left out, with a note; 'skipped' if it is not installed."""
    results = [Throughput(name) for name in names]
    for number in range(repeats):
        click.echo(f"round {number + 1} of {repeats}", err=True)
        for result in results:
            if result.note:
                continue
            command = [sys.executable, "-m", module, "--only", result.name, *map(str, flags)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode and result is results[0]:
                raise failure(result.name, process.stderr, process.returncode)
            if process.returncode:
                is_missing = process.returncode == MissingExtraError.exit_code
                result.note = f"{'skipped' if is_missing else 'failed'}: {last_line(process.stderr)}"
            else:
                result.images_per_s += map(float, process.stdout.splitlines()[-1].split())
    return results


def run_group(command: list[str], limit_s: float | None = None, **settings: Any) -> subprocess.CompletedProcess[Any]:
    """Run a command, from the root, that starts others: all are ended by an exception in this process, e.g. a signal's,
    and after `limit_s` seconds, with subprocess.TimeoutExpired."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **settings)
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except BaseException:
        end_group(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and its group. Signals do not interrupt this."""
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in signums}
    try:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signum)
                process.wait(GRACE_S)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def run_json(module: str, *args: str) -> dict[str, Any]:
    """Run `python -m module args`, with its log shown; returns the JSON object in the last line of its output.
    Raises ClickException, with its exit code, if it fails."""
    command = [sys.executable, "-m", module, *args]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if process.returncode:
        raise failure(module, f"failed with exit code {process.returncode}; its message is above", process.returncode)
    return dict(json.loads(process.stdout.strip().splitlines()[-1]))
