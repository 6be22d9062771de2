"""Ctrl-C and SIGTERM as exceptions, so that every command cleans up before it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastcifar.errors import Stopped


class _Interrupted(KeyboardInterrupt):
    """A SIGINT. After a plain KeyboardInterrupt in the exec() of a string (`dataclasses`, `collections.namedtuple`),
    `python -m` ends by SIGINT whatever the exit code is: python/cpython, `run_eval_code_obj` and `Py_RunMain`."""


@contextmanager
def signals_as_exceptions() -> Iterator[list[signal.Signals]]:
    """In the block, SIGINT raises KeyboardInterrupt and SIGTERM raises Stopped, also where Python would drop the
    exception. Signals that were ignored or have another handler are left alone. Yields those that are handled."""
    signums = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signums.append(signal.SIGINT)
    handlers = {signum: signal.signal(signum, _raise) for signum in signums}
    hook = sys.unraisablehook

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised while it frees an object, and would drop it again if it were raised here
        if isinstance(lost.exc_value, (KeyboardInterrupt, Stopped)):
            _send_later(signal.SIGINT if isinstance(lost.exc_value, KeyboardInterrupt) else signal.SIGTERM)
        else:
            hook(lost)

    sys.unraisablehook = send_again
    try:
        yield signums
    finally:
        sys.unraisablehook = hook
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _raise(signum: int, frame: FrameType | None) -> None:
    torch: Any = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(torch, "_initializing", False):  # an exception during the import of torch aborts the process
        _send_later(signum)
    elif signum == signal.SIGINT:
        raise _Interrupted
    else:
        raise Stopped(signum, "no file was left incomplete")


def _send_later(signum: int) -> None:
    def send() -> None:
        if signal.getsignal(signum) is _raise:  # the program has not ended meanwhile
            os.kill(os.getpid(), signum)

    timer = threading.Timer(0.05, send)
    timer.daemon = True
    timer.start()
