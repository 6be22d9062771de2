"""Results of benchmarks: the environment that they were measured in, tables, and files."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastcifar import __version__
from fastcifar.system.cpus import affinity_cpus, cpu_name
from fastcifar.training.device import has_fast_bf16

PACKAGES = (
    "fastcifar",
    "torch",
    "numpy",
    "numba",
    "ffcv",
    "albumentations",
    "opencv-python",
    "torchvision",
    "kornia",
    "onnxruntime",
)


def environment(data: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What is saved with every figure: command, machine, versions, data, commit, time."""
    device = torch.device(device)
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": cpu_name(),
        "fast_bf16": has_fast_bf16(device),
        "cores": affinity_cpus(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "data": data,
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    if package == "fastcifar":  # a checkout need not be installed
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that contains this file, with a + if it has changes; None outside of one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def format_table(rows: list[dict[str, Any]], columns: Iterable[str]) -> str:
    """Rows as aligned text, one line each, numbers right-aligned."""
    columns = list(columns)
    lines = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    for line, cells in zip(lines, padded, strict=True):
        cells[0] = line[0].ljust(widths[0])
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
