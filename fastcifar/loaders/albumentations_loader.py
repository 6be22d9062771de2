"""Batches by worker processes with Albumentations, read from the beton."""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import shutil
import signal
import sys
import weakref
from collections.abc import Generator, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from fastcifar.augment.albumentations_kernel import AlbumentationsAugment, Pipeline, augment_batch
from fastcifar.augment.kernel import normalisation
from fastcifar.augment.params import AugmentParams, raw_bits
from fastcifar.data.beton import Beton
from fastcifar.errors import FastcifarError, describe, one_line
from fastcifar.loaders.base import Indices, Loader, LoaderConfig, epoch_params, plan_epoch
from fastcifar.loaders.batch import Batch
from fastcifar.system.cpus import available_cpus

MAX_WORKERS = 8
_started: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()
SHM_ERRORS = ("shared memory", "shm", "No space left", "SIGBUS", "Function not implemented")


class AlbumentationsLoader(Loader):
    """A torch `DataLoader` whose workers apply the same parameters as the other loaders."""

    name = "albumentations"

    def __init__(self, beton: Beton, config: LoaderConfig, indices: Indices) -> None:
        super().__init__(beton, config, indices)
        if config.augment.pipeline is not None:
            Pipeline(config.augment.pipeline)(beton.images(indices[:1])[0], 0)  # fails here, not in a worker
        self.num_workers = min(available_cpus(), MAX_WORKERS)
        self._workers = self._start()
        self._in_use = False
        # before torch's own handler at exit, which ends workers by a signal and reports that as their failure
        at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(at_exit)
        weakref.finalize(self, atexit.unregister, at_exit).atexit = False

    def _start(self) -> DataLoader[Any]:
        workers = DataLoader(
            _Batches(self.beton, self.config),
            sampler=[],  # the requests of an epoch: (epoch, slots, indices of the images) of each batch
            batch_size=None,  # a request is a batch
            num_workers=self.num_workers,
            persistent_workers=True,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # DataLoader draws unused seeds from it: not from torch's own
        )
        _started.add(workers)
        return workers

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        is_second = self._in_use  # another epoch is open: this one gets its own workers
        workers = self._start() if is_second else self._workers
        self._in_use = True
        try:
            yield from self._batches_from(workers, epoch, start)
        finally:
            if is_second:
                _shut_down(workers)
            else:
                self._in_use = False

    def _after_fork(self) -> None:
        super()._after_fork()
        self._workers, self._in_use = self._start(), False

    def _batches_from(self, workers: DataLoader[Any], epoch: int, start: int) -> Iterator[Batch]:
        device = self.config.device
        dtype = self.config.unmixed.dtype
        plan = plan_epoch(self.beton, self.config, self._selected, epoch)
        requests = [(epoch, slots, plan.images_in(slots)) for slots in plan.batches[start:]]
        self.beton.check_unchanged()
        workers.sampler[:] = requests  # type: ignore[index]
        for (_, slots, indices), images in zip(requests, self._images_from(workers), strict=True):
            # a copy: the tensor of a worker is in shared memory, and keeps a file descriptor open
            images = images.to(device, dtype, copy=True)
            images = images.permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W), channels_last memory
            labels = torch.from_numpy(self.beton.labels[indices]).to(device)
            if not self.config.channels_last:
                images = images.contiguous()
            wait, mix = self.mixed(functools.partial(_itself, images), plan, slots)
            yield self.make_batch(wait(), labels, torch.from_numpy(indices.copy()).to(device), mix)
        self.beton.check_unchanged()

    def _images_from(self, workers: DataLoader[Any]) -> Iterator[torch.Tensor]:
        try:
            with torch.device("cpu"):  # the iterator makes tensors, whatever torch.set_default_device says
                images = iter(workers)
            yield from images  # it notices within 5 seconds, in any thread, that a worker has died
        except FastcifarError as error:
            raise type(error)(_worker_message(error)) from error
        except (RuntimeError, OSError, EOFError) as error:  # a worker failed or was killed
            reason = _worker_message(error)
            what = f"failed ({reason})" if reason else f"exited ({_exit_of_worker(workers, error)})"
            _shut_down(workers)
            remedy = remedy_for(what, self.config.augment.pipeline is None)
            raise FastcifarError(f"a worker of the albumentations loader {what}; {remedy}") from error

    def close(self) -> None:
        super().close()
        if self._process == os.getpid():
            _shut_down(self._workers)


def _close_at_exit(reference: weakref.ref[AlbumentationsLoader]) -> None:
    loader = reference()
    if loader is not None and loader._process == os.getpid():
        loader.close()


def _leave_workers() -> None:
    """In a forked child: the workers are the parent's, and torch would end them when the child drops the loader."""
    for workers in _started:
        iterator: Any = workers._iterator
        if iterator is not None:
            iterator._shutdown = True


os.register_at_fork(after_in_child=_leave_workers)


def _itself(images: torch.Tensor) -> torch.Tensor:
    return images


def _ignore_signals(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent saves, then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _shut_down(workers: DataLoader[Any]) -> None:
    """End the worker processes now: torch does it when the iterator is collected, which an error can delay."""
    iterator, workers._iterator = workers._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def _worker_message(error: Exception) -> str | None:
    """The message of an exception in a worker, without the traceback that torch adds; None for other exceptions."""
    message = str(error).strip()
    return message.splitlines()[-1].partition("Error: ")[2] if message.startswith("Caught ") else None


def _exit_of_worker(workers: DataLoader[Any], error: Exception) -> str:
    """How a worker exited; what torch says, if none did."""
    for process in getattr(workers._iterator, "_workers", ()):
        if process.exitcode is not None and process.exitcode < 0:
            killer = signal.Signals(-process.exitcode)
            return f"killed by {killer.name}" + (", possibly out of memory" if killer == signal.SIGKILL else "")
        if process.exitcode:
            return f"with exit code {process.exitcode}"
    return one_line(error)


def remedy_for(what: str, has_choice: bool) -> str:
    """What a user can do about a worker that failed as `what` says. has_choice: another loader can do the same."""
    other = "use --loader resident, which has no workers" if has_choice else "free some memory"
    if not any(word in what for word in SHM_ERRORS):
        return other
    try:
        shm = f"/dev/shm has {shutil.disk_usage('/dev/shm').total / 2**20:,.0f} MiB"
    except OSError:
        shm = "there is no /dev/shm"
    return f"{shm}: give it more (docker run --shm-size 2g)" + (f", or {other}" if has_choice else "")


class _Pickled:
    """A pickled object; unpickling gives the object. Bytes of an epoch left early would never be unpickled, and the
    worker would keep their memory."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._pickled,)


class _Batches(Dataset[Any]):
    """In a worker: the augmented images of one request."""

    def __init__(self, beton: Beton, config: LoaderConfig) -> None:
        # not the loader, which refers to this: a cycle is collected late, and ending workers late takes ten seconds
        self._beton, self._config = beton, config
        self._mean, self._inv_std = normalisation(config.mean, config.std)
        pipeline = config.augment.pipeline
        self._pipeline = None if pipeline is None else Pipeline(pipeline)
        self._operations = AlbumentationsAugment(config)
        self._epoch: int | None = None
        self._params: AugmentParams
        self._seeds: npt.NDArray[np.uint64]

    def __getitem__(self, request: tuple[int, Indices, Indices]) -> _Pickled:
        """The images, moved to shared memory here: in the thread in which torch does it, errors are lost."""
        try:
            return _Pickled(bytes(ForkingPickler.dumps(self._images(*request))))
        except FastcifarError:
            raise
        except Exception as error:
            raise RuntimeError(describe(error)) from error

    def _images(self, epoch: int, slots: Indices, indices: Indices) -> torch.Tensor:
        if self._epoch != epoch:  # pure functions of the epoch: the same in each worker
            if self._pipeline is None:
                self._params = epoch_params(self._beton, self._config, epoch)
            else:
                self._seeds = raw_bits(self._config.seed, epoch, "pipeline", len(self._beton)) >> np.uint64(32)
            self._epoch = epoch
        images = self._beton.images(indices)
        if self._pipeline is None:
            images = augment_batch(images, self._params[slots], self._operations)
        else:
            seeds = self._seeds[slots].tolist()
            images = np.stack([self._pipeline(image, seed) for image, seed in zip(images, seeds, strict=True)])
        if self._config.dtype == torch.uint8:
            return torch.from_numpy(images)
        floats = images.astype(np.float32)
        floats -= self._mean
        floats *= self._inv_std
        return torch.from_numpy(floats)
