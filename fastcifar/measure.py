"""Measuring for `fastcifar bench` and for benchmarks/: warm-up, repeats, median and spread, and what was measured on.

Candidates are measured in turn, round after round, so that a noisy minute of the machine meets all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastcifar.errors import FastcifarError, UsageError, one_line

MIN_REPEATS = 5
LEAST_S = 0.5


@dataclass
class Rate:
    """How many images a second a candidate delivered, in each of the repeats."""

    name: str
    images_per_s: list[float] = field(default_factory=list)
    first_batch_s: float | None = None
    """From the beginning of its construction to its first batch, in this process, imports apart."""
    note: str = ""

    def row(self) -> dict[str, Any]:
        """As it is printed and saved."""
        rates = self.images_per_s
        return {
            "name": self.name,
            "images_per_s": round(median(rates)) if rates else None,
            "images_per_s_min": round(min(rates)) if rates else None,
            "images_per_s_max": round(max(rates)) if rates else None,
            "first_batch_s": None if self.first_batch_s is None else round(self.first_batch_s, 4),
            "repeats": len(rates),
            **({"note": self.note} if self.note else {}),
        }


Epoch = Callable[[], Iterable[Any]]
"""Begins an epoch; each item has the images of a batch first, (N, ...)."""


def measure_rates(
    candidates: Mapping[str, Callable[[], Epoch]],
    *,
    repeats: int = MIN_REPEATS,
    limit_s: float = 4.0,
    device: torch.device | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Rate]:
    """Rates of loaders, round after round.

    candidates: by name, what builds a loader; it raises ImportError or a FastcifarError where a part is missing, and
    is then left out, by name. What is run first of each is warm-up and gives `first_batch_s`. A measurement takes whole
    epochs, at least half a second of them, and is left after `limit_s` seconds. Raises FastcifarError if all are left
    out.
    """
    if repeats < MIN_REPEATS:
        raise UsageError(f"repeats is {repeats}; expected {MIN_REPEATS} or more")
    rates, epochs = {name: Rate(name) for name in candidates}, {}
    for name, build in candidates.items():
        begin = time.perf_counter()
        try:
            epoch = build()
            if next(iter(epoch()), None) is None:
                raise UsageError("an epoch has no batch; expected fewer images in a batch, or more images")
        except (ImportError, FastcifarError) as error:
            rates[name].note = f"skipped: {one_line(error)}"
            tell(f"{name}: {rates[name].note}")
            continue
        synchronise(device)
        rates[name].first_batch_s = time.perf_counter() - begin
        _run(epoch, limit_s, device)
        epochs[name] = epoch
    if candidates and not epochs:
        reasons = "; ".join(dict.fromkeys(rate.note.removeprefix("skipped: ") for rate in rates.values()))
        raise FastcifarError(f"none of {', '.join(candidates)} could be measured: {reasons}")
    for number in range(repeats):
        tell(f"round {number + 1} of {repeats}")
        for name, epoch in epochs.items():
            rates[name].images_per_s.append(_run(epoch, limit_s, device))
    return list(rates.values())


def _run(epoch: Epoch, limit_s: float, device: torch.device | None) -> float:
    """Images a second over whole epochs, as many as take `LEAST_S`; or over the part of one that takes `limit_s`."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < LEAST_S:
        batches = epoch()
        for batch in batches:
            count += len(batch[0])
            if time.perf_counter() - begin > limit_s:
                break
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    synchronise(device)
    return count / (time.perf_counter() - begin)


def synchronise(device: torch.device | None) -> None:
    """Wait for the work of a GPU, without which its time is not known."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    function: Callable[[], Any], *, repeats: int = MIN_REPEATS, device: torch.device | None = None
) -> list[float]:
    """How long calls take, after one that is not counted."""
    function()
    return [timed(function, device) for _ in range(repeats)]


def timed(function: Callable[[], Any], device: torch.device | None = None) -> float:
    """How many seconds one call takes."""
    synchronise(device)
    begin = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - begin


def anonymous_memory() -> int:
    """Bytes of this process that no file backs: RssAnon + RssShmem of /proc/self/status; 0 where there is none."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = (line.split() for line in status.read_text().splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssShmem:"))


PACKAGES = ("fastcifar", "torch", "numpy", "numba", "ffcv", "albumentations", "opencv-python", "torchvision", "kornia")


def circumstances(data: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What stands beside every figure: command, machine, versions, data, commit, time."""
    device = torch.device(device)
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "data": data,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, with a + if it was changed; None outside of one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def table(rows: list[dict[str, Any]], columns: Iterable[str]) -> str:
    """Rows as aligned text, one line each, numbers to the right."""
    columns = list(columns)
    lines = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: list[str], widths: list[int]) -> str:
    first, *rest = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([f"{first.strip():<{widths[0]}}", *rest]).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def save(folder: Path, name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> Path:
    """Add one line to `folder/name.jsonl`: the rows, and what they were measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**about, "rows": rows}) + "\n")
    return path


def forever(epochs: Callable[[int], Iterable[Any]]) -> Epoch:
    """Epoch after epoch of a loader: each call begins the next one."""
    numbers = iter(range(sys.maxsize))

    def begin() -> Iterator[Any]:
        return iter(epochs(next(numbers)))

    return begin
