"""Weights as safetensors with their metadata: network, classes, normalisation, and checksums of both.

A safetensors file has no checksum of its own: a flipped bit in a tensor would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from fastcifar.config import ModelConfig
from fastcifar.data.image_files import FITS, Preprocessing
from fastcifar.data.manifest import MAX_NAME
from fastcifar.data.tables import MAX_CLASSES, PAGE_SIZE
from fastcifar.errors import CheckpointError, DataError, MissingExtraError, one_line
from fastcifar.io.atomic import write_bytes
from fastcifar.io.reading import read_bytes
from fastcifar.models import make_model

MAX_WEIGHTS_BYTES = 2**34
MAX_HEADER_BYTES = 100 * 2**20  # the limit of safetensors


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The facts about its training data that a network needs. Stored with its weights."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    mean: tuple[float, ...]
    """(3,): per channel, 0..255."""
    std: tuple[float, ...]
    sha256: str
    """Of the training beton."""
    fit: str = Preprocessing.fit
    """How other images become such images, as `background`: see `fastcifar.data.image_files.Preprocessing`."""
    background: tuple[int, int, int] = Preprocessing.background

    def __post_init__(self) -> None:
        if math.prod(self.image_shape) > PAGE_SIZE:  # a network is tried on two such images
            height, width, _ = self.image_shape
            raise DataError(f"the images are {height:.5g}x{width:.5g}; expected at most {PAGE_SIZE // 3:,} pixels each")

    @property
    def preprocessing(self) -> Preprocessing:
        """What makes an image of any size one for the network, as `convert` made those of the data."""
        return Preprocessing(size=self.image_shape[:2], fit=self.fit, background=self.background)


def save_weights(path: Path, model: nn.Module, network: ModelConfig, data: DatasetInfo, **metadata: Any) -> None:
    """Write the state dict of `model` with all that is needed to use it, and `metadata`."""
    # cloned: safetensors refuses weights that two layers share
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    values = {"model": asdict(network), **data.__dict__, **metadata, "tensors_sha256": _tensors_sha256(tensors)}
    header = {key: json.dumps(value) for key, value in values.items()}
    header["metadata_sha256"] = json.dumps(_metadata_sha256(header))
    write_bytes(path, save(tensors, header))


def load_weights(path: Path, trusted: str | None = None) -> tuple[nn.Module, DatasetInfo, dict[str, Any]]:
    """The network in `path`, in evaluation mode and float32 on the CPU; the facts about its data; and all metadata,
    with the SHA-256 of the file as `file_sha256`.

    trusted: 'package.module:function' that the user named; a file alone never decides which code runs.
    Raises CheckpointError (exit code 6) if the file is missing, damaged, or its tensors do not fit its network.
    """
    try:
        content = read_bytes(path, MAX_WEIGHTS_BYTES)
        tensors, data, metadata = parse_weights(content)
        network = ModelConfig(**metadata["model"])
        if network.names_code and network.name != trusted:
            raise CheckpointError(
                f"{path}: its network is {network.name}, {network.origin}; if you trust it, add --model {network.name}"
            )
        with torch.random.fork_rng(devices=[]):  # initial weights must not advance the generator of a run
            model = make_model(network, len(data.class_names), data.image_shape)
        model.load_state_dict(tensors)
    except (CheckpointError, MissingExtraError):
        raise
    except Exception as error:  # of torch, safetensors, json: the content of a file can raise anything
        raise _unreadable(path, error) from error
    return model.eval(), data, {**metadata, "file_sha256": hashlib.sha256(content).hexdigest()}


def parse_weights(content: bytes) -> tuple[dict[str, torch.Tensor], DatasetInfo, dict[str, Any]]:
    """The tensors of a file that `save_weights` wrote, the facts about their data, and all metadata. Raises any
    exception if a checksum is wrong or a value is not allowed."""
    tensors, metadata = load(content), _metadata(content)
    if metadata["tensors_sha256"] != _tensors_sha256(tensors):
        raise ValueError("the checksum of its tensors is wrong")
    data = _dataset_info(metadata)
    if not all(name.isprintable() for name in data.class_names):
        raise ValueError("class_names has unprintable characters")
    return tensors, data, metadata


def read_info(path: Path) -> DatasetInfo:
    """The facts about its data, from the header of a weights file.

    Raises CheckpointError (exit code 6) if the file is missing or damaged.
    """
    try:
        return _dataset_info(_metadata(read_bytes(path, MAX_WEIGHTS_BYTES)))
    except Exception as error:
        raise _unreadable(path, error) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a weights file, in hexadecimal."""
    return hashlib.sha256(read_bytes(path, MAX_WEIGHTS_BYTES)).hexdigest()


def header_metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of any safetensors file, as text; empty if it has none. Raises ValueError."""
    size = int.from_bytes(content[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError("its header is too large")
    return dict(json.loads(content[8 : 8 + size]).get("__metadata__", {}))


def _metadata(content: bytes) -> dict[str, Any]:
    """The metadata in the header of a file of ours. Raises ValueError if its checksum is wrong."""
    header = header_metadata(content)
    checksum = header.pop("metadata_sha256", "null")
    if json.loads(checksum) != _metadata_sha256(header):
        raise ValueError("the checksum of its metadata is wrong; another version of fastcifar may have written it")
    return {key: json.loads(value) for key, value in header.items()}


def _metadata_sha256(header: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dataset_info(metadata: dict[str, Any]) -> DatasetInfo:
    names, shape = metadata["class_names"], metadata["image_shape"]
    mean, std = metadata["mean"], metadata["std"]
    fit = metadata.get("fit", DatasetInfo.fit)  # earlier versions did not store it
    background = metadata.get("background", list(DatasetInfo.background))
    if not isinstance(names, list) or not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names):
        raise ValueError(f"class_names is not a list of names of at most {MAX_NAME} characters")
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise ValueError(f"class_names is not 1 to {MAX_CLASSES} different names")
    if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError("image_shape is not three integers above 0")
    if len(mean) != 3 or len(std) != 3 or not all(0 <= float(number) <= 255 for number in (*mean, *std)):
        raise ValueError("mean and std are not three numbers each, 0 to 255")
    if fit not in FITS:
        raise ValueError(f"fit is none of {', '.join(FITS)}")
    if len(background) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in background):
        raise ValueError("background is not three integers, 0 to 255")
    return DatasetInfo(
        class_names=tuple(names),
        image_shape=(shape[0], shape[1], shape[2]),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        sha256=str(metadata["sha256"]),
        fit=fit,
        background=(background[0], background[1], background[2]),
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged, or not weights written by fastcifar ({one_line(error, 300)}); restore the file from a copy, "
        "or train again"
    )
