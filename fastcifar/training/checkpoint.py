"""The door through which weights come in from files: the checksum first, then `weights_only=True`, then the shapes.

`torch.load` does not notice a flipped bit (of 200 single-bit flips it took 195). The CRCs in its zip file notice those
in a tensor, not those in the directory, which exchange two tensors: so a SHA-256 of the whole stands in its comment.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from fastcifar.config import ModelConfig
from fastcifar.data.manifest import MAX_NAME
from fastcifar.data.tables import MAX_CLASSES
from fastcifar.errors import CheckpointError, one_line
from fastcifar.io.atomic import replace, write_bytes
from fastcifar.io.reading import open_regular, read_bytes
from fastcifar.models import make_model
from fastcifar.training.run_folder import RunFolder

log = logging.getLogger(__name__)
FORMAT = 4
NO_COMMENT, SEAL_LENGTH = b"\0\0", 2 + 64
MOST_CHECKPOINT, MOST_WEIGHTS = 2**36, 2**34  # bytes
MAX_SIDE = 65_535  # a beton's
MOST_HEADER = 100 * 2**20  # as safetensors' own
UNREADABLE = (
    OSError,
    SafetensorError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    OverflowError,
    MemoryError,
)
KINDS = {
    "model": dict,
    "step": dict,
    "schedule": dict,
    "progress": dict,
    "rng": list,
    "config": dict,
    "data": dict,
    "num_steps": int,
    "circumstances": dict,
}


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a network needs to know of the data it was trained on. Stored with its weights."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str


def save_last(run: RunFolder, state: dict[str, Any]) -> None:
    """Write weights/last.pt; what was there becomes weights/previous.pt."""
    file = io.BytesIO()
    torch.save({"format": FORMAT, **state}, file)
    _seal(file)
    write_bytes(run.last, file.getbuffer(), backup=run.previous)


def _seal(file: io.BytesIO) -> None:
    """Give a zip file without a comment, which ends with the length of it, its SHA-256 as its comment."""
    seal = _seal_of(file.getbuffer()[: -len(NO_COMMENT)])
    file.seek(-len(NO_COMMENT), os.SEEK_END)
    file.write(seal)


def _seal_of(archive: memoryview) -> bytes:
    """The length of the comment and the comment, for a zip file up to there."""
    digest = hashlib.sha256(archive)
    digest.update(NO_COMMENT)
    comment = digest.hexdigest().encode()
    return len(comment).to_bytes(len(NO_COMMENT), "little") + comment


def load_last(run: RunFolder) -> dict[str, Any]:
    """The state in weights/last.pt, or in weights/previous.pt, with a warning, if the last is damaged.

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
            _put_aside(run)
            log.warning("%s; going on from %s", reasons[0], path)
        return state
    raise CheckpointError("; ".join(reasons))


def _put_aside(run: RunFolder) -> None:
    """Move a damaged last.pt to damaged.pt: it must not take the place of previous.pt when the next is saved."""
    aside = run.last.with_name("damaged.pt")
    try:
        with contextlib.suppress(FileNotFoundError):  # another process of the run was first
            replace(run.last, aside)
    except OSError as error:
        raise CheckpointError(
            f"{run.last}: damaged, and cannot be moved to {aside.name} ({error.strerror}); move it away yourself"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path, MOST_CHECKPOINT)  # what is checked is what is read
        if content[-SEAL_LENGTH:] != _seal_of(memoryview(content)[:-SEAL_LENGTH]):
            raise CheckpointError(f"{path}: damaged, or of another version of fastcifar (its checksum is wrong)")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CheckpointError(f"{path}: not a checkpoint of fastcifar: it is compressed")  # or a bomb
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") is not FORMAT or not _is_of_our_kind(state):
        raise CheckpointError(f"{path}: not a checkpoint of this version of fastcifar")
    return state


def _is_of_our_kind(state: dict[str, Any]) -> bool:
    kinds = all(isinstance(state.get(key), kind) for key, kind in KINDS.items())
    if not kinds or not all(isinstance(state["data"].get(name), str) for name in ("train", "test")):
        return False
    return all(isinstance(value, (str, int, float)) for value in state["circumstances"].values())


def save_weights(path: Path, model: nn.Module, network: ModelConfig, data: DataInfo, **facts: Any) -> None:
    """Write the weights as safetensors, with what is needed to use them: network, classes, mean and std."""
    # cloned: safetensors refuses weights that two layers share
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    described = {"model": asdict(network), **data.__dict__, **facts}
    described["tensors_sha256"] = _tensors_sha256(tensors)
    metadata = {key: json.dumps(value) for key, value in described.items()}
    metadata["facts_sha256"] = json.dumps(_facts_sha256(metadata))
    write_bytes(path, save(tensors, metadata))


def load_weights(path: Path, trusted: str | None = None) -> tuple[nn.Module, DataInfo, dict[str, Any]]:
    """The network in `path`, ready to evaluate in float32 on the CPU; its data; and all metadata, with the SHA-256 of
    the file, as it was read, as `file_sha256`.

    trusted: 'package.module:function' that the user named; a file alone cannot have code run.
    Raises CheckpointError (exit code 6) if the file is missing, damaged, or its tensors are not the network's.
    """
    try:
        content = read_bytes(path, MOST_WEIGHTS)  # not mapped: what is checked is what is read
        tensors, metadata = load(content), _metadata(content)
        if metadata["tensors_sha256"] != _tensors_sha256(tensors):
            raise ValueError("damaged: the checksum of its tensors is wrong")
        data = _data_info(metadata)
        if not all(name.isprintable() for name in data.class_names):
            raise ValueError("class_names has characters that cannot be shown")
        network = ModelConfig(**metadata["model"])
        require_trust(path, network, trusted)
        with torch.random.fork_rng(devices=[]):  # the generator of a run goes on as if no network had been made
            model = make_model(network, len(data.class_names), data.image_shape)
        model.load_state_dict(tensors)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise _unknown(path, error) from error
    return model.eval(), data, {**metadata, "file_sha256": hashlib.sha256(content).hexdigest()}


def read_info(path: Path) -> DataInfo:
    """What the weights in `path` say of their data; no tensor is read and no network made.

    Raises CheckpointError (exit code 6) if the file is missing or damaged.
    """
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER:
                raise ValueError("its header is too large")
            return _data_info(_metadata(size.to_bytes(8, "little") + file.read(size)))
    except UNREADABLE as error:
        raise _unknown(path, error) from error


def _metadata(content: bytes) -> dict[str, Any]:
    """What a safetensors file says of itself. Raises ValueError if that is not what was written."""
    size = int.from_bytes(content[:8], "little")
    stored = dict(json.loads(content[8 : 8 + size])["__metadata__"])
    told = stored.pop("facts_sha256", "null")
    if json.loads(told) != _facts_sha256(stored):
        raise ValueError("damaged, or of another version of fastcifar: the checksum of its metadata is wrong")
    return {key: json.loads(value) for key, value in stored.items()}


def _facts_sha256(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, kinds, shapes and contents. A safetensors file has no checksum of its own."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _data_info(metadata: dict[str, Any]) -> DataInfo:
    names, shape = metadata["class_names"], metadata["image_shape"]
    mean, std = metadata["mean"], metadata["std"]
    if not isinstance(names, list) or not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names):
        raise ValueError(f"class_names is no list of names of at most {MAX_NAME} characters")
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise ValueError(f"class_names are not 1 to {MAX_CLASSES} different names")
    if len(shape) != 3 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in shape):
        raise ValueError(f"image_shape is no list of three whole numbers, 1 to {MAX_SIDE}")
    if len(mean) != 3 or len(std) != 3 or not all(0 <= float(number) <= 255 for number in (*mean, *std)):
        raise ValueError("mean and std are not three numbers each, 0 to 255")
    return DataInfo(
        class_names=tuple(names),
        image_shape=(shape[0], shape[1], shape[2]),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        sha256=str(metadata["sha256"]),
    )


def _unknown(path: Path, error: Exception) -> CheckpointError:
    reason = one_line(error, 300)
    return CheckpointError(f"{path}: not the weights of a known network ({reason})")


def require_trust(path: Path, network: ModelConfig, trusted: str | None) -> None:
    """Raise CheckpointError if the network in `path` is code that the user has not named."""
    if network.names_code and network.name != trusted:
        raise CheckpointError(
            f"{path}: its network is {network.name}, code that is not part of fastcifar; "
            f"if it is yours, add --model {network.name}"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(read_bytes(path, MOST_WEIGHTS)).hexdigest()
