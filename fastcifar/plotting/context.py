"""matplotlib with our own settings, whatever the user's MPLBACKEND, matplotlibrc, style sheets, rcParams or warnings.

A module of its own because it must be imported before any other part of matplotlib: importing matplotlib fails under a
notebook's MPLBACKEND or with an unreadable matplotlibrc.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np

from fastcifar.system.quiet import quiet_package


def _quiet() -> AbstractContextManager[None]:
    """In the block, nothing warns, and matplotlib does not log, e.g. a bad matplotlibrc or missing font weights."""
    return quiet_package("matplotlib", logging.CRITICAL)


@contextmanager
def _settings_hidden() -> Iterator[None]:
    """In the block, only matplotlib's own matplotlibrc is found."""
    exists = os.path.exists
    hidden = {name: os.environ.pop(name) for name in ("MPLBACKEND", "MATPLOTLIBRC") if name in os.environ}

    def packaged(path: Any) -> bool:
        return exists(path) and (not str(path).endswith("matplotlibrc") or "mpl-data" in str(path))

    os.path.exists = packaged  # the matplotlibrc of the working folder takes precedence over the variables
    try:
        yield
    finally:
        os.path.exists = exists
        os.environ.update(hidden)


_is_first = "matplotlib" not in sys.modules
with _quiet(), _settings_hidden():
    import matplotlib
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg

if _is_first:  # other code in this process gets the user's settings, as far as they are valid
    with _quiet(), suppress(OSError, ValueError, KeyError):
        _settings = matplotlib.rc_params_from_file(matplotlib.matplotlib_fname(), use_default_template=False)
        matplotlib.rcParams.update(_settings)
        matplotlib.rcParamsOrig.update(_settings)
    with suppress(KeyError, ValueError):
        matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]

_LIGHT: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
_LIGHT |= {"font.sans-serif": ["DejaVu Sans"], "svg.hashsalt": "fastcifar"}
_DARK: dict[Any, Any] = {
    "figure.facecolor": "#16181d",
    "axes.facecolor": "#16181d",
    "savefig.facecolor": "#16181d",
    "text.color": "#e6e6e6",
    "axes.labelcolor": "#e6e6e6",
    "axes.edgecolor": "#8a8f98",
    "xtick.color": "#c4c8cf",
    "ytick.color": "#c4c8cf",
    "grid.color": "#8a8f98",
}
_is_dark = ContextVar("_is_dark", default=False)


def is_dark() -> bool:
    """Whether figures are now made light on a dark ground."""
    return _is_dark.get()


@contextmanager
def own_context() -> Iterator[None]:
    """In the block, or in a decorated function, figures are made and written with our settings; the user's are restored
    after it. Numbers are printed by NumPy's defaults, from which the identifiers in an SVG are hashed."""
    settings = {**_LIGHT, **_DARK} if _is_dark.get() else _LIGHT
    with _quiet(), np.errstate(all="ignore"), np.printoptions(legacy=False), matplotlib.rc_context(settings):
        yield


@contextmanager
def dark() -> Iterator[None]:
    """Figures made in the block are light on a dark ground."""
    token = _is_dark.set(True)
    try:
        yield
    finally:
        _is_dark.reset(token)
