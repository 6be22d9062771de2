"""The report of a group of runs: scores with their spread, each run, the effect of each setting of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastcifar import plotting
from fastcifar.config import TrainConfig
from fastcifar.io.atomic import write_text
from fastcifar.report.dataset import Dataset, dataset
from fastcifar.report.figures import drawing
from fastcifar.report.page import render
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.report.training import shown_setting
from fastcifar.runs.group import Group
from fastcifar.runs.scores import SCORES, VAL_ACCURACY, Score, scores_of, shown, value_of
from fastcifar.runs.statistics import Mean, mean_of
from fastcifar.runs.summary import NOT_COMPARED, Row, RunSummary, setting_text, summaries
from fastcifar.runs.sweep import Sweep, sweep_results

Histories = dict[str, list[tuple[Row, ...]]]


def write_group_report(group: Group) -> Path:
    """Write report.html, and curves.png of a group of seeds, into the folder of a group; returns the path of the page.

    Raises FastcifarError (1) if it cannot be written.
    """
    runs = list(summaries(group))
    files = RunFiles(group.path)
    histories = {group.path.resolve().name: [run.history for run in runs if run.history and not run.has_diverged]}
    curves = None
    if group.kind == "seeds" and any(histories.values()):
        with plotting.figure_writer(group.path, "repeat the command to draw it") as write:
            write("curves.png", lambda: plotting.group_curves(histories))
        curves = [_curve(files, histories, panel) for panel in ("loss", "accuracy")]
    page: dict[str, Any] = {
        "name": clean(group.path.resolve().name),
        "dataset": _dataset(runs),
        "kind": "sweep" if group.kind == "sweep" else f"{len(group.members)} seeds",
        "facts": _facts(group, runs),
        "scores": [],
        "runs": _runs_table(runs),
        "curves": curves,
        "changed": _changed(group),
        "effects": None,
        "cells": None,
    }
    if group.kind == "sweep":
        page |= _sweep_tables(sweep_results(group))
    else:
        means = scores_of(runs)
        page["scores"] = [(score.name, shown(score, means[score.key])) for score in SCORES if score.key in means]
    path = group.path / "report.html"
    write_text(path, render("group.html", page))
    return path


def _curve(files: RunFiles, histories: Histories, panel: str) -> dict[str, Any] | None:
    alt = f"{panel.capitalize()} by epoch: mean of the runs, and a band of one standard deviation"
    return drawing(files, lambda: plotting.group_curves(histories, (panel,)), alt)


def _dataset(runs: Sequence[RunSummary]) -> Dataset | None:
    """That of all runs that name one; None if they do not, or if it is not the same."""
    found = {dataset(RunFiles(run.run.path)) for run in runs if run.metrics} - {None}
    return found.pop() if len(found) == 1 else None


def _facts(group: Group, runs: Sequence[RunSummary]) -> list[tuple[str, str]]:
    num_diverged = sum(run.has_diverged for run in runs)
    facts = [
        ("Network", clean(group.config.model.name)),
        ("Recipe", clean(group.config.recipe or "none")),
        ("Finished runs", f"{sum(run.is_finished for run in runs)} of {len(group.members)}"),
    ]
    facts += [("Diverged", str(num_diverged))] if num_diverged else []
    if group.kind == "seeds":
        facts.append(("Intervals", "mean ± half the 95% interval over the runs (Student's t)"))
    return facts


def _runs_table(runs: Sequence[RunSummary]) -> dict[str, Any]:
    scores = [score for score in SCORES if any(value_of(run, score) is not None for run in runs)]
    rows = []
    for run in runs:
        name = run.run.path.name
        cells = [_cell(score, value_of(run, score)) for score in scores]
        state = "diverged" if run.has_diverged else "finished" if run.is_finished else "not finished"
        link = f"{quote(name)}/report.html" if run.run.report.is_file() else ""
        rows.append({"name": clean(name), "link": link, "cells": [str(len(run.history)), *cells, state]})
    return {"columns": ["Run", "Epochs", *(score.name.capitalize() for score in scores), "State"], "rows": rows}


def _cell(score: Score, value: float | None) -> str:
    return "–" if value is None else shown(score, mean_of([value]))


def _sweep_tables(sweep: Sweep) -> dict[str, Any]:
    effects = [
        {
            "name": f"{each.name} = {clean(setting_text(each.value))}",
            "link": "",
            "cells": _mean_cells(each.val_accuracy, each.num_diverged),
        }
        for each in sweep.effects
    ]
    cells = [
        {
            "name": ", ".join(f"{key} = {clean(setting_text(value))}" for key, value in cell.settings.items()),
            "link": "",
            "cells": _mean_cells(cell.val_accuracy, cell.num_diverged),
        }
        for cell in sweep.cells
    ]
    scores = []
    if sweep.best is not None:
        means = scores_of(sweep.best.runs)
        scores = [(f"best: {score.name}", shown(score, means[score.key])) for score in SCORES if score.key in means]
    columns = ["Validation accuracy", "Runs", "Diverged"]
    return {
        "effects": {"columns": ["Setting", *columns], "rows": effects},
        "cells": {"columns": ["Settings", *columns], "rows": cells},
        "scores": scores,
    }


def _mean_cells(mean: Mean | None, num_diverged: int) -> list[str]:
    return ["–" if mean is None else shown(VAL_ACCURACY, mean), str(mean.num_runs if mean else 0), str(num_diverged)]


def _changed(group: Group) -> list[tuple[str, str]]:
    defaults = TrainConfig().to_settings()
    varied = {key for member in group.members for key in member.settings}
    settings = group.config.to_settings().items()
    return [
        (key, shown_setting(value))
        for key, value in settings
        if key not in varied and key not in NOT_COMPARED and value != defaults[key]
    ]
