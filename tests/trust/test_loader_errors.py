"""A loader's error reaches the caller; leaving an epoch early leaks nothing; two loaders may run at once."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcifar import AugmentConfig, FastcifarError, make_loader
from fastcifar.data.beton import open_beton
from fastcifar.errors import DataError
from fastcifar.loaders import Loader, missing_part
from tests.test_loaders import LOADERS, needs_ffcv
from tests.trust.cases import count

WITHIN_S = 2.0


def broken(*args: object, **more: object) -> None:
    raise RuntimeError("the operation broke")


def break_operation(loader: Loader, patch: pytest.MonkeyPatch) -> None:
    """The operation that makes the pixels raises: on a thread, in FFCV's thread, in a worker process."""
    if loader.name == "ffcv":
        from fastcifar.loaders import ffcv_loader as ffcv_stream

        patch.setattr(ffcv_stream._Epoch, "images", broken)
    elif loader.name == "albumentations":
        from fastcifar.loaders import albumentations_loader

        patch.setattr(albumentations_loader, "augment_batch", broken)  # workers are forked when the epoch begins
    else:
        patch.setattr(loader._kernel, "_kernel", broken)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", LOADERS)
def test_an_operation_that_raises_is_an_error_at_once(
    data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch, tally: Callable[[str], None]
) -> None:
    with closing(make_loader(data_dir / "train.beton", batch_size=20, loader=name)) as loader:
        break_operation(loader, monkeypatch)
        began = time.monotonic()
        with pytest.raises((FastcifarError, RuntimeError), match="the operation broke"):
            next(loader.epoch(0))
        took = time.monotonic() - began
    assert took < WITHIN_S
    tally(f"{name}: an operation that raises was an error after {took:.2f} s")


@needs_ffcv
def test_a_damaged_jpeg_image_is_an_error(data_dir: Path, tmp_path: Path) -> None:
    from fastcifar.converters import convert
    from fastcifar.converters.synthetic import source

    with source(40, 20) as images:
        convert(images, tmp_path, jpeg_quality=90)
    path = tmp_path / "train.beton"
    beton = open_beton(path)
    with path.open("r+b") as file:
        file.seek(int(beton.offsets[7] + beton.sizes[7] // 2))
        file.write(bytes(int(beton.sizes[7]) // 3))
    (tmp_path / "train.beton.json").unlink()
    with closing(make_loader(path, batch_size=20, loader="ffcv")) as loader, pytest.raises(DataError, match="image 7"):
        list(loader.epoch(0))


@pytest.mark.parametrize("name", LOADERS)
def test_leaving_an_epoch_early_leaks_nothing(data_dir: Path, name: str, tally: Callable[[str], None]) -> None:
    def used() -> tuple[int, int, int]:
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "QueueFeederThread":  # of a closed queue: it ends by itself
                thread.join(5)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children)

    def leave_early(num: int) -> None:
        random = np.random.default_rng(0)
        with closing(make_loader(data_dir / "train.beton", batch_size=20, loader=name)) as loader:
            for i in range(num):
                batches = loader.epoch(i)
                for _ in range(int(random.integers(1, 4))):
                    next(batches)
                if i % 2:
                    batches.close()
                del batches  # without closing it

    num, shared = count(6, 200), set(os.listdir("/dev/shm"))
    leave_early(2)  # created once per process
    before = used()
    leave_early(num)
    assert used() == before
    assert set(os.listdir("/dev/shm")) == shared
    tally(f"{name}: {num} early exits, no thread, descriptor or process more")


@pytest.mark.parametrize("name", LOADERS)
def test_two_loaders_may_run_at_once(data_dir: Path, name: str) -> None:
    def sums(loader: Loader, found: list[float]) -> None:
        for epoch in range(count(2, 10)):
            found += [float(batch.images.sum()) for batch in loader.epoch(epoch)]

    configs = [AugmentConfig(), replace(AugmentConfig(), cutout_size=0, rotate_degrees=10.0)]
    expected: list[list[float]] = [[], []]
    found: list[list[float]] = [[], []]
    for config, into in zip(configs, expected, strict=True):
        with closing(make_loader(data_dir / "train.beton", config, batch_size=20, loader=name)) as loader:
            sums(loader, into)
    pair = [make_loader(data_dir / "train.beton", config, batch_size=20, loader=name) for config in configs]
    threads = [threading.Thread(target=sums, args=both) for both in zip(pair, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for loader in pair:
        loader.close()
    assert found == expected


def test_batches_that_are_kept_outlive_their_loader(data_dir: Path) -> None:
    kept: list[torch.Tensor] = []
    for name in ("resident", *(name for name in ("ffcv", "albumentations") if missing_part(name) is None)):
        with closing(make_loader(data_dir / "train.beton", batch_size=20, loader=name)) as loader:
            kept.append(next(loader.epoch(0)).images)
    gc.collect()
    assert all(torch.equal(kept[0], other) for other in kept[1:])
