"""Progress bars, for the command line and for notebooks."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


MIN_COLUMNS = 80


class Bars:
    """Progress bars, one after the other, in a terminal or a notebook. A `Reporter` of training runs.

    A notebook without ipywidgets, which rich needs to draw a bar there, has none.
    """

    def __init__(self, shown: bool = True) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        can_draw = find_spec("ipywidgets") is not None if console.is_jupyter else sys.stderr.isatty()
        times = [progress.TimeElapsedColumn(), progress.TimeRemainingColumn()]
        self._progress = progress.Progress(
            "{task.description}",
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            *(times if console.width >= MIN_COLUMNS else []),  # else all columns would be cut
            "{task.fields[note]}",
            console=console,
            transient=True,
            disable=not (shown and can_draw),
        )
        self._task = self._progress.add_task("", total=None, visible=False, note="")

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return not self._progress.disable

    def __enter__(self) -> Bars:
        if self.is_shown:
            self._progress.start()
            self._set_console(self._progress.console)
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_shown:
            self._set_console(None)
            self._progress.stop()

    @staticmethod
    def _set_console(console: Console | None) -> None:
        for handler in logging.getLogger("fastcifar").handlers:
            if hasattr(handler, "console"):  # of the command line, which prints above the bar
                handler.console = console

    def begin(self, name: str, total: int | None = None) -> None:
        """Start again at 0 of `total`; without a total, which only the first may lack, it shows activity."""
        self._progress.reset(self._task, description=name, total=total, visible=True, note="")

    def advance(self, count: int) -> None:
        """Advance by `count`."""
        self._progress.advance(self._task, count)

    def step(self, step: int, loss: float, remaining_s: float) -> None:
        """Show the loss and the remaining time of the run next to the bar."""
        from fastcifar.training.progress import duration

        self._progress.update(self._task, note=f"loss {loss:.3f}, {duration(remaining_s)} left")
