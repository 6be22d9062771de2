"""As many threads as CPUs are idle: one that shares its CPU with another process delays all others."""

from __future__ import annotations

import logging
import time

import torch

from fastcifar.system.cpus import OtherLoad, affinity_cpus

log = logging.getLogger(__name__)
CHECK_EVERY_S = 5.0


class CpuThreads:
    """Lowers the number of threads of torch while other processes keep CPUs busy. adapt: False changes nothing.

    Measured by benchmarks.busy on two cores: next to one busy process, two threads train at 0.30 of the quiet rate
    (0.35 if their waits do not spin), one thread at 0.49; next to two, 0.11 (0.19) and 0.32.
    """

    def __init__(self, adapt: bool = True) -> None:
        self._max_threads = torch.get_num_threads()
        self._adapt = adapt and self._max_threads > 1
        self._others, self._since = OtherLoad(), time.monotonic()

    def after_step(self) -> None:
        """Call between two steps; checks the load every few seconds."""
        if not self._adapt or time.monotonic() - self._since < CHECK_EVERY_S:
            return
        busy, num_cpus = self._others.cpus(), affinity_cpus()
        self._others, self._since = OtherLoad(), time.monotonic()
        if busy is None:
            return
        wanted = max(1, min(self._max_threads, num_cpus - round(busy)))
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
            threads = "1 thread" if wanted == 1 else f"{wanted} threads"
            log.info("other processes keep %.1f of %d CPUs busy: training with %s", busy, num_cpus, threads)

    def close(self) -> None:
        """Restore the number of threads."""
        torch.set_num_threads(self._max_threads)
