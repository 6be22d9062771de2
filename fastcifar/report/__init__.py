"""The report of a run: one self-contained HTML page from the files of its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastcifar.errors import DataError, describe
from fastcifar.io.atomic import write_text
from fastcifar.io.paths import command_line
from fastcifar.report import training
from fastcifar.report.classification import classification
from fastcifar.report.dataset import dataset
from fastcifar.report.explanations import explanations
from fastcifar.report.other_sets import other_sets
from fastcifar.report.page import render
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.training.run_folder import RunFolder

__all__ = ["write_report", "write_report_or_warn"]
log = logging.getLogger(__name__)


def write_report(run: RunFolder) -> Path:
    """Write report.html into the folder of a run; returns its path. Needs neither the data nor the network's code.

    A section whose files are missing is left out; a damaged file, and a figure that cannot be drawn, are named in the
    page. Raises DataError (4) if the folder has no results; FastcifarError (1) if the page cannot be written.
    """
    files = RunFiles(run.path)
    test = files.attempt(classification)
    names, data_sha256 = (test["names"], test["data_sha256"]) if test else ([], "")
    sections: dict[str, Any] = {
        "dataset": files.attempt(dataset),
        "headline": files.attempt(training.headline),
        "environment": files.attempt(training.environment),
        "command": files.attempt(training.command),
        "curves": files.attempt(training.curves),
        "classification": test,
        "other_sets": files.attempt(other_sets),
        "explanations": files.attempt(lambda files: explanations(files, class_names=names, data_sha256=data_sha256)),
        "own_images": files.attempt(lambda files: explanations(files, "explain/images", names)),
        "lr_range_test": files.attempt(training.lr_range_test),
        "settings": files.attempt(training.settings),
    }
    if not any(sections.values()) and not files.notes:
        raise DataError(f"{run.path}: has no results to report; train it with 'fastcifar train'")
    if files.not_drawn:
        command = command_line("fastcifar", "report", run.path)
        num, reason = len(files.not_drawn), files.not_drawn[0]
        log.warning("%s: %d of its figures not drawn (%s); draw them with: %s", run.report, num, reason, command)
    names = (sections["explanations"] or {"names": names})["names"]
    facts = {
        "name": clean(run.path.resolve().name),
        "names": names,
        "notes": files.notes,
        "unfinished": training.unfinished(files),
    }
    write_text(run.report, render("template.html", {**facts, **sections}))
    return run.report


def write_report_or_warn(run: RunFolder) -> Path | None:
    """Write the report of a run and return its path; None, with a warning, if that fails."""
    try:
        return write_report(run)
    except Exception as error:  # noqa: BLE001 (a report that fails must not make a training run fail)
        again = command_line("fastcifar", "report", run.path)
        log.warning("no report: %s; write it with: %s", describe(error), again)
        return None
