"""The CPUs: which, how many this process may use, and how many of them other processes are using."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fastcifar.system.cgroups import ROOT, control_groups, read_lines

STAT_COLUMNS = (1, 3, 6, 7)  # of /proc/stat: user, system, irq, softirq


@functools.cache
def _cpuinfo(key: str) -> str:
    """What Linux says of the processor under this key; empty on other systems."""
    lines = (line.partition(":") for line in read_lines(Path("/proc/cpuinfo")))
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def cpu_name() -> str:
    """The model of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def has_cpu_flag(name: str) -> bool:
    """Whether Linux lists this flag of the processor, e.g. 'amx_bf16'."""
    return name in _cpuinfo("flags").split()


def has_fast_bf16_cpu() -> bool:
    """True if the processor multiplies matrices faster in bfloat16 than in float32: with AMX or AVX512-BF16.

    Intel's processors with AVX512-FP16 (from Sapphire Rapids on) do so with AMX alone. Some virtual machines hide it;
    AVX512-BF16 then takes 1.8 times as long as float32 (measured on Emerald Rapids).
    """
    if has_cpu_flag("amx_bf16"):
        return True
    left_to_amx = _cpuinfo("vendor_id") == "GenuineIntel" and has_cpu_flag("avx512_fp16")
    return has_cpu_flag("avx512_bf16") and not left_to_amx


def affinity_cpus() -> int:
    """CPUs in the affinity mask of this process."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def available_cpus(root: Path = ROOT) -> int:
    """CPUs in the affinity mask of this process, or fewer if a control group (a container's limit) allows fewer."""
    return max(1, min([affinity_cpus(), *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPU limits of the control groups of this process and of the groups above."""
    for folder, is_v2 in control_groups("cpu", root):
        names = ("cpu.max",) if is_v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with contextlib.suppress(ValueError, ZeroDivisionError):  # no such file, or "max"
            quota, period = map(int, " ".join(line for name in names for line in read_lines(folder / name)).split())
            if quota > 0:  # -1 is no limit in version 1
                yield quota / period


class OtherLoad:
    """CPUs of this process that others kept busy since construction; niced processes do not count."""

    def __init__(self) -> None:
        self._start = self._now()

    def cpus(self) -> float | None:
        """Their number; None if the system does not report it, or in the first second."""
        now = self._now()
        if self._start is None or now is None:
            return None
        seconds, others = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, others / seconds) if seconds >= 1.0 else None

    @staticmethod
    def _now() -> tuple[float, float] | None:
        """The time and the CPU time of other processes, in seconds."""
        if sys.platform != "linux":
            return None
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in read_lines(Path("/proc/stat"))]
        used = [sum(int(line[i]) for i in STAT_COLUMNS) for line in lines if line and line[0] in names]
        if not used:
            return None
        own, is_niced = os.times(), os.getpriority(os.PRIO_PROCESS, 0) > 0
        counted = own.system if is_niced else own.user + own.system  # user time of niced processes is in another column
        return time.monotonic(), sum(used) / os.sysconf("SC_CLK_TCK") - counted
