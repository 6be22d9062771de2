"""`--init` and `--freeze-until`: the weights that a training starts from, of a run or of a file of any origin."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.errors import CheckpointError, UsageError, escape, join_names, one_line
from fastcifar.io.paths import user_path, why_missing
from fastcifar.io.reading import read_bytes
from fastcifar.models import count_parameters
from fastcifar.models.layers import freeze_until, last_layer
from fastcifar.training.checkpoint import load_state
from fastcifar.training.run_folder import find_run
from fastcifar.training.weights import MAX_WEIGHTS_BYTES, DatasetInfo, header_metadata, parse_weights

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model")
"""Where training programs keep weights in a checkpoint: averaged ones first, which are what they evaluate."""
MAX_WRAPPERS = 3
PREFIXES = ("module.", "_orig_mod.")
"""Of the names in DistributedDataParallel, AveragedModel and torch.compile."""
OWN_KEYS = {"tensors_sha256", "metadata_sha256", "class_names"}
"""In the header of a file of ours; any of them, as a damaged name must not make it a file without checksums."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80\x02"
Tensors = dict[str, torch.Tensor]
Note = tuple[int, str]
"""A level of `logging`, and a message."""


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The content of a file of weights."""

    path: Path
    sha256: str
    """Of the file."""
    tensors: Tensors
    """By the names in the file."""
    network: str | None = None
    """The network of a file of ours; None if it is unknown."""
    data: DatasetInfo | None = None
    """The training data of a file of ours; None if it is unknown."""
    notes: tuple[Note, ...] = ()


def read_initial_weights(init: str | os.PathLike[str], runs_dir: str | os.PathLike[str]) -> InitialWeights:
    """The weights at `init`: a file, or the best ones of a run, by its path or its name in `runs_dir`.

    A file of ours is verified by its checksums; what `torch.save` wrote is read with `weights_only=True`.
    Raises CheckpointError (6) if the file cannot be read, or is damaged; UsageError (2) or DataError (4) if there is
    none.
    """
    path = find_initial_weights(init, runs_dir)
    try:
        content = read_bytes(path, MAX_WEIGHTS_BYTES)
        found = _parse(content)
    except Exception as error:  # the content of a file can raise anything
        reason = one_line(error, 300)
        if isinstance(error, pickle.UnpicklingError):  # torch suggests to read it without this protection
            reason = "it holds other objects than tensors"
        raise CheckpointError(
            f"{path}: damaged, or not weights ({reason}); expected a .safetensors file, or a state_dict saved by torch"
        ) from error
    found["tensors"] = dict(sorted(found["tensors"].items()))  # safetensors returns them in any order
    return InitialWeights(path=path, sha256=hashlib.sha256(content).hexdigest(), **found)


def find_initial_weights(init: str | os.PathLike[str], runs_dir: str | os.PathLike[str]) -> Path:
    """The absolute path of the file that `init` names, see `read_initial_weights`."""
    path = user_path(init, "init")
    if not path.exists() and path.suffix in SUFFIXES:
        raise UsageError(f"init is {str(path)!r}: {why_missing(path)}; expected a file of weights, or a run")
    found = path if path.exists() and not path.is_dir() else find_run(path, runs_dir, trained=True).best
    return found.absolute()


def _parse(content: bytes) -> dict[str, Any]:
    """The fields of `InitialWeights` that the content of a file determines. Raises any exception."""
    if content.startswith(ZIP):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an archive of TorchScript, which is an error too
            tensors, entry = _unwrapped(load_state(content))
        unverified = (
            f"no checksum verifies these weights{'' if entry is None else f', the entry {entry!r} of the file'}"
        )
        return {"tensors": tensors, "notes": ((logging.WARNING, unverified),)}
    if content.startswith(PICKLE):
        raise ValueError("a pickle of torch before 1.6; load it with torch and save its state_dict again")
    if not OWN_KEYS & header_metadata(content).keys():
        return {"tensors": load(content)}
    tensors, data, metadata = parse_weights(content)
    return {"tensors": tensors, "data": data, "network": one_line(metadata["model"]["name"], 80)}


def _unwrapped(state: Any) -> tuple[Tensors, str | None]:
    """The tensors by name in the content of a checkpoint, and the entry that holds them."""
    entry = None
    for _ in range(MAX_WRAPPERS):
        if not isinstance(state, dict):
            break
        wrapper = next((name for name in WRAPPERS if isinstance(state.get(name), dict)), None)
        if wrapper is not None:
            entry, state = wrapper, state[wrapper]
    tensors = {
        name: value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ValueError("it holds no tensors by name")
    return tensors, entry


def prepare_network(
    network: nn.Module, config: TrainConfig, data: DatasetInfo, initial: InitialWeights | None
) -> list[Note]:
    """Copy the initial weights into a new network and freeze what `freeze_until` says; return what to log.

    data: of this training. Raises UsageError if nothing fits, or there is no such layer; CheckpointError if a weight is
    not finite.
    """
    loaded, notes = (None, []) if initial is None else _load(network, config.model.name, data, initial)
    if config.freeze_until is None:
        return notes
    params = {name: param for name, param in network.named_parameters() if param.requires_grad}
    num_parameters = count_parameters(network)
    part = freeze_until(network, config.freeze_until, config.model.name)
    trained = f"{count_parameters(network):,} of {num_parameters:,}"
    notes.append((logging.INFO, f"training {trained} parameters: from {part.layer} on"))
    random = [name for name, param in params.items() if not param.requires_grad and name not in (loaded or {})]
    if config.init is None and not config.model.is_on_hub:
        notes.append((logging.WARNING, "--freeze-until without --init: the frozen layers keep random weights"))
    elif loaded is not None and random:
        notes.append((logging.WARNING, f"frozen with random weights, not those of --init: {join_names(random)}"))
    return notes


def log_notes(notes: Iterable[Note]) -> None:
    """Log each."""
    for level, message in notes:
        logging.getLogger(__name__).log(level, message)


def _load(network: nn.Module, name: str, data: DatasetInfo, initial: InitialWeights) -> tuple[Tensors, list[Note]]:
    """Copy what fits; return it, by the names in the network, and what to log."""
    own: Tensors = network.state_dict()
    sources = _by_own_name(own, initial)
    layer = last_layer(network)
    head = {key for key in own if layer is not None and key.startswith(f"{layer}.")}
    misfits = {key for key, source in sources.items() if not _fits(own[key], initial.tensors[source])}
    about_head, is_new = _about_head(own, sources, head, misfits, data, initial)
    new = head if is_new else set()
    fitting = [key for key in own if key in sources and key not in misfits | new]
    loaded = {key: initial.tensors[sources[key]].detach().to(own[key].dtype) for key in fitting}
    if not any(tensor.is_floating_point() for tensor in loaded.values()):
        of = "" if initial.network is None else f", of {initial.network},"
        raise UsageError(
            f"init is {str(initial.path)!r}: none of its {len(initial.tensors):,} tensors{of} fits {name}; they are "
            f"{_listed(initial.tensors, 3)}, those of the network {_listed(own, 3)}"
        )
    for key, tensor in loaded.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{initial.path}: {_listed([sources[key]])} is not finite; expected other weights")
    with torch.no_grad():
        for key, tensor in loaded.items():
            own[key].copy_(tensor)
    used = set(sources.values())
    file = f"{initial.path} (SHA-256 {initial.sha256[:16]}…)"
    lines = [f"initial weights: {len(loaded):,} of {len(own):,} tensors of {name} from {file}", *about_head]
    for keys, what in (
        ([key for key in own if key not in sources and key not in new], "newly initialised, as not in the file"),
        ([key for key in own if key in misfits - new], "newly initialised, as of another shape or type in the file"),
        ([key for key in initial.tensors if key not in used], "in the file, but not in the network"),
    ):
        lines += [f"{what}: {_listed(keys)}"] if keys else []
    lines += [] if initial.data is None else _differences(initial.data, data)
    return loaded, [*initial.notes, *((logging.INFO, line) for line in lines)]


def _by_own_name(own: Tensors, initial: InitialWeights) -> dict[str, str]:
    """The name in the file for each name in the network that it has, whatever the prefixes of both."""
    by_stripped = {_stripped(key): key for key in own}
    sources: dict[str, str] = {}
    for source in initial.tensors:
        key = source if source in own else by_stripped.get(_stripped(source))
        if key in sources:
            first = escape(sources[key])[:100]
            raise UsageError(
                f"init is {initial.path}: {first} and {escape(source)[:100]} are the same weight; keep one"
            )
        if key is not None:
            sources[key] = source
    return sources


def _stripped(name: str) -> str:
    """Without the prefixes of wrappers, of which there may be several, also within."""
    for prefix in PREFIXES:
        name = name.replace(f".{prefix}", ".").removeprefix(prefix)
    return name if not name.startswith(PREFIXES) else _stripped(name)


def _fits(own: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether the tensor can be copied: dense, of the same shape, and of the same kind of numbers."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    same_kind = own.is_floating_point() == tensor.is_floating_point() and own.is_complex() == tensor.is_complex()
    return same_kind and own.shape == tensor.shape


def _about_head(
    own: Tensors, sources: dict[str, str], head: set[str], misfits: set[str], data: DatasetInfo, initial: InitialWeights
) -> tuple[list[str], bool]:
    """What to say of the last layer, and whether all of it is newly initialised: it is unless the classes are the
    same, in the same order."""
    if not head & sources.keys():
        return [], False
    ours = data.class_names
    if initial.data is not None:
        theirs = initial.data.class_names
        if theirs == ours:
            return [], False
        both = "; rows of classes in both are not copied" if set(theirs) & set(ours) else ""
        return [f"the last layer is newly initialised: the file has other classes ({_listed(theirs)}){both}"], True
    for key in sorted(head & misfits):
        num_rows, *_ = (*initial.tensors[sources[key]].shape, 1)
        if num_rows != len(ours):
            return [
                f"the last layer is newly initialised: the file has {num_rows:,} classes, the data {len(ours):,}"
            ], True
    if head & misfits:
        return [], False
    return [
        f"the file names no classes; the outputs of its last layer are taken as {_listed(ours)}, in this order"
    ], False


def _differences(theirs: DatasetInfo, ours: DatasetInfo) -> list[str]:
    """How the images differ from those that the weights were trained on."""
    described = []
    if (theirs.mean, theirs.std) != (ours.mean, ours.std):
        described.append(
            f"the images are normalised by their mean {_rounded(ours.mean)} and std {_rounded(ours.std)}; the "
            f"weights were trained with {_rounded(theirs.mean)} and {_rounded(theirs.std)}"
        )
    if theirs.image_shape != ours.image_shape:
        sizes = ["{}x{}".format(*info.image_shape[:2]) for info in (theirs, ours)]
        described.append(f"the weights were trained on images of {sizes[0]}; these are {sizes[1]}")
    return described


def _rounded(numbers: Iterable[float]) -> str:
    return "(" + ", ".join(f"{number:.1f}" for number in numbers) + ")"


def _listed(names: Iterable[str], max_names: int = 12) -> str:
    """Names of unknown origin in a message."""
    return join_names((escape(name[:100]) for name in names), max_names)
