"""How much memory is there, for those who choose a loader."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

SHARE_OF_MEMORY = 0.7
"""What a dataset may take of the memory that is free."""


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that can still be used: of the GPU's memory, or of this machine's (and its control group's)."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if sys.platform != "linux":
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)
