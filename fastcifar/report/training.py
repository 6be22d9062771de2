"""Settings, environment and course of the training: headline, settings, curves, LR range test."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcifar.config import AUTO_SUGGESTIONS, TrainConfig
from fastcifar.errors import DataError
from fastcifar.io.paths import command_line
from fastcifar.report.figures import Drawing, drawing
from fastcifar.report.run_files import RunFiles, clean, number
from fastcifar.training.progress import duration
from fastcifar.training.run_folder import COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS, ENVIRONMENT, CONFIG, RESULTS = "metrics.json", "env.json", "config.yaml", "results.csv"
RANGE_TEST = "lr_find/lr_find.csv"
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """metrics.json."""

    scores: Pairs
    """Names and values as text; the first is the most important."""
    facts: Pairs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """config.yaml."""

    changed: Pairs
    """Those that differ from the defaults of `train`."""
    all: Pairs


@dataclass(frozen=True, kw_only=True)
class Curves:
    """results.csv."""

    drawings: tuple[Drawing, ...]
    """Loss, accuracy, learning rate, or those of them that can be drawn."""
    summary: str
    table: tuple[tuple[str, ...], ...]
    """A row for each epoch: number, lr, training loss and accuracy, and those of validation if there are any."""


@dataclass(frozen=True, kw_only=True)
class LrRangeTest:
    """lr_find/lr_find.csv."""

    drawing: Drawing | None
    suggestions: Pairs
    why_not: str


def headline(files: RunFiles) -> Headline | None:
    """Scores and facts of metrics.json."""
    metrics = files.mapping(METRICS)
    if metrics is None:
        return None

    def formatted(key: str, form: str) -> str | None:
        return None if metrics.get(key) is None else form.format(number(METRICS, metrics, key))

    seconds = None if metrics.get("train_seconds") is None else number(METRICS, metrics, "train_seconds")
    scores = [
        ("test accuracy", formatted("test_accuracy", "{:.2%}")),
        (f"with {clean(metrics.get('tta', 'augmentation'), 40)}", formatted("tta_accuracy", "{:.2%}")),
        ("test loss", formatted("test_loss", "{:.4f}")),
        ("training time", None if seconds is None else duration(seconds)),
    ]
    facts = [
        ("Network", _text(metrics, "model")),
        ("Parameters", formatted("num_parameters", "{:,.0f}")),
        ("Recipe", _text(metrics, "recipe")),
        ("Epochs", formatted("epochs", "{:,.0f}")),
        ("Test images", formatted("num_test_images", "{:,.0f}")),
        ("Weights", _text(metrics, "weights")),
    ]
    return Headline(scores=_known(scores), facts=_known(facts))


def environment(files: RunFiles) -> Pairs | None:
    """When and where the run was trained: env.json."""
    env = files.mapping(ENVIRONMENT)
    if env is None:
        return None
    started, command, threads = _text(env, "started"), env.get("command"), _text(env, "num_threads")
    with suppress(TypeError, ValueError):
        started = f"{datetime.fromisoformat(env['started']):%-d %B %Y, %H:%M %Z}".strip()
    processor = " · ".join(part for part in (_text(env, "processor"), threads and f"{threads} threads") if part)
    versions = " · ".join(f"{name} {_text(env, name)}" for name in ("fastcifar", "torch", "python") if name in env)
    return _known(
        [
            ("Trained", started),
            ("Device", _text(env, "gpu") or processor),
            ("System", _text(env, "system")),
            ("Versions", versions),
            ("Command", clean(command_line(*map(str, command)), 1_000) if isinstance(command, list) else None),
        ]
    )


def settings(files: RunFiles) -> Settings | None:
    """The settings of config.yaml, and those of them that differ from the defaults."""
    config = files.mapping(CONFIG)
    if config is None:
        return None
    try:
        rows = [(clean(key, 80), _shown(value)) for key, value in config.items()]
    except (RecursionError, ValueError) as error:
        raise DataError(f"{CONFIG}: damaged: {clean(error)}") from error
    defaults = {key: _shown(value) for key, value in TrainConfig().to_settings().items()}
    changed = tuple((key, value) for key, value in rows if key != "data_dir" and defaults.get(key) != value)
    return Settings(changed=changed, all=tuple(rows))


def _shown(value: object) -> str:
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return clean(", ".join(":".join(map(_shown, v)) if isinstance(v, (list, tuple)) else _shown(v) for v in value))
    return clean(f"{value:g}" if isinstance(value, float) else value)


def curves(files: RunFiles) -> Curves | None:
    """Loss, accuracy and learning rate by epoch, from results.csv."""
    rows = files.rows(RESULTS, COLUMNS)
    if not rows:
        return None
    is_validated = rows[0]["val_loss"] != ""
    history = [_epoch(row, is_validated) for row in rows]
    first, last = history[0], history[-1]
    if len(history) > 1:
        summary = f"{len(history)} epochs; training loss from {first['train_loss']:.3f} to {last['train_loss']:.3f}"
    else:
        summary = f"1 epoch; training loss {first['train_loss']:.3f}"
    if is_validated:
        best = max(history, key=lambda row: row["val_accuracy"])
        summary += f"; best validation accuracy {best['val_accuracy']:.2%}, in epoch {best['epoch']}"
    drawings = [_curve(files, history, panel) for panel in ("loss", "accuracy", "lr")]
    return Curves(drawings=tuple(filter(None, drawings)), summary=summary, table=tuple(map(_table_row, history)))


def _curve(files: RunFiles, history: list[dict[str, Any]], panel: str) -> Drawing | None:
    def draw() -> Figure:
        from fastcifar import plotting

        return plotting.curves(history, (panel,))

    name = "Learning rate" if panel == "lr" else panel.capitalize()
    return drawing(files, draw, f"{name} by epoch; the table below has the numbers")


def _epoch(row: dict[str, str], is_validated: bool) -> dict[str, Any]:
    keys = ["lr", "train_loss", "train_accuracy", *(["val_loss", "val_accuracy"] if is_validated else [])]
    numbers = {key: number(RESULTS, row, key) for key in keys}
    return {"epoch": int(number(RESULTS, row, "epoch")), "val_loss": None, "val_accuracy": None, **numbers}


def _table_row(row: dict[str, Any]) -> tuple[str, ...]:
    cells = [f"{row['epoch']}", f"{row['lr']:.3g}", f"{row['train_loss']:.4f}", f"{row['train_accuracy']:.2%}"]
    if row["val_loss"] is not None:
        cells += [f"{row['val_loss']:.4f}", f"{row['val_accuracy']:.2%}"]
    return tuple(cells)


def lr_range_test(files: RunFiles) -> LrRangeTest | None:
    """The LR range test of `train --lr auto`, drawn from its table."""
    rows = files.rows(RANGE_TEST, ("lr", "loss", "smoothed_loss"))
    if not rows:
        return None
    from fastcifar.training.lr_curve import LrCurve

    lrs = np.array([number(RANGE_TEST, row, "lr") for row in rows])
    if lrs[0] <= 0 or (np.diff(lrs) <= 0).any():
        raise DataError(f"{RANGE_TEST}: damaged: expected learning rates above 0, each above the one before")
    losses = np.array([number(RANGE_TEST, row, "loss") for row in rows])
    curve = LrCurve(rates=lrs, losses=losses, ended=f"{len(lrs):,} steps")

    optimizer = (files.mapping(CONFIG) or {}).get("optimizer")
    chosen = AUTO_SUGGESTIONS.get(str(optimizer))

    def draw() -> Figure:
        from fastcifar import plotting

        return plotting.lr_curve(curve, chosen)

    suggestions = tuple((name, f"{lr:.3g}") for name, lr in curve.suggestions.items())
    summary = ", ".join(f"{name} {lr}" for name, lr in suggestions) or "no suggestion"
    alt = f"Training loss over learning rate, from {lrs[0]:.3g} to {lrs[-1]:.3g}: {summary}"
    why_not = clean(curve.why_not or "", 500)
    return LrRangeTest(drawing=drawing(files, draw, alt), suggestions=suggestions, why_not=why_not)


def _text(values: dict[str, Any], key: str) -> str | None:
    return None if values.get(key) is None else clean(values[key])


def _known(pairs: list[tuple[str, str | None]]) -> Pairs:
    return tuple((name, value) for name, value in pairs if value)
