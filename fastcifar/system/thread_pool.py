"""A pool of threads that outlives a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Threads:
    """Threads that a forked child begins anew: a fork copies a pool without its threads, which waits for ever."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix=f"fastcifar-{self._name}")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it on one of the threads."""
        if self._process != os.getpid():
            self._begin()
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """End the threads, when they have done what they were given."""
        if self._process == os.getpid():
            self._pool.shutdown()
