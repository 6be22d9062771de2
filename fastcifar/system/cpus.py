"""How many CPUs this process may use, and how many of them other processes are using."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fastcifar.system.cgroups import ROOT, control_groups, lines_of

COUNTED = (1, 3, 6, 7)  # columns of a line of /proc/stat: user, system, irq, softirq


def cpus_of_mask() -> int:
    """CPUs of this process's affinity mask, whatever a control group allows."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def available_cpus(root: Path = ROOT) -> int:
    """CPUs of this process's affinity mask, or fewer where a control group (a container's limit) allows fewer."""
    return max(1, min([cpus_of_mask(), *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group of this process, and each group above it, may use; those with a limit."""
    for folder, is_v2 in control_groups("cpu", root):
        names = ("cpu.max",) if is_v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with contextlib.suppress(ValueError, ZeroDivisionError):  # no such file, or "max"
            quota, period = map(int, " ".join(line for name in names for line in lines_of(folder / name)).split())
            if quota > 0:  # -1 is no limit in version 1
                yield quota / period


class OtherLoad:
    """CPUs that other processes kept busy since this was made, of those that this process may use; niced ones give way
    and do not count."""

    def __init__(self) -> None:
        self._begin = self._now()

    def cpus(self) -> float | None:
        """Their number; None where the system does not tell, or too little time has passed to say."""
        now = self._now()
        if self._begin is None or now is None:
            return None
        seconds, others = (after - before for after, before in zip(now, self._begin, strict=True))
        return max(0.0, others / seconds) if seconds >= 1.0 else None

    @staticmethod
    def num_cpus() -> int:
        """The CPUs among which they are counted."""
        return cpus_of_mask()

    @staticmethod
    def _now() -> tuple[float, float] | None:
        """The time, and the CPU seconds of other processes."""
        if sys.platform != "linux":
            return None
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        try:
            lines = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
            used = [sum(int(line[i]) for i in COUNTED) for line in lines if line[0] in names]
        except (OSError, ValueError, IndexError):
            return None
        own = os.times()
        return time.monotonic(), sum(used) / os.sysconf("SC_CLK_TCK") - own.user - own.system
