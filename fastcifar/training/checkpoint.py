"""The file of a checkpoint, weights/last.pt, written and read with a checksum; previous.pt replaces a damaged one.

`torch.load` does not notice a flipped bit (of 200 single-bit flips it accepted 195). The CRCs of its zip file detect
those in a tensor, not those in the directory, which swap two tensors: so the zip comment holds a SHA-256 of the whole.
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
from fastcifar.io.atomic import replace, write_bytes
from fastcifar.io.reading import read_bytes
from fastcifar.training.run_folder import RunFolder

log = logging.getLogger(__name__)
FORMAT = 5
EMPTY_COMMENT = b"\0\0"  # its length
CHECKSUM_LENGTH = 2 + 64
MAX_CHECKPOINT_BYTES = 2**36
TYPES = {
    "model": dict,
    "step": dict,
    "schedule": dict,
    "progress": dict,
    "rng": list,
    "config": dict,
    "data": dict,
    "num_steps": int,
    "environment": dict,
}


def save_checkpoint(run: RunFolder, state: dict[str, Any]) -> None:
    """Write `state` to weights/last.pt; the existing file becomes weights/previous.pt."""
    file = io.BytesIO()
    torch.save({"format": FORMAT, **state}, file)
    add_checksum(file)
    write_bytes(run.last, file.getbuffer(), backup=run.previous)


def load_checkpoint(run: RunFolder) -> dict[str, Any]:
    """The state in weights/last.pt, or, with a warning, that in weights/previous.pt if the last is damaged.

    Raises CheckpointError (exit code 6) if neither can be used.
    """
    reasons = []
    for path in (run.last, run.previous):
        try:
            state = _load(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            _move_damaged(run)
            log.warning("%s; resuming from %s", reasons[0], path)
        return state
    raise CheckpointError("; ".join(reasons))


def add_checksum(file: io.BytesIO) -> None:
    """Write the SHA-256 of a zip file without a comment into its comment, at its end."""
    comment = _comment(file.getbuffer()[: -len(EMPTY_COMMENT)])
    file.seek(-len(EMPTY_COMMENT), os.SEEK_END)
    file.write(comment)


def _comment(archive: memoryview) -> bytes:
    """The length of the comment and the comment, for a zip file up to there."""
    digest = hashlib.sha256(archive)
    digest.update(EMPTY_COMMENT)
    comment = digest.hexdigest().encode()
    return len(comment).to_bytes(len(EMPTY_COMMENT), "little") + comment


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path, MAX_CHECKPOINT_BYTES)
        if content[-CHECKSUM_LENGTH:] != _comment(memoryview(content)[:-CHECKSUM_LENGTH]):
            raise CheckpointError(f"{path}: damaged, or of another version of fastcifar (its checksum is wrong)")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CheckpointError(f"{path}: not a checkpoint of fastcifar: it is compressed")  # may fill the memory
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") is not FORMAT or not _has_types(state):
        raise CheckpointError(f"{path}: not a checkpoint of this version of fastcifar")
    return state


def _has_types(state: dict[str, Any]) -> bool:
    return (
        all(isinstance(state.get(key), kind) for key, kind in TYPES.items())
        and all(isinstance(state["data"].get(name), str) for name in ("train", "test"))
        and all(isinstance(value, (str, int, float)) for value in state["environment"].values())
    )


def _move_damaged(run: RunFolder) -> None:
    """Move a damaged last.pt to damaged.pt: the next save must not make it previous.pt."""
    target = run.last.with_name("damaged.pt")
    try:
        with contextlib.suppress(FileNotFoundError):  # another process of the run was first
            replace(run.last, target)
    except OSError as error:
        raise CheckpointError(
            f"{run.last}: damaged, and cannot be moved to {target.name} ({error.strerror}); move it yourself"
        ) from error
