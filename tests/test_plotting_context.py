"""Figures do not depend on the user's settings of matplotlib, and leave them unchanged."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from fastcifar import plotting

pytestmark = pytest.mark.full_size
ONE_EPOCH = {"epoch": 1, "train_loss": 4.9, "train_accuracy": 0.6, "val_loss": 3.2, "val_accuracy": 0.3, "lr": 0.1}
DRAW = f"""
import sys
from pathlib import Path
from fastcifar import plotting
plotting.write_png(Path(sys.argv[1]), plotting.curves([{ONE_EPOCH}]))
assert "matplotlib.pyplot" not in sys.modules
import matplotlib
print(matplotlib.rcParams._get("backend"), matplotlib.rcParams["font.size"], matplotlib.rcParamsOrig["font.size"])
"""


def drawn(folder: Path) -> bytes:
    """A PNG and an SVG."""
    picture = plotting.write_png(folder / "picture.png", plotting.curves([ONE_EPOCH]))
    with plotting.dark():
        figure = plotting.confusion_matrix(np.array([[3, 1], [0, 2]]), ["a_b", "$c$"], "title")
    return picture.read_bytes() + plotting.svg(figure)


def test_figures_do_not_depend_on_the_users_settings_and_leave_them_unchanged(tmp_path: Path) -> None:
    usual = drawn(tmp_path)
    settings = {
        "text.usetex": True,
        "font.family": ["Nobody's Font"],
        "font.size": 30.0,
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "figure.autolayout": True,
        "axes.formatter.use_locale": True,
        "backend": "svg",
    }
    before = matplotlib.rcParams["backend"]
    try:
        with matplotlib.rc_context(settings), np.errstate(all="raise"), np.printoptions(legacy="1.13"):
            assert drawn(tmp_path) == usual
            assert {key: matplotlib.rcParams[key] for key in settings} == settings
            with plotting.own_context():
                assert set(np.geterr().values()) == {"ignore"}
            assert set(np.geterr().values()) == {"raise"}
    finally:
        matplotlib.rcParams["backend"] = before


def test_a_warning_of_matplotlib_is_not_an_error(tmp_path: Path) -> None:
    figure = plotting.curves([ONE_EPOCH])
    figure.text(0.5, 0.5, "\u732b")  # "Glyph missing from font"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="missing"):
            figure.savefig(io.BytesIO(), format="png")
        plotting.write_png(tmp_path / "picture.png", figure)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline", "matplotlibrc": b"\xff\xfe not text"}, None),
        (
            {"MPLBACKEND": "pdf", "PYTHONWARNINGS": "error", "matplotlibrc": b"font.size: 40\nnonsense\n"},
            "pdf 40.0 40.0",
        ),
    ],
)
def test_figures_are_drawn_in_any_environment(
    settings: dict[str, str | bytes], expected: str | None, tmp_path: Path
) -> None:
    """In a new process: the environment counts when matplotlib is imported."""
    (tmp_path / "matplotlibrc").write_bytes(settings.pop("matplotlibrc"))  # type: ignore[arg-type]
    environment = {
        **os.environ,
        **settings,
        "MATPLOTLIBRC": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path / "matplotlibrc"),
    }
    command = [sys.executable, "-c", DRAW, "picture.png"]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    expected_picture = plotting.write_png(tmp_path / "expected.png", plotting.curves([ONE_EPOCH]))
    assert (tmp_path / "picture.png").read_bytes() == expected_picture.read_bytes()
    if expected is not None:  # the user's own settings, for the user
        assert process.stdout.strip() == expected


def test_the_ticks_of_the_accuracy_are_percentages() -> None:
    (axis,) = plotting.curves([ONE_EPOCH], ("accuracy",)).axes
    assert [axis.yaxis.get_major_formatter()(value) for value in (0.625, 0.6, 0.07)] == ["62.5%", "60%", "7%"]


def test_the_best_epoch_is_the_given_one_else_that_of_the_highest_accuracy() -> None:
    history = [ONE_EPOCH, {**ONE_EPOCH, "epoch": 2, "val_accuracy": 1.0}]
    for given, expected in ((None, 2), (1, 1)):
        (axis,) = plotting.curves(history, ("loss",), given).axes
        assert axis.get_legend().get_texts()[-1].get_text() == f"best: epoch {expected}"


def test_curves_of_one_epoch_have_one_tick_and_start_at_zero() -> None:
    for panel, axis in zip(("loss", "accuracy", "lr"), plotting.curves([ONE_EPOCH]).axes, strict=True):
        low, high = axis.get_xlim()
        assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1], panel
        bottom, top = axis.get_ylim()
        assert bottom == 0, panel
        assert top == pytest.approx(1.25 * max(value for key, value in ONE_EPOCH.items() if key.endswith(panel))), panel
