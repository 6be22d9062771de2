"""Figures: the only package that imports matplotlib, and only when the first figure is drawn.

Its functions are those of `fastcifar.plotting.figures`, loaded when they are used, so that a matplotlib that cannot be
imported is a warning of `figure_writer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fastcifar.errors import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastcifar.plotting.figures import *  # noqa: F403

log = logging.getLogger(__name__)
WriteFigure: TypeAlias = "Callable[[str, Callable[[], Figure]], Path | None]"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(import_module("fastcifar.plotting.figures"), name)


@contextmanager
def figure_writer(folder: Path, remedy: str, *, write_to: Path | None = None) -> Iterator[WriteFigure]:
    """In the block, `write(name, draw)` writes the figure that `draw` returns as a PNG to `folder`, or to `write_to`,
    which is moved there later. It returns the path in `folder`, or None if that fails: the results are stored already.

    After the block one warning names the figures that failed, the reason of the first, and the `remedy`.
    """
    failed: list[tuple[Path, str]] = []

    def write(name: str, draw: Callable[[], Figure]) -> Path | None:
        path = (write_to or folder) / name
        try:
            from fastcifar.plotting.figures import write_png

            write_png(path, draw())
        except Exception as error:  # noqa: BLE001 (whatever matplotlib, Pillow, the memory or the disk fail with)
            with suppress(OSError):
                path.unlink(missing_ok=True)  # of earlier results
            failed.append((folder / name, describe(error)))
            return None
        return folder / name

    yield write
    if failed:
        names = ", ".join(str(path) for path, _ in failed[:3]) + f" and {len(failed) - 3} more" * (len(failed) > 3)
        log.warning("%s: not drawn (%s); the results are complete; %s", names, failed[0][1], remedy)
