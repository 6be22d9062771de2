"""A figure that cannot be drawn is a warning: the results are written first."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure

from fastcifar.cli import main
from fastcifar.errors import Stopped
from fastcifar.plotting import figure_writer
from fastcifar.training import RunFolder
from fastcifar.training.lr_curve import LrCurve

INLINE = "module://matplotlib_inline.backend_inline"


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **settings: object) -> Any:
        raise error

    return fail


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def warnings_of(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("warning: ") and "drawn" in line]


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Result]:
    """A run in a process that cannot draw, under a notebook's MPLBACKEND."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", INLINE)
        patch.setattr(Figure, "savefig", failing(MemoryError("std::bad_alloc")))
        args = ("--model", "small", "--batch-size", 100, "--max-steps", 1, "--name", "a", "--json")
        result = invoke("train", "--data-dir", data_dir, "--runs-dir", runs, *args)
    return RunFolder(runs / "a"), result


def test_a_run_is_complete_if_its_figures_fail(trained: tuple[RunFolder, Result]) -> None:
    run, result = trained
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["test_accuracy"] == json.loads(run.metrics.read_text())["test_accuracy"]
    assert all(path.is_file() for path in (run.results, run.predictions, run.best, run.last, run.report))
    assert not run.curves.exists()
    curves, page = warnings_of(result)
    assert curves == (
        f"warning: {run.curves}: not drawn (MemoryError: std::bad_alloc); the results are complete; "
        f"draw it with: fastcifar train --resume {run.path}"
    )
    assert page == (
        f"warning: {run.report}: 5 of its figures not drawn (MemoryError: std::bad_alloc); "
        f"draw them with: fastcifar report {run.path}"
    )
    assert run.report.read_text(encoding="utf-8").count("This figure could not be drawn") == 2


def test_the_printed_command_draws_what_failed(
    trained: tuple[RunFolder, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, result = trained
    monkeypatch.setenv("MPLBACKEND", INLINE)
    metrics = {**json.loads(run.metrics.read_text()), "train_seconds": None}
    command = warnings_of(result)[0].rpartition("draw it with: fastcifar ")[2].split()
    again = invoke(*command)
    assert (again.exit_code, warnings_of(again)) == (0, [])
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    assert "could not be drawn" not in run.report.read_text(encoding="utf-8")
    assert {**json.loads(run.metrics.read_text()), "train_seconds": None} == metrics


def test_eval_and_explain_keep_their_results_if_figures_fail(
    trained: tuple[RunFolder, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = trained
    monkeypatch.setattr(Figure, "savefig", failing(RuntimeError("no canvas\nhere")))
    folder = run.path / "eval" / "test"
    folder.mkdir(parents=True)
    (folder / "confusion.png").write_bytes(b"of an earlier evaluation")
    result = invoke("eval", run.path, "--json")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.csv", "predictions.npz"]
    assert json.loads(result.stdout)["files"] == [
        str(folder / name) for name in ("metrics.json", "predictions.csv", "predictions.npz")
    ]
    (line,) = warnings_of(result)
    assert "confusion.png" in line
    assert "and 1 more: not drawn (RuntimeError: no canvas here)" in line
    assert line.endswith(f"draw them with: fastcifar eval {run.path} --split test --tta none")

    result = invoke("explain", run.path, "--n", 4)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in run.explain.iterdir()) == ["index.csv", "maps.npz", "sheets"]
    assert not list((run.explain / "sheets").iterdir())
    assert "grid.png" not in result.stdout
    assert [line.split(":")[1].strip() for line in warnings_of(result)] == [
        f"{run.explain}/grid.png, " + ", ".join(_sheets(run, 2)) + " and 2 more",
        str(run.report),
    ]


def _sheets(run: RunFolder, most: int) -> list[str]:
    rows = csv.DictReader((run.explain / "index.csv").read_text().splitlines())
    return [f"{run.explain}/{row['file']}" for row in rows][:most]


def test_a_preview_that_cannot_be_drawn_is_an_error_of_one_line(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", failing(RuntimeError("no canvas")))
    result = invoke("preview", "--n", 1, "--data-dir", data_dir, "--out", tmp_path / "p.png")
    assert (result.exit_code, result.stdout) == (1, "")
    *_, line = result.stderr.splitlines()
    assert line == f"Error: {tmp_path}/p.png: cannot be drawn (RuntimeError: no canvas)"


def test_the_table_of_a_range_test_does_not_need_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    curve = LrCurve(rates=np.geomspace(1e-4, 1, 20), losses=np.linspace(3, 1, 20), stop_reason="end_lr reached")
    monkeypatch.setattr(os, "replace", _full_for_png_files)
    with caplog.at_level(logging.WARNING, "fastcifar"):
        assert curve.write(tmp_path, "minimum") == (tmp_path / "lr_find.csv",)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}/lr_find.png: not drawn ({tmp_path}/lr_find.png: cannot be writ")


def _full_for_png_files(partial: Path, path: Path, real: Callable[..., None] = os.replace) -> None:
    if path.suffix == ".png":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(partial, path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(signal.SIGTERM, "now")])
def test_a_signal_while_a_figure_is_drawn_stops_the_program(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), figure_writer(tmp_path, "again") as write:
        write("a.png", failing(error))


def test_matplotlib_that_cannot_be_imported_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fastcifar.plotting.figures", None)
    with caplog.at_level(logging.WARNING, "fastcifar"), figure_writer(tmp_path, "again") as write:
        assert write("a.png", Figure) is None
    assert f"{tmp_path}/a.png: not drawn (" in caplog.text
