"""The processes of one run, as `torchrun` starts them, and the collectives between them."""

from __future__ import annotations

import atexit
import logging
import os
import signal
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
MAX_PORT = 2**16 - 1
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""
TIMEOUT = timedelta(hours=12)
"""Rank 0 may work alone for long, as in a range test; a process that exits is noticed at once."""
_connections: dict[tuple[str, ...], Any] = {}
"""The gloo group of the open connection, if there is one, by its VARIABLES."""


class Distributed:
    """The rank of this process and the collectives of its run; with `world_size` 1 each returns its argument.

    With several processes the collectives work within `connect`. Values travel over gloo on the CPU, so no collective
    waits for the GPU; gradients use nccl on CUDA.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int | None = None
    ) -> None:
        """local_rank, local_world_size: among the processes of this machine."""
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self.local_world_size = world_size if local_world_size is None else local_world_size
        self._group: Any = None

    @classmethod
    def from_environment(cls) -> Distributed:
        """This process, from the variables that `torchrun` sets. A single process unless WORLD_SIZE is above 1:
        schedulers and earlier sessions leave RANK and the like behind. Raises UsageError if they are inconsistent."""
        values = {name: os.environ.get(name, "") for name in VARIABLES}
        try:
            world_size = int(values["WORLD_SIZE"] or 1)
            if world_size <= 1:
                return cls()
            rank, port = int(values["RANK"]), int(values["MASTER_PORT"])
            if not (0 <= rank < world_size and 0 <= port <= MAX_PORT and values["MASTER_ADDR"]):
                raise ValueError
            local_rank, local_world_size = values["LOCAL_RANK"] or rank, values["LOCAL_WORLD_SIZE"] or world_size
            return cls(rank, world_size, int(local_rank), int(local_world_size))
        except ValueError:
            shown = ", ".join(f"{name} is {value!r}" for name, value in values.items())
            raise UsageError(
                f"environment variables are inconsistent: {shown}; start with torchrun, which sets them all, or unset "
                "WORLD_SIZE to train in one process"
            ) from None

    @property
    def num_yet_to_load(self) -> int:
        """Processes of this machine that have not copied the data, this one among them, if all do that in the order of
        their ranks; those that have done it are in the free memory already."""
        return self.local_world_size - self.local_rank

    @property
    def is_main(self) -> bool:
        """True on rank 0, which alone writes and logs."""
        return self.rank == 0

    @contextmanager
    def connect(self, device: torch.device) -> Iterator[None]:
        """Wait for the other processes; in the block, the exit of one of them is a FastcifarError.

        The connection stays for later blocks of the same processes: torch cannot connect twice through the store of
        torchrun, it would wait for keys of the first time. It ends with the process, with an error in the block that
        connected, or when other variables name other processes.
        """
        if self.world_size == 1:
            yield
            return
        try:
            variables = tuple(os.environ.get(name, "") for name in VARIABLES)
            is_first = not dist.is_initialized() or variables not in _connections
            if is_first:
                _disconnect()
                self._init(device)
                _connections[variables] = dist.new_group(backend="gloo", timeout=TIMEOUT)
            self._group = _connections[variables]  # one for each block would leave its sockets and threads behind
            self.barrier()
            try:
                yield
            except BaseException:
                if is_first:
                    _disconnect()
                raise
        except (RuntimeError, dist.DistError) as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            raise FastcifarError(
                f"process {self.rank} of {self.world_size} stopped: another process of this run has exited (its own "
                "message says why); resume from the last checkpoint with the same torchrun line and --resume"
            ) from error

    def _init(self, device: torch.device) -> None:
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # not torchrun: variables set by hand, or left behind
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            log.error(  # a level that every process shows
                "process %d of %d waits for the others at %s; to train in one process, unset WORLD_SIZE",
                *(self.rank, self.world_size, address),
            )
        # Ctrl-C and SIGTERM end the process at once: Python's handlers do not run while C++ waits
        handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        atexit.register(_disconnect)

    def wrap(self, network: nn.Module, device: torch.device, deterministic: bool = False) -> nn.Module:
        """The network in DistributedDataParallel.

        deterministic: sum gradients in the same order in each step. DDP rebuilds its buckets after the first step,
        which is a different step in a resumed run, and the order of a sum depends on the position in the bucket.
        """
        if self.world_size == 1:
            return network
        wrapped = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
        if deterministic:
            # a lambda: torch rejects hooks with annotations that are strings, as those of this module are
            wrapped.register_comm_hook(self.world_size, lambda state, bucket: _average_each(state, bucket))
        return wrapped

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """The maximum of each number over the processes."""
        if self.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return values.tolist()

    def all_reduce_sum(self, numbers: list[float]) -> list[float]:
        """The sum of each number over the processes, in float64."""
        if self.world_size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        dist.all_reduce(values, group=self._group)
        return values.tolist()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes, on the device of the network, where it is computed."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.all_gather(None)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copy the buffers of rank 0 (the running statistics of batch normalisation) to all processes."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def shard(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(N,) -> about (N / world_size,): the contiguous shard of this process."""
        return np.array_split(indices, self.world_size)[self.rank]


def _disconnect() -> None:
    _connections.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _average_each(world_size: int, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The mean over the processes of each gradient of a bucket, reduced one by one."""
    reductions: Any = [dist.all_reduce(gradient, async_op=True).get_future() for gradient in bucket.gradients()]

    def divide(_: object) -> torch.Tensor:
        for reduction in reductions:
            reduction.wait()  # the stream of the GPU waits for this sum, for which collect_all does not
        return bucket.buffer().div_(world_size)

    return torch.futures.collect_all(reductions).then(divide)
