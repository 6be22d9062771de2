"""How many CPUs this process may use, and how many of them other processes are using."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

COUNTED = (1, 3, 6, 7)  # columns of a line of /proc/stat: user, system, irq, softirq


def available_cpus(root: Path = Path("/")) -> int:
    """CPUs of this process's affinity mask, or fewer where a control group (a container's limit) allows fewer."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group of this process, and each group above it, may use; those with a limit."""
    for folder in _control_groups(root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()  # version 2
            yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
            if int(quota) > 0:  # version 1; -1 is no limit
                yield int(quota) / int(period)


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of those above them, version 1 or 2, that can be seen here."""
    mounts = (root / "sys/fs/cgroup", root / "sys/fs/cgroup/cpu")  # in a container often that of its own group
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            path = Path(line.split(":", 2)[2].lstrip("/"))
            yield from (mount / each for mount in mounts for each in (path, *path.parents))


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
