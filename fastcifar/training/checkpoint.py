"""The file of a checkpoint, weights/last.pt, written and read with a checksum; previous.pt replaces a damaged one.

`torch.load` does not notice a flipped bit (of 200 single-bit flips it accepted 195). The CRCs of its zip file detect
those in a tensor, not those in the directory, which swap two tensors: so a SHA-256 follows, which `torch.load` skips.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastcifar.errors import CheckpointError
from fastcifar.io.atomic import replace, wrap_write_errors, write_bytes
from fastcifar.io.reading import read_bytes
from fastcifar.training.run_folder import RunFolder

log = logging.getLogger(__name__)
FORMAT = 6
CHECKSUM_BYTES = 32
MAX_CHECKPOINT_BYTES = 2**36


def save_checkpoint(run: RunFolder, state: dict[str, Any]) -> None:
    """Write `state` to weights/last.pt; the existing file becomes weights/previous.pt."""
    file = io.BytesIO()
    torch.save({"format": FORMAT, **state}, file)
    add_checksum(file)
    write_bytes(run.last, file.getbuffer(), backup=run.previous)


def load_checkpoint(run: RunFolder) -> dict[str, Any]:
    """The state in weights/last.pt, or, with a warning, that in weights/previous.pt if the last is damaged.

    Raises CheckpointError (exit code 6) if neither can be used, FastcifarError if the damaged one cannot be moved.
    """
    reasons = []
    for path in (run.last, run.previous):
        try:
            state = _load(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            with wrap_write_errors(run.last), contextlib.suppress(FileNotFoundError):  # another process was first
                replace(run.last, run.last.with_name("damaged.pt"))  # or the next save would make it previous.pt
            log.warning("%s; resuming from %s", reasons[0], path)
        return state
    raise CheckpointError("; ".join(reasons))


def add_checksum(file: io.BytesIO) -> None:
    """Append the SHA-256 of the content."""
    digest = hashlib.sha256(file.getbuffer()).digest()
    file.seek(0, os.SEEK_END)
    file.write(digest)


def load_state(content: bytes) -> Any:
    """What `torch.save` wrote, on the CPU, without running code. Raises ValueError for a zip file that may fill the
    memory, and any exception of zipfile and torch."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("its parts overlap")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path, MAX_CHECKPOINT_BYTES)
        if content[-CHECKSUM_BYTES:] != hashlib.sha256(memoryview(content)[:-CHECKSUM_BYTES]).digest():
            raise ValueError("its checksum is wrong")
        state = load_state(content)
        if not isinstance(state, dict) or state.get("format") is not FORMAT:
            raise ValueError("it has another format")
        return state
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # the content of a file can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of this version ({reason})") from error


def has_structure(state: Any, fresh: Any) -> bool:
    """Whether `state` has the keys and types of `fresh`, the state of a new object: torch would take any value from a
    checkpoint, also attributes and methods of a schedule. None and bool are alike: flags that the device decides."""
    if isinstance(fresh, dict):
        same = isinstance(state, dict) and state.keys() == fresh.keys()
        return same and all(has_structure(state[key], fresh[key]) for key in fresh)
    if isinstance(fresh, (list, tuple)):
        same = isinstance(state, (list, tuple)) and len(state) == len(fresh)
        return same and all(map(has_structure, state, fresh))
    if fresh is None or isinstance(fresh, bool):
        return state is None or isinstance(state, bool)
    if isinstance(fresh, (int, float)):
        return (type(state) in (int, float) and abs(state) < 2**63) or state == fresh
    return type(state) is type(fresh) and (not isinstance(fresh, str) or state == fresh)
