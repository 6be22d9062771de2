"""What is printed where there is little room: on a terminal that is narrow, and in a notebook without widgets."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import nullcontext

import pytest

from fastcifar.bars import Bars
from fastcifar.cli.output import log_to_stderr, table

ROWS = [
    ("run", "date", "settings"),
    ("fast", "2026-11-26 10:15", "lr=0.1, momentum=0.9, --data-dir /a/long-path-of/data"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", Terminal())
    monkeypatch.setenv("COLUMNS", str(width))


def test_a_table_that_is_not_for_a_terminal_has_all_columns_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert table(ROWS, [1]).splitlines() == [
        "run   date              settings",
        "fast  2026-11-26 10:15  lr=0.1, momentum=0.9, --data-dir /a/long-path-of/data",
    ]


def test_a_table_leaves_out_columns_and_then_wraps_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch, 40)
    assert table(ROWS, [1]).splitlines() == [
        "run   settings",
        "fast  lr=0.1, momentum=0.9, --data-dir",
        "      /a/long-path-of/data",
    ]
    assert table(ROWS).splitlines()[1].startswith("fast  2026-11-26 10:15  lr=0.1")  # too little room to wrap


def test_a_table_that_fits_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch, 90)
    assert len(table(ROWS, [1]).splitlines()) == 2


@pytest.mark.parametrize("is_bar", [False, True])
def test_a_log_line_is_broken_between_its_fields(monkeypatch: pytest.MonkeyPatch, is_bar: bool) -> None:
    use_terminal(monkeypatch, 60)
    with log_to_stderr(), Bars() if is_bar else nullcontext():
        logging.getLogger("fastcifar.test").info("epoch 1/2  train loss 2.3595 accuracy 8.33%  lr 0.05  1538 images/s")
    assert "lr 0.05\n  1538 images/s\n" in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "num_columns"), [(60, 4), (120, 6)])
def test_the_bar_on_a_narrow_terminal_has_no_times(
    monkeypatch: pytest.MonkeyPatch, width: int, num_columns: int
) -> None:
    use_terminal(monkeypatch, width)
    assert len(Bars()._progress.columns) == num_columns


def test_a_notebook_without_ipywidgets_has_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # rich warns at each refresh of a bar
    with Bars() as bars:
        bars.begin("epoch 1/2", 8)
        bars.step(1, 0.5, 2)
        bars.advance(4)
    assert not bars.is_shown
    assert capsys.readouterr() == ("", "")


def test_a_notebook_with_ipywidgets_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert Bars().is_shown
    assert not Bars(shown=False).is_shown
