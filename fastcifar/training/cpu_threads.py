"""As many threads as CPUs are idle: one that shares its CPU with another process delays all others."""

from __future__ import annotations

import logging
import time

import torch

from fastcifar.system.cpus import OtherLoad

log = logging.getLogger(__name__)
CHECK_EVERY_S = 5.0


class CpuThreads:
    """Lowers the number of threads of torch while other processes keep CPUs busy.

    Measured by benchmarks.busy on two cores: next to one busy process, two threads train at 0.30 of the quiet rate
    (0.35 if their waits do not spin), one thread at 0.49; next to two, 0.11 (0.19) and 0.32.
    """

    def __init__(self) -> None:
        self._max_threads = torch.get_num_threads()
        self._others, self._since = OtherLoad(), time.monotonic()

    def after_step(self) -> None:
        """Call between two steps; checks the load every few seconds."""
        if self._max_threads == 1 or time.monotonic() - self._since < CHECK_EVERY_S:
            return
        busy, num_cpus = self._others.cpus(), self._others.num_cpus()
        self._others, self._since = OtherLoad(), time.monotonic()
        if busy is None:
            return
        wanted, before = max(1, min(self._max_threads, num_cpus - round(busy))), torch.get_num_threads()
        if wanted != before:
            torch.set_num_threads(wanted)
            log.info("other processes keep %.1f of %d CPUs busy: training with %d threads", busy, num_cpus, wanted)

    def close(self) -> None:
        """Restore the number of threads."""
        torch.set_num_threads(self._max_threads)
