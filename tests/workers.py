"""A group of processes that stay: each runs `fastcifar` commands as one rank of several, as under torchrun.

Starting a process and importing torch takes longer than the training runs of the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

LIMIT_S = 120
Result = tuple[int, str, str]
"""Exit code, stdout, stderr."""


def _serve(connection: Connection) -> None:
    import torch
    from click.testing import CliRunner

    from fastcifar.cli import main

    torch.set_num_threads(1)
    connection.send(os.getpid())
    while True:
        arguments, variables = connection.recv()
        os.environ.update(variables)
        result = CliRunner().invoke(main, arguments)
        connection.send((result.exit_code, result.stdout, result.stderr))


class WorkerGroup:
    """Processes that run commands together."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections, self._processes = [], []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
        self.pids = [self._receive(connection) for connection in self._connections]

    def start(self, world_size: int, *arguments: object) -> None:
        """Run `fastcifar ARGUMENTS` in the first `world_size` processes, as its ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank, connection in enumerate(self._connections[:world_size]):
            variables = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "TORCHELASTIC_RUN_ID": "test",
            }
            connection.send(([str(argument) for argument in arguments], variables))

    def results(self, world_size: int) -> list[Result]:
        """The results of the command that was started, by rank."""
        return [self._receive(connection) for connection in self._connections[:world_size]]

    def run(self, world_size: int, *arguments: object) -> list[Result]:
        """Run `fastcifar ARGUMENTS` as `world_size` ranks; the results, by rank."""
        self.start(world_size, *arguments)
        return self.results(world_size)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()  # they hold nothing that is to be saved
            process.join()

    @staticmethod
    def _receive(connection: Connection) -> Any:
        if not connection.poll(LIMIT_S):
            raise TimeoutError(f"no answer of a worker in {LIMIT_S} s")
        return connection.recv()


@contextmanager
def worker_group(size: int) -> Iterator[WorkerGroup]:
    """A group for the block."""
    group = WorkerGroup(size)
    try:
        yield group
    finally:
        group.close()
