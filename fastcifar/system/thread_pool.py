"""A thread pool that works after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Threads:
    """Threads that a forked child starts again: a fork copies a pool without its threads, and waits forever."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix=f"fastcifar-{self._name}")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function on one of the threads."""
        if self._process != os.getpid():
            self._start()
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """Wait for the submitted calls, and end the threads."""
        if self._process == os.getpid():
            self._pool.shutdown()
