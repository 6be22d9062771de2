"""The report of a run: one self-contained HTML page from the files of its folder."""

from __future__ import annotations

import base64
import hashlib
import logging
from importlib import resources
from pathlib import Path
from typing import Any

from fastcifar.errors import DataError
from fastcifar.io.atomic import write_text
from fastcifar.io.paths import command_line
from fastcifar.report import training
from fastcifar.report.classification import classification
from fastcifar.report.explanations import explanations
from fastcifar.report.other_sets import other_sets
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.training.run_folder import RunFolder

__all__ = ["write_report"]
log = logging.getLogger(__name__)


def write_report(run: RunFolder) -> Path:
    """Write report.html into the folder of a run; returns its path. Needs neither the data nor the network's code.

    A section whose files are missing is left out; a damaged file, and a figure that cannot be drawn, are named in the
    page. Raises DataError (4) if the folder has no results; FastcifarError (1) if the page cannot be written.
    """
    files = RunFiles(run.path)
    sections: dict[str, Any] = {
        "headline": files.attempt(training.headline),
        "environment": files.attempt(training.environment),
        "curves": files.attempt(training.curves),
        "classification": files.attempt(classification),
        "other_sets": files.attempt(other_sets),
        "explanations": files.attempt(explanations),
        "own_images": files.attempt(lambda files: explanations(files, "explain/images")),
        "lr_range_test": files.attempt(training.lr_range_test),
        "settings": files.attempt(training.settings),
    }
    if not any(sections.values()) and not files.notes:
        raise DataError(f"{run.path}: has no results to report; train it with 'fastcifar train'")
    if files.not_drawn:
        command = command_line("fastcifar", "report", run.path)
        num, reason = len(files.not_drawn), files.not_drawn[0]
        log.warning("%s: %d of its figures not drawn (%s); draw them with: %s", run.report, num, reason, command)
    write_text(run.report, _render({"name": clean(run.path.resolve().name), "notes": files.notes, **sections}))
    return run.report


def _render(report: dict[str, Any]) -> str:
    """The page: template, style and script in one text, under a policy that allows nothing else. A section that is None
    is left out."""
    import jinja2
    from markupsafe import Markup

    style, script = _file("style.css"), _file("script.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.2%}"
    page = environment.from_string(_file("template.html")).render(
        report=report,
        style=Markup(style),  # its hash is in the policy
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a name may hold a lone surrogate


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return resources.files("fastcifar.report").joinpath(name).read_text(encoding="utf-8")
