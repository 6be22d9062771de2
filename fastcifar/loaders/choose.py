"""Which loader delivers a dataset, and how the dataset is opened for it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcifar.augment.kernel import numba_module
from fastcifar.config import AugmentConfig
from fastcifar.data.beton import Beton, empty_classes, open_beton
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.io.paths import user_path
from fastcifar.loaders.base import SHARE_OF_MEMORY, Loader, free_memory, loaders_for, usable_device
from fastcifar.loaders.ffcv_loader import FfcvLoader, jpeg_decoder
from fastcifar.loaders.resident import ResidentLoader

log = logging.getLogger(__name__)


class LoaderChoice(NamedTuple):
    """A loader, and the betons opened for it."""

    name: str
    reason: str
    betons: list[Beton]

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_loader(
    loader: str,
    betons: Sequence[Beton | str | os.PathLike[str]],
    *,
    augment: AugmentConfig | None = None,
    device: torch.device | str = "cpu",
    num_processes: int = 1,
) -> LoaderChoice:
    """The loader for betons that are used together, and the betons, opened as it needs them.

    loader 'auto': 'albumentations' for a pipeline of Albumentations, 'ffcv' for JPEG images, 'resident' where the
    betons fit into memory and into that of `device`, else 'ffcv'.
    num_processes: how many processes of this machine will each load the betons, this one among them.
    """
    name, reason, has_pipeline = loader, "by request", augment is not None and augment.pipeline is not None
    if loader == "auto" and has_pipeline:
        name, reason = "albumentations", "augment is a pipeline of Albumentations"
    elif loader == "auto":
        name, reason = _loader_for_size(betons, usable_device(device), num_processes)
    opened = [beton if isinstance(beton, Beton) else open_for(name, beton, device, num_processes) for beton in betons]
    for beton in opened:
        if loader == "auto" and not has_pipeline and name not in loaders_for(beton):
            name, reason = loaders_for(beton)[0], "the images are JPEG"
    return LoaderChoice(name, reason, opened)


def _loader_for_size(
    betons: Sequence[Beton | str | os.PathLike[str]], device: torch.device, num_processes: int
) -> tuple[str, str]:
    num_bytes = sum(map(_size_of, betons))
    to_copy = sum(_size_of(beton) for beton in betons if not (isinstance(beton, Beton) and beton.in_memory))
    size = f"{num_bytes / 2**20:.0f} MiB"
    if not _fits(num_processes * to_copy):  # also for a GPU, whose copy is made from that in memory
        return "ffcv", f"{size} do not fit into CPU memory"
    if device.type == "cuda" and not _fits(num_bytes, device):
        return "ffcv", f"{size} do not fit into CUDA memory"
    return "resident", f"{size} fit into {device.type.upper()} memory"


def _fits(num_bytes: int, device: torch.device | None = None) -> bool:
    return num_bytes < SHARE_OF_MEMORY * free_memory(device)


def open_for(
    loader: str, path: str | os.PathLike[str], device: torch.device | str = "cpu", num_processes: int = 1
) -> Beton:
    """Open a beton as the loader needs it: as a private copy in memory if the copies of all processes fit there.

    The CPU kernel, if the loader will use it on `device`, is loaded while the file is copied and hashed.
    """
    path = user_path(path, "beton")
    size = _size_of(path)
    if loader == "resident" and size > (free := free_memory()):
        raise UsageError(
            f"{path}: {size >> 20:,} MiB do not fit into {free >> 20:,} MiB of free memory; use --loader ffcv"
        )
    with contextlib.ExitStack() as stack:
        if size and loader != "albumentations" and usable_device(device).type == "cpu":
            loading = threading.Thread(target=_load_cpu_kernel, name="fastcifar-load")
            loading.start()
            # two threads that import parts of one package can fail with a deadlock: nothing else is imported until then
            stack.callback(loading.join)
        beton = open_beton(path, in_memory=loader == "resident" or _fits(num_processes * size))
    if not beton.verified:
        log.warning("%s has no manifest: its structure was checked, its pixels cannot be", beton.path)
    if warning := empty_classes(beton):
        log.warning("%s", warning)
    return beton


def _load_cpu_kernel() -> None:
    with contextlib.suppress(Exception):  # the loader loads it again, and reports it
        numba_module().load()


def _size_of(beton: Beton | str | os.PathLike[str]) -> int:
    if isinstance(beton, Beton):
        return beton.num_bytes
    path = user_path(beton, "beton")
    return os.path.getsize(path) if os.path.isfile(path) else 0  # opening it reports a missing file


def loader_class(name: str) -> type[Loader]:
    if name == "albumentations":
        from fastcifar.loaders.albumentations_loader import AlbumentationsLoader

        return AlbumentationsLoader
    return {"ffcv": FfcvLoader, "resident": ResidentLoader}[name]


def missing_part(name: str, encoding: str = "raw") -> FastcifarError | None:
    """Why the loader `name` cannot read images of this encoding, 'raw' or 'jpeg', or None if it can."""
    try:
        loader_class(name)
        if encoding == "jpeg":
            jpeg_decoder()
    except FastcifarError as error:
        return error
    return None
