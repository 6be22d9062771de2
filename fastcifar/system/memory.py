"""Memory of this process: free, of the machine, of its control groups, and within its ulimits; and used."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from fastcifar.system.cgroups import ROOT, control_groups, read_lines

V2 = ("memory.current", ("memory.max", "memory.high"), "inactive_file")
V1 = ("memory.usage_in_bytes", ("memory.limit_in_bytes",), "total_inactive_file")
"""Files of a control group: usage, limits; and the name in memory.stat of the file cache that can be reclaimed."""


def free_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still use. root: folder of /proc and /sys."""
    if sys.platform != "linux":
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2
    machine = _read_numbers(root / "proc/meminfo")
    free = machine.get("MemAvailable", machine.get("MemFree", 0) + machine.get("Cached", 0)) * 1024
    if not free:  # no /proc
        free = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    in_groups = (_free_in_group(group, *(V2 if is_v2 else V1)) for group, is_v2 in control_groups("memory", root))
    return max(0, min([free, *_free_in_ulimits(root), *chain.from_iterable(in_groups)]))


def peak_memory(root: Path = ROOT) -> int:
    """The most bytes of memory that this process has occupied so far."""
    if kib := _read_numbers(root / "proc/self/status").get("VmHWM"):
        return kib * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # after `exec` that of the program before, on Linux
    return usage if sys.platform == "darwin" else usage * 1024


def _free_in_ulimits(root: Path) -> list[int]:
    """Free bytes within `ulimit -v` and `ulimit -d`."""
    used = _read_numbers(root / "proc/self/status")
    kinds = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    limits = [(resource.getrlimit(kind)[0], used.get(key, 0) * 1024) for kind, key in kinds]
    return [limit - used_bytes for limit, used_bytes in limits if limit != resource.RLIM_INFINITY]


def _free_in_group(group: Path, usage: str, limits: tuple[str, ...], cache: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        used, stat = int((group / usage).read_text()), _read_numbers(group / "memory.stat")
        # in version 1 the lowest limit of all groups above
        allowed = [stat["hierarchical_memory_limit"]] if "hierarchical_memory_limit" in stat else []
        for name in limits:
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                allowed.append(int((group / name).read_text()))
        if allowed:
            yield min(allowed) - used + stat.get(cache, 0)


def _read_numbers(path: Path) -> dict[str, int]:
    """The (name, number) lines of a file such as /proc/meminfo."""
    words = (line.replace(":", " ").split() for line in read_lines(path))
    return {pair[0]: int(pair[1]) for pair in words if len(pair) > 1 and pair[1].isdigit()}
