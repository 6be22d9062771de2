"""Pictures of results that are already written: one that fails is a warning and never ends a command.

Not in plotting/, which cannot be imported where matplotlib cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fastcifar.errors import Stopped, describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
Draw: TypeAlias = "Callable[[str, Callable[[], Figure]], Path | None]"


@contextmanager
def pictures(folder: Path, again: str, *, made_in: Path | None = None) -> Iterator[Draw]:
    """In the block, `draw(name, make)` writes the figure that `make` returns as a PNG into `folder`, or into `made_in`,
    which is moved there later. It returns the path in `folder`, or None if that fails.

    After the block one warning names the pictures that failed, the reason of the first, and how to draw them: `again`.
    """
    failed: list[tuple[Path, str]] = []

    def draw(name: str, make: Callable[[], Figure]) -> Path | None:
        path = (made_in or folder) / name
        try:
            from fastcifar import plotting

            plotting.write_png(path, make())
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 (whatever matplotlib, Pillow, the memory or the disk fail with)
            with suppress(OSError):
                path.unlink(missing_ok=True)  # of earlier results
            failed.append((folder / name, describe(error)))
            return None
        return folder / name

    yield draw
    if failed:
        names = ", ".join(str(path) for path, _ in failed[:3]) + f" and {len(failed) - 3} more" * (len(failed) > 3)
        log.warning("%s: not drawn (%s); the results are complete; %s", names, failed[0][1], again)
