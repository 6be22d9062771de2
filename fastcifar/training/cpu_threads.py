"""As many threads as CPUs are free: one that shares its CPU with another process makes all the others wait for it."""

from __future__ import annotations

import logging
import time

import torch

from fastcifar.system.cpus import OtherLoad

log = logging.getLogger(__name__)
EVERY_S = 5.0


class CpuThreads:
    """Takes threads away from torch while other processes keep CPUs busy, and gives them back afterwards.

    Measured by benchmarks/busy.py on two cores: next to one busy process, two threads train at 0.30 of the quiet rate
    (0.35 if they sleep while they wait), one thread at 0.49; next to two, 0.11 (0.19) and 0.32.
    """

    def __init__(self) -> None:
        self._most = torch.get_num_threads()
        self._others, self._since = OtherLoad(), time.monotonic()

    def after_step(self) -> None:
        """Call between two steps; every few seconds it looks at the load."""
        if self._most == 1 or time.monotonic() - self._since < EVERY_S:
            return
        busy, num_cpus = self._others.cpus(), self._others.num_cpus()
        self._others, self._since = OtherLoad(), time.monotonic()
        if busy is None:
            return
        wanted, before = max(1, min(self._most, num_cpus - round(busy))), torch.get_num_threads()
        if wanted != before:
            torch.set_num_threads(wanted)
            log.info("other processes keep %.1f of %d CPUs busy: training with %d threads", busy, num_cpus, wanted)

    def close(self) -> None:
        """Give the threads back."""
        torch.set_num_threads(self._most)
