"""The report of a run: one self-contained HTML page, made of what its folder holds."""

from __future__ import annotations

import logging
from pathlib import Path

from fastcifar.errors import DataError
from fastcifar.io.atomic import write_text
from fastcifar.io.paths import command_line
from fastcifar.report import training as course
from fastcifar.report.explanations import explained
from fastcifar.report.page import Contents, render
from fastcifar.report.predictions import scored
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.training.run_folder import RunFolder

__all__ = ["write_report"]
log = logging.getLogger(__name__)


def write_report(run: RunFolder) -> Path:
    """Write report.html into the folder of a run; returns its path. Neither the data nor the network is needed.

    What is not there is left out; a file that is damaged is named in the page, as is a picture that cannot be drawn,
    which is a warning too. Raises DataError (4) if there is nothing to tell, FastcifarError (1) if the page cannot be
    written.
    """
    files = RunFiles(run.path)
    found = {
        "headline": files.attempt(course.headline),
        "circumstances": files.attempt(course.circumstances),
        "settings": files.attempt(course.settings),
        "curves": files.attempt(course.curves),
        "scored": files.attempt(scored),
        "range_test": files.attempt(course.range_test),
        "explained": files.attempt(explained),
        "pictures": files.attempt(lambda files: explained(files, "explain/pictures")),
    }
    if not any(found.values()) and not files.notes:
        raise DataError(f"{run.path}: has no results to report; train it with 'fastcifar train'")
    if files.not_drawn:
        again = command_line("fastcifar", "report", run.path)
        lost = len(files.not_drawn), files.not_drawn[0]
        log.warning("%s: %d of its pictures not drawn (%s); draw them with: %s", run.report, *lost, again)
    contents = Contents(name=clean(run.path.resolve().name), notes=tuple(files.notes), **found)  # type: ignore[arg-type]
    write_text(run.report, render(contents))
    return run.report
