"""`StopRequest`: signals during a training, which ends after the current step; a module of its own, as it replaces the
handlers of the process."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """In the `with` block, the first signal only sets `signum`; a second one ends the program."""

    def __init__(self) -> None:
        self.signum = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()
