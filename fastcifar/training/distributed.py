"""The processes of one run, as `torchrun` starts them: who is who, and what they say to each other."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastcifar.errors import FastcifarError, UsageError

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_PORT = 2**16
PATIENCE = timedelta(hours=12)
"""The first process may be long over what it does alone, as a range test; one that has ended is noticed at once."""


class Processes:
    """This process among the `count` of a run; alone, every method gives back what it was given.

    What is said travels by gloo, on the CPU, so that a GPU need not be waited for; gradients by nccl on CUDA.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int | None = None) -> None:
        """local_rank, local_count: among those on this machine."""
        self.rank, self.count, self.local_rank = rank, count, local_rank
        self.local_count = count if local_count is None else local_count
        self._talk: Any = None

    @property
    def first(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def begin(self, device: torch.device) -> None:
        """Meet the others."""
        if self.count > 1:
            if "TORCHELASTIC_RUN_ID" not in os.environ:  # by hand, or variables that something left behind
                address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
                log.error(  # a level that every process shows
                    "process %d of %d waits for the others at %s; to train in one process, unset WORLD_SIZE",
                    *(self.rank, self.count, address),
                )
            with _signals_that_end():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            self._talk = dist.new_group(backend="gloo", timeout=PATIENCE)

    def end(self) -> None:
        """Leave."""
        if self._talk is not None:
            dist.destroy_process_group()
            self._talk = None

    def wrap(self, network: nn.Module, device: torch.device, deterministic: bool = False) -> nn.Module:
        """The network, with its gradients averaged over the processes.

        deterministic: add them in the same order in each step. torch packs them anew after the first step that it
        makes, which is another one where a run goes on, and the order depends on the place in the pack.
        """
        if self.count == 1:
            return network
        wrapped = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
        if deterministic:
            # a lambda: torch refuses annotations that are text, which those of this module are
            wrapped.register_comm_hook(self.count, lambda state, bucket: _mean_of_each(state, bucket))
        return wrapped

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number in any process."""
        if self.count == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._talk)
        return told.tolist()

    def total(self, numbers: list[float]) -> list[float]:
        """The sum of each number over the processes, in float64."""
        if self.count == 1:
            return numbers
        told = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        dist.all_reduce(told, group=self._talk)
        return told.tolist()

    def of_first(self, value: T) -> T:
        """What the first process has."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._talk)
        return box[0]

    def everyones(self, value: T) -> list[T]:
        """What each process has, in the order of their ranks."""
        if self.count == 1:
            return [value]
        boxes: list[Any] = [None] * self.count
        dist.all_gather_object(boxes, value, group=self._talk)
        return boxes

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers (the averages of batch normalisation)."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def part(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This process's part of `rows`, (N,) -> about (N / count,): all parts together are the whole."""
        return np.array_split(rows, self.count)[self.rank]

    @contextmanager
    def noticing_losses(self) -> Iterator[None]:
        """In the block, another process's end is a FastcifarError."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if self.count == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            raise FastcifarError(
                f"process {self.rank} of {self.count} stopped: another process of this run has ended (its own message "
                "says why); go on from what was saved last with the same torchrun line and --resume"
            ) from error


@contextmanager
def _signals_that_end() -> Iterator[None]:
    """In the block, Ctrl-C and SIGTERM end the process at once: Python's handlers do not run while C++ waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _mean_of_each(count: int, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The mean over `count` processes of each gradient of a pack, each sent by itself."""
    sent: Any = [dist.all_reduce(gradient, async_op=True).get_future() for gradient in bucket.gradients()]
    return torch.futures.collect_all(sent).then(lambda _: bucket.buffer().div_(count))


def join() -> Processes:
    """This process, from the environment that `torchrun` sets. One alone unless WORLD_SIZE is above 1: schedulers and
    earlier sessions leave RANK and the like behind. Raises UsageError if the variables do not fit together."""
    count = _environment_number("WORLD_SIZE", 1)
    if count <= 1:
        return Processes()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"the environment variable WORLD_SIZE is {count}, and {', '.join(missing)} not set; start with torchrun, "
            "which sets them all, or unset WORLD_SIZE to train in one process"
        )
    port = _environment_number("MASTER_PORT", 0)
    if not 0 <= port < MAX_PORT:
        raise UsageError(
            f"the environment variable MASTER_PORT is {port}; expected 0..{MAX_PORT - 1}; start with torchrun, "
            "or unset WORLD_SIZE to train in one process"
        )
    rank = _environment_number("RANK", 0)
    if not 0 <= rank < count:
        raise UsageError(
            f"the environment variable RANK is {rank}; expected 0..{count - 1}, below WORLD_SIZE; start with torchrun, "
            "or unset WORLD_SIZE to train in one process"
        )
    return Processes(
        rank, count, _environment_number("LOCAL_RANK", rank), _environment_number("LOCAL_WORLD_SIZE", count)
    )


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name) or default
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"the environment variable {name} is {text!r}; expected a whole number, as torchrun sets it; unset "
            "WORLD_SIZE to train in one process"
        ) from None
