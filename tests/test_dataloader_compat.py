"""What users of torch's DataLoader expect of a loader exists, or an error says what to use instead."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastcifar import FastcifarError, make_loader
from fastcifar.errors import UsageError
from fastcifar.loaders import Batch, Loader

LONGEST_S = 60


@pytest.fixture(scope="module")
def loader(data_dir: Path) -> Iterator[Loader]:
    with closing(make_loader(data_dir / "train.beton", batch_size=32, indices=range(100), loader="resident")) as made:
        yield made


def test_a_loader_has_what_a_dataloader_has(loader: Loader) -> None:
    assert (len(loader), loader.batch_size, loader.num_workers, loader.drop_last) == (3, 32, 0, True)
    images = loader.dataset
    assert len(images) == len(list(images)) == 100  # not that of the beton: a mean over it would be wrong
    image, label = images[99]
    assert (image == loader.beton.images([99])[0]).all()
    assert (label, images.classes) == (loader.beton.labels[99], loader.beton.class_names)
    with pytest.raises(IndexError):
        images[100]


def test_repr(loader: Loader) -> None:
    beton = re.escape(f"Beton({str(loader.beton.path)!r}: 600 images of 32x32, 10 classes, raw)")
    assert re.fullmatch(
        rf"ResidentLoader\(100 of {beton} for training, batch_size=32, seed=0, device='cpu', dtype=torch.float32\)",
        repr(loader),
    )
    assert re.fullmatch(rf"Images\(100 of {beton}\)", repr(loader.dataset))


def test_three_values_are_unpacked(loader: Loader) -> None:
    for images, labels, indices in loader:
        assert len(images) == len(labels) == len(indices) == 32
    batch = next(iter(loader))
    with pytest.raises(ValueError, match="too many values to unpack"):
        images, labels = batch  # type: ignore[misc]
    first, *rest = batch
    assert (first is batch.images, len(rest)) == (True, 2)
    assert [len(tuple(batch)), len([*batch]), len(batch[:2]), len(batch)] == [3, 3, 2, 3]
    assert isinstance(pickle.loads(pickle.dumps(batch)), Batch)
    assert isinstance(torch.utils._pytree.tree_map(lambda tensor: tensor, batch), Batch)
    assert isinstance(batch._replace(labels=labels), tuple)


def ignore(loader: object) -> None:
    pass


@pytest.mark.parametrize(
    "use",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        lambda loader: multiprocessing.get_context("spawn").Process(target=ignore, args=(loader,)).start(),
    ],
)
def test_pickling_or_copying_a_loader_is_refused(loader: Loader, use: Callable[[Loader], object]) -> None:
    with pytest.raises(UsageError, match="cannot be pickled, copied or sent to another process; call make_loader the"):
        use(loader)


def test_a_loader_needs_no_dataloader(loader: Loader) -> None:
    uses: list[Callable[[Any], object]] = [
        lambda loader: loader[0],
        lambda loader: next(iter(DataLoader(loader))),
        lambda loader: next(iter(DataLoader(loader, batch_size=None, shuffle=True))),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="no items, and needs no DataLoader around it"):
            use(loader)


def test_an_attribute_of_dataloader_says_what_to_use(loader: Loader) -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'sampler'; indices=… selects images"):
        loader.sampler  # noqa: B018
    assert not hasattr(loader, "smapler")


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ({"shuffle": True}, "shuffle is True; expected 'full' or 'window'"),
        ({"num_workers": 4}, "no setting 'num_workers'; torch.set_num_threads sets the threads"),
        ({"drop_last": False}, "train=True delivers whole batches only"),
        ({"pin_memory": True}, "device='cuda'"),
        ({"sampler": [1]}, "indices=…"),
        ({"batchsize": 4}, "no setting 'batchsize'; did you mean 'batch_size'?"),
        ({"zzz": 4}, "no setting 'zzz'; expected: beton, augment, batch_size, train"),
        ({"train": False, "shuffle": "fast"}, "shuffle is 'fast'; expected one of"),
    ],
)
def test_a_setting_of_dataloader_says_what_to_use(data_dir: Path, setting: dict[str, Any], answer: str) -> None:
    with pytest.raises(UsageError, match=re.escape(answer)):
        make_loader(data_dir / "train.beton", **setting)


def test_indices_may_be_a_mask(data_dir: Path) -> None:
    mask = np.arange(600) % 3 == 0
    for indices in (mask, mask.tolist(), torch.from_numpy(mask)):
        with closing(make_loader(data_dir / "train.beton", batch_size=10, indices=indices)) as loader:
            assert loader.dataset.indices.tolist() == np.flatnonzero(mask).tolist()
    wrong: list[tuple[Any, str]] = [
        (mask[:10], "a mask of shape (10,); expected (600,)"),
        (mask[None], "a mask of shape (1, 600)"),
        (np.zeros(600, bool), "indices is empty; expected at least one image"),
        ([[1, 2], [3]], "indices is a list; expected integers or a boolean mask"),
        (torch.ones(3, device="meta"), "indices is a Tensor"),
    ]
    for indices, message in wrong:
        with pytest.raises(UsageError, match=re.escape(message)):
            make_loader(data_dir / "train.beton", batch_size=10, indices=indices)


def failing(data_dir: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[..., Any]) -> Loader:
    """A loader whose worker does `work` in place of its own."""
    pytest.importorskip("albumentations")
    from fastcifar.loaders import albumentations_loader

    monkeypatch.setattr(albumentations_loader, "augment_batch", work)
    return make_loader(data_dir / "train.beton", batch_size=20, loader="albumentations")


def end_by(signum: int) -> Callable[..., None]:
    return lambda *arguments: os.kill(os.getpid(), signum)


def refuse(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def miss(*arguments: object) -> None:
    raise KeyError("one\ntwo")


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (end_by(signal.SIGKILL), r"exited \(killed by SIGKILL, possibly out of memory\); use --loader resident"),
        (end_by(signal.SIGBUS), r"exited \(killed by SIGBUS\); /dev/shm has [0-9,]+ MiB: give it more \(docker run"),
        (lambda *arguments: os._exit(3), r"exited \(with exit code 3\); use --loader resident"),
        (miss, r"failed \(KeyError: 'one\\ntwo'\); use --loader resident"),
        (refuse, r"failed \(OSError: \[Errno 28\] No space left on device\); /dev/shm has [0-9,]+ MiB"),
    ],
)
def test_the_error_says_how_a_worker_exited(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[..., Any], message: str
) -> None:
    with closing(failing(data_dir, monkeypatch, work)) as loader, pytest.raises(FastcifarError, match=message):
        next(loader.epoch(0))


def test_full_shared_memory_is_an_error_at_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does this in a thread of the worker, where the error is lost: it took 120 seconds."""
    pytest.importorskip("albumentations")

    def full(*arguments: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    with closing(make_loader(data_dir / "train.beton", batch_size=20, loader="albumentations")) as loader:
        began = time.monotonic()
        with pytest.raises(FastcifarError, match=r"failed \(RuntimeError: unable to .*/dev/shm has .*--shm-size"):
            next(loader.epoch(0))
        assert time.monotonic() - began < LONGEST_S


@pytest.mark.slow  # five seconds
def test_the_exit_of_a_worker_is_noticed_in_any_thread(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread receives the signal of a dead worker; in others torch polls every five seconds."""
    messages: list[str] = []

    def iterate() -> None:
        with closing(failing(data_dir, monkeypatch, end_by(signal.SIGKILL))) as loader:
            try:
                next(loader.epoch(0))
            except FastcifarError as error:
                messages.append(str(error))

    thread = threading.Thread(target=iterate)
    thread.start()
    thread.join(LONGEST_S)
    assert "killed by SIGKILL" in messages[0]


def test_the_remedy_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("albumentations")
    from fastcifar.loaders.albumentations_loader import remedy_for

    assert "--loader" not in remedy_for("failed (No space left on device)", False)  # a pipeline has no other loader
    monkeypatch.setattr("shutil.disk_usage", refuse)
    assert remedy_for("failed (unable to open shm)", True).startswith("there is no /dev/shm: give it more")


def test_the_dataset_has_targets_and_classes(own_data_dir: Path) -> None:
    dataset = make_loader(own_data_dir / "train.beton", train=False, batch_size=4, indices=[2, 5, 7]).dataset
    assert dataset.targets == [dataset[i][1] for i in range(3)]
    assert [dataset.classes[label] for label in dataset.class_to_idx.values()] == list(dataset.class_to_idx)
    with pytest.raises(TypeError, match="'slice' object cannot be interpreted as an integer"):
        dataset[0:3]
