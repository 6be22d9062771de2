"""Batches made by worker processes with Albumentations, from the beton: without FFCV and without a compiler."""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import shutil
import signal
import sys
import time
import weakref
from collections.abc import Generator, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from fastcifar.augment.albumentations_kernel import AlbumentationsAugment, Pipeline, augment_batch
from fastcifar.augment.params import AugmentParams, raw_bits
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError
from fastcifar.loaders.base import Batch, Indices, Loader, LoaderConfig, params_of
from fastcifar.system.cpus import available_cpus

MAX_WORKERS = 8
TIMEOUT_S = 120
LOOK_EVERY_S = 5
SIGNS_OF_SHM = ("shared memory", "shm", "No space left", "SIGBUS", "Function not implemented")


class AlbumentationsLoader(Loader):
    """A torch `DataLoader` whose workers draw the same table as everybody else."""

    name = "albumentations"

    def __init__(
        self,
        beton: Beton,
        config: LoaderConfig,
        indices: Indices,
        mean: npt.ArrayLike,
        std: npt.ArrayLike,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(beton, config, indices, mean, std)
        if config.augment.pipeline is not None:
            Pipeline(config.augment.pipeline)(
                beton.images(indices[:1])[0], 0
            )  # a bad one is told here, not by a worker
        if num_workers is None:
            num_workers = min(available_cpus(), MAX_WORKERS)
        self.num_workers = num_workers
        self._workers = self._start()
        self._in_use = False
        # before torch's own turn at the exit, which leaves them to a signal, and takes that for a failure of theirs
        at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(at_exit)
        weakref.finalize(self, atexit.unregister, at_exit).atexit = False

    def _start(self) -> DataLoader[Any]:
        num_workers = self.num_workers
        return DataLoader(
            _Batches(self.beton, self.config, (self.mean32, self.inv_std32), self.fill),
            sampler=_Requests(),
            batch_size=None,  # a request is a whole batch
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            worker_init_fn=_leave_signals_to_the_parent,
            timeout=TIMEOUT_S if num_workers else 0,  # a killed worker is an error, not a hang
            generator=torch.Generator(),  # it draws a seed for each worker, which none uses: not from torch's own
        )

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        if self._in_use:  # an epoch is open already: this one gets workers of its own
            workers = self._start()
            try:
                yield from self._from(workers, epoch, start)
            finally:
                _end(workers)
            return
        self._in_use = True
        try:
            yield from self._from(self._workers, epoch, start)
        finally:
            self._in_use = False

    def _after_fork(self) -> None:
        super()._after_fork()
        old: Any = self._workers._iterator
        if old is not None:
            old._shutdown = True  # says that its workers have ended: they are the parent's to end
        self._workers, self._in_use = self._start(), False

    def _from(self, workers: DataLoader[Any], epoch: int, start: int) -> Iterator[Batch]:
        device, batches = self.config.device, self.batches(epoch)[start:]
        self.beton.check_unchanged()
        workers.sampler.requests = [(epoch, indices) for indices in batches]  # type: ignore[attr-defined]
        for indices, images in zip(batches, self._answers(workers), strict=True):
            # a copy: what comes from a worker lies in shared memory, which holds a descriptor open
            copied = images.to(device, self.config.dtype, copy=True)
            delivered = copied.permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W), channels_last memory
            labels = torch.from_numpy(self.beton.labels[indices]).to(device)
            if not self.config.channels_last:
                delivered = delivered.contiguous()
            yield Batch(delivered, labels, torch.from_numpy(indices.copy()).to(device))
        self.beton.check_unchanged()

    def _answers(self, workers: DataLoader[Any]) -> Iterator[torch.Tensor]:
        try:
            yield from _received(workers)
        except FastcifarError as error:
            if (reason := _reason_of_worker(error)) is None:  # raised here: there are no workers
                raise
            raise type(error)(reason) from error
        except (RuntimeError, OSError, EOFError) as error:  # a worker has failed, was killed, or does not answer
            reason = _reason_of_worker(error)
            what = f"failed ({reason})" if reason else f"ended ({_end_of_worker(workers, error)})"
            _end(workers)
            self.beton.check_unchanged()  # reading beyond the end of a file that became shorter kills
            remedy = remedy_for(what, self.config.augment.pipeline is None)
            raise FastcifarError(f"a worker of the albumentations loader {what}; {remedy}") from error

    def close(self) -> None:
        super().close()
        if self._process == os.getpid():
            _end(self._workers)


def _close_at_exit(reference: weakref.ref[AlbumentationsLoader]) -> None:
    loader = reference()
    if loader is not None and loader._process == os.getpid():
        loader.close()


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent saves first and then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(workers: DataLoader[Any]) -> None:
    """End the worker processes. torch does it when the iterator is collected: an error may hold it until the exit."""
    iterator, workers._iterator = workers._iterator, None
    if iterator is not None and workers.num_workers:
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def _received(workers: DataLoader[Any]) -> Iterator[torch.Tensor]:
    """The images of each request. Raises RuntimeError soon after a worker has died, in any thread: torch has a signal
    tell that to the main thread, and looks itself only when its time is over."""
    if workers._iterator is not None:
        workers._iterator._timeout = workers.timeout
    with torch.device("cpu"):  # the iterator makes tensors, whatever torch.set_default_device says
        iterator: Any = iter(workers)
    iterator._timeout = min(workers.timeout, LOOK_EVERY_S)
    asked = time.monotonic()
    while True:
        try:
            found = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out" not in str(error) or time.monotonic() - asked > workers.timeout:
                raise
            continue
        yield found
        asked = time.monotonic()


def _reason_of_worker(error: Exception) -> str | None:
    """What was raised in a worker: torch puts its traceback around the message. None for what was raised here."""
    message = str(error).strip()
    return message.splitlines()[-1].partition("Error: ")[2] if message.startswith("Caught ") else None


def _end_of_worker(workers: DataLoader[Any], error: Exception) -> str:
    """How a worker has ended; what torch says, if all are there."""
    for process in getattr(workers._iterator, "_workers", ()):
        if process.exitcode is not None and process.exitcode < 0:
            killer = signal.Signals(-process.exitcode)
            return f"killed by {killer.name}" + (", perhaps for want of memory" if killer == signal.SIGKILL else "")
        if process.exitcode:
            return f"with exit code {process.exitcode}"
    return one_line(error)


def remedy_for(what: str, has_choice: bool) -> str:
    """What a user can do about a worker that failed as `what` says. has_choice: other loaders deliver the same."""
    other = "use --loader resident, which has no workers" if has_choice else "see that there is more memory"
    if not any(word in what for word in SIGNS_OF_SHM):
        return other
    try:
        there = f"/dev/shm has {shutil.disk_usage('/dev/shm').total / 2**20:,.0f} MiB"
    except OSError:
        there = "there is no /dev/shm"
    return f"{there}: give it more (docker run --shm-size 2g)" + (f", or {other}" if has_choice else "")


class _Requests(Sampler[Any]):
    """What the workers are asked for next: (epoch, indices) of each batch."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, Indices]] = []

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.requests))


class _Sent:
    """Something that is pickled already, and arrives as what it was."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._pickled,)


class _Batches(Dataset[Any]):
    """In a worker: the augmented images of one request."""

    def __init__(
        self,
        beton: Beton,
        config: LoaderConfig,
        statistics: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
        fill: npt.NDArray[np.uint8],
    ) -> None:
        # not the loader, which holds this: a circle is collected late, and workers that end late cost ten seconds
        self._beton, self._config, self._statistics = beton, config, statistics
        pipeline = config.augment.pipeline
        self._pipeline = None if pipeline is None else Pipeline(pipeline)
        self._operations = AlbumentationsAugment(config.augment, fill)
        self._epoch: int | None = None
        self._table: AugmentParams | None = None

    def __getitem__(self, request: tuple[int, Indices]) -> torch.Tensor | _Sent:
        """The images; in a worker they are put into shared memory here: in the thread in which torch does that, an
        error is told to nobody."""
        try:
            images = self._images(*request)
            return images if get_worker_info() is None else _Sent(bytes(ForkingPickler.dumps(images)))
        except FastcifarError:
            raise
        except Exception as error:
            raise RuntimeError(describe(error)) from error

    def _images(self, epoch: int, indices: Indices) -> torch.Tensor:
        if self._table is None or self._epoch != epoch:  # a pure function of the epoch: every worker draws the same
            self._epoch, self._table = epoch, params_of(self._beton, self._config, epoch)
        images = self._beton.images(indices)
        if self._pipeline is None:
            images = augment_batch(images, self._table[indices], self._operations)
        else:
            seeds = (
                raw_bits(self._config.seed, epoch, "pipeline", len(self._beton))[indices] >> np.uint64(32)
            ).tolist()
            images = np.stack([self._pipeline(image, seed) for image, seed in zip(images, seeds, strict=True)])
        if self._config.dtype == torch.uint8:
            return torch.from_numpy(images)
        floats = images.astype(np.float32)
        mean, inv_std = self._statistics
        floats -= mean
        floats *= inv_std
        return torch.from_numpy(floats)
