"""Throughput of loaders and time of functions: warm-up, repeats, median and spread.

Candidates are measured in turn, round after round, so that noise of the machine affects all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from fastcifar.errors import FastcifarError, one_line
from fastcifar.training.device import synchronise

MIN_S = 0.5


@dataclass
class Throughput:
    """Images per second of a candidate, in each repeat."""

    name: str
    images_per_s: list[float] = field(default_factory=list)
    first_batch_s: float | None = None
    """From the start of its construction to its first batch, in this process, without imports."""
    note: str = ""

    def row(self) -> dict[str, Any]:
        """The values that are printed and saved."""
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
"""Starts an epoch: an iterable of batches, whose first item is the images, (N, ...)."""


def measure_throughput(
    candidates: Mapping[str, Callable[[], Epoch]],
    *,
    repeats: int = 5,
    limit_s: float = 4.0,
    device: torch.device | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Throughput]:
    """The throughput of loaders, round after round.

    candidates: by name, a function that builds a loader. One that raises an error before its first batch is left out,
    with a note. The first epoch is warm-up, and gives `first_batch_s`. A measurement takes whole epochs for at least
    half a second, and stops after `limit_s` seconds. Raises FastcifarError if all are left out.
    """
    results, epochs = {name: Throughput(name) for name in candidates}, {}
    for name, build in candidates.items():
        begin = time.perf_counter()
        try:
            epoch = build()
            next(iter(epoch()))
        except Exception as error:  # noqa: BLE001 (another package can raise anything)
            known = isinstance(error, (ImportError, FastcifarError))
            results[name].note = (
                f"skipped: {one_line(error)}" if known else f"failed: {type(error).__name__}: {one_line(error)}"
            )
            log(f"{name}: {results[name].note}")
            continue
        synchronise(device)
        results[name].first_batch_s = time.perf_counter() - begin
        _run(epoch, limit_s, device)
        epochs[name] = epoch
    if not epochs:
        reasons = "; ".join(dict.fromkeys(result.note.removeprefix("skipped: ") for result in results.values()))
        raise FastcifarError(f"none of {', '.join(candidates)} could be measured: {reasons}")
    for number in range(repeats):
        log(f"round {number + 1} of {repeats}")
        for name, epoch in epochs.items():
            results[name].images_per_s.append(_run(epoch, limit_s, device))
    return list(results.values())


def _run(epoch: Epoch, limit_s: float, device: torch.device | None) -> float:
    """Images per second over whole epochs that take `MIN_S` together, or over the first `limit_s` seconds."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < MIN_S:
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


def timed(function: Callable[[], Any], device: torch.device | None = None) -> float:
    """Seconds of one call."""
    synchronise(device)
    begin = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - begin
