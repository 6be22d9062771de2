"""matplotlib, independent of what its user has set: MPLBACKEND, matplotlibrc, style sheets, rcParams, warnings.

A module of its own because it is imported before any other part of matplotlib: a notebook's MPLBACKEND, or a
matplotlibrc that cannot be read, is an error when matplotlib is imported.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np


@contextmanager
def _settings_hidden() -> Iterator[None]:
    """In the block, only the matplotlibrc that comes with matplotlib is found, and warnings are ignored."""
    exists = os.path.exists
    hidden = {name: os.environ.pop(name) for name in ("MPLBACKEND", "MATPLOTLIBRC") if name in os.environ}

    def packaged(path: Any) -> bool:
        return exists(path) and (not str(path).endswith("matplotlibrc") or "mpl-data" in str(path))

    os.path.exists = packaged  # the working folder's matplotlibrc is read first, whatever the variables say
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.path.exists = exists
        os.environ.update(hidden)


_is_first = "matplotlib" not in sys.modules
with _settings_hidden():
    import matplotlib
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg

if _is_first:  # whoever uses matplotlib in this process next finds the user's settings, as far as they are valid
    with warnings.catch_warnings(), suppress(OSError, ValueError, KeyError):
        warnings.simplefilter("ignore")
        _settings = matplotlib.rc_params_from_file(matplotlib.matplotlib_fname(), use_default_template=False)
        matplotlib.rcParams.update(_settings)
        matplotlib.rcParamsOrig.update(_settings)
    if os.environ.get("MPLBACKEND"):
        with suppress(ValueError):
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


@contextmanager
def _unheeded() -> Iterator[None]:
    """In the block, warnings and rounding are no errors, and numbers are printed as usual (an SVG's identifiers are
    hashes of such texts), whatever the user's code has set."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), np.printoptions(legacy=False):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def own_context() -> Iterator[None]:
    """In the block, or in a function that it decorates, figures are made and written with our settings alone; the
    user's are as before after it."""
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.CRITICAL)  # it tells of weights that a font does not have
    try:
        with _unheeded(), matplotlib.rc_context({**_LIGHT, **_DARK} if _is_dark.get() else _LIGHT):
            yield
    finally:
        fonts.setLevel(level)


@contextmanager
def dark() -> Iterator[None]:
    """Figures made in the block are light on dark."""
    token = _is_dark.set(True)
    try:
        yield
    finally:
        _is_dark.reset(token)
