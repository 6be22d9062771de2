"""What commands print on a terminal that is narrow."""

from __future__ import annotations

import io

import pytest

from fastcifar.cli.output import Bars, table

ROWS = [
    ("run", "date", "settings"),
    ("fast", "2026-11-26 10:15", "lr=0.1, momentum=0.9, --data-dir /a/long-path-of/data"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def width(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Of a terminal that stdout and stderr are."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", Terminal())
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_a_table_that_is_not_for_a_terminal_has_all_columns_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert table(ROWS, [1]).splitlines() == [
        "run   date              settings",
        "fast  2026-11-26 10:15  lr=0.1, momentum=0.9, --data-dir /a/long-path-of/data",
    ]


@pytest.mark.parametrize("width", [40], indirect=True)
def test_a_table_leaves_out_columns_and_then_wraps_the_last(width: int) -> None:
    assert table(ROWS, [1]).splitlines() == [
        "run   settings",
        "fast  lr=0.1, momentum=0.9, --data-dir",
        "      /a/long-path-of/data",
    ]
    assert table(ROWS).splitlines()[1].startswith("fast  2026-11-26 10:15  lr=0.1")  # too little room to wrap


@pytest.mark.parametrize("width", [90], indirect=True)
def test_a_table_that_fits_is_left_as_it_is(width: int) -> None:
    assert len(table(ROWS, [1]).splitlines()) == 2


@pytest.mark.parametrize(("width", "num_columns"), [(60, 4), (120, 6)], indirect=["width"])
def test_the_bar_on_a_narrow_terminal_has_no_times(width: int, num_columns: int) -> None:
    assert len(Bars()._progress.columns) == num_columns
