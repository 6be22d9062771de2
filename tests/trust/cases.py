"""Shared by the tests of SECURITY.md: number of cases, commands in processes, small disks."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastcifar.data.manifest import manifest_path
from fastcifar.errors import DataError

FULL = bool(os.environ.get("FASTCIFAR_SOAK"))
LONGEST_S = 120
soak_only = pytest.mark.skipif(not FULL, reason="takes long: make soak")


def count(few: int, all_of_them: int) -> int:
    """How many cases: a few in every run of the tests, all of them with `make soak`."""
    return all_of_them if FULL else few


def start(*args: object, **more: Any) -> subprocess.Popen[str]:
    """`fastcifar ARGS` in a process of its own, with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    command = [sys.executable, "-m", "fastcifar", *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def run_cli(*args: object, **more: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fastcifar ARGS`."""
    process = start(*args, **more)
    out, errors = process.communicate(timeout=LONGEST_S)
    return process.returncode, out, errors


def error_line(errors: str) -> str:
    """The one line on stderr that begins with 'Error: '; no traceback is there, and nothing after it."""
    assert "Traceback" not in errors, errors
    assert " object at 0x" not in errors, errors
    lines = errors.strip().splitlines()
    assert lines, "nothing was said"
    assert lines[-1].startswith("Error: "), errors
    assert sum(line.startswith("Error: ") for line in lines) == 1, errors
    return lines[-1]


def write_matching_manifest(path: Path) -> None:
    """Write a manifest with the checksums of a damaged beton, as an attacker would."""
    file = manifest_path(path)
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts.pop("checksum")
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    facts["checksum"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(facts), encoding="utf-8")


def with_checksum(state: object) -> bytes:
    """A checkpoint whose checksum holds."""
    import torch

    from fastcifar.training import checkpoint

    file = io.BytesIO()
    torch.save(state, file)
    checkpoint.add_checksum(file)
    return file.getvalue()


def is_refused(error: DataError) -> bool:
    """Exit code 4, and a message of one line."""
    return error.exit_code == 4 and "\n" not in str(error) and bool(str(error))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path | None]:
    """`folder` on a disk of so many KiB; None where such a disk cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)
