"""How much memory this process can still use: of the machine, of its control groups, and within its own limits."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from fastcifar.system.cgroups import ROOT, control_groups, lines_of

V2 = ("memory.current", ("memory.max", "memory.high"), "inactive_file")
V1 = ("memory.usage_in_bytes", ("memory.limit_in_bytes",), "total_inactive_file")
"""Of a control group: the file that says what it uses, those that say what it may, and what memory.stat calls the
cache of files that is given up for the asking."""


def free_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still use. `root`: where /proc and /sys are looked for."""
    if sys.platform != "linux":
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2
    machine = _facts(root / "proc/meminfo")
    free = machine.get("MemAvailable", machine.get("MemFree", 0) + machine.get("Cached", 0)) * 1024
    if not free:  # no /proc
        free = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    return max(0, min([free, *_within_limits(root), *_within_groups(root)]))


def _within_limits(root: Path) -> list[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    used = _facts(root / "proc/self/status")
    kinds = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    limits = [(resource.getrlimit(kind)[0], used.get(key, 0) * 1024) for kind, key in kinds]
    return [limit - taken for limit, taken in limits if limit != resource.RLIM_INFINITY]


def _within_groups(root: Path) -> list[int]:
    """What each control group of the process, and each above it, leaves; those that set no limit are left out."""
    groups = control_groups("memory", root)
    return [left for group, is_v2 in groups for left in _left_in(group, *(V2 if is_v2 else V1))]


def _left_in(group: Path, usage: str, limits: tuple[str, ...], cache: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        used, stat = int((group / usage).read_text()), _facts(group / "memory.stat")
        allowed = [stat["hierarchical_memory_limit"]] if "hierarchical_memory_limit" in stat else []  # v1: of all above
        for name in limits:
            with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
                allowed.append(int((group / name).read_text()))
        if allowed:
            yield min(allowed) - used + stat.get(cache, 0)


def _facts(path: Path) -> dict[str, int]:
    """Names and numbers of a file such as /proc/meminfo, a pair in a line."""
    words = (line.replace(":", " ").split() for line in lines_of(path))
    return {pair[0]: int(pair[1]) for pair in words if len(pair) > 1 and pair[1].isdigit()}
