"""How a run was set and how it went: headline, settings, curves, range test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcifar.config import AUTO_SUGGESTIONS, TrainConfig
from fastcifar.errors import DataError
from fastcifar.io.paths import command_line
from fastcifar.report.figures import Drawing, drawing
from fastcifar.report.run_files import RunFiles, clean, number, parsed
from fastcifar.training.progress import duration
from fastcifar.training.run_folder import COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS, ENVIRONMENT, CONFIG, RESULTS, RANGE_TEST = (
    "metrics.json",
    "env.json",
    "config.yaml",
    "results.csv",
    "lr_find/lr_find.csv",
)
MOST_SETTINGS = 500
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """metrics.json: how the run ended."""

    scores: Pairs
    """What is measured, and its value as text; the first is the most important."""
    facts: Pairs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """config.yaml."""

    changed: Pairs
    """Those that are not the defaults of `train`."""
    all: Pairs


@dataclass(frozen=True, kw_only=True)
class Curves:
    """results.csv."""

    drawings: tuple[Drawing, ...]
    """Loss, accuracy, rate, or those of them that can be drawn."""
    summary: str
    table: tuple[tuple[str, ...], ...]
    """A row for each epoch: number, rate, training loss and accuracy, and those of validation if there are any."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """lr_find/lr_find.csv."""

    drawing: Drawing | None
    suggestions: Pairs
    why_not: str


def headline(files: RunFiles) -> Headline | None:
    """Scores and facts of metrics.json."""
    found = files.facts(METRICS)
    if found is None:
        return None
    accuracy, loss = number(METRICS, found, "test_accuracy", 0, 1), number(METRICS, found, "test_loss", 0)
    tta, seconds = number(METRICS, found, "tta_accuracy", 0, 1), number(METRICS, found, "train_seconds", 0, 1e10)
    parameters, images = (number(METRICS, found, key, 0, 1e15) for key in ("num_parameters", "num_test_images"))
    epochs = number(METRICS, found, "epochs", 0, 1e9)
    scores = [
        ("test accuracy", None if accuracy is None else f"{accuracy:.2%}"),
        (f"with {clean(found.get('tta', 'augmentation'), 40)}", None if tta is None else f"{tta:.2%}"),
        ("test loss", None if loss is None else f"{loss:.4f}"),
        ("training time", None if seconds is None else duration(seconds)),
    ]
    facts = [
        ("Network", _text(found, "model")),
        ("Parameters", None if parameters is None else f"{parameters:,.0f}"),
        ("Recipe", _text(found, "recipe")),
        ("Epochs", None if epochs is None else f"{epochs:,.0f}"),
        ("Test images", None if images is None else f"{images:,.0f}"),
        ("Weights", _text(found, "weights")),
    ]
    return Headline(scores=_known(scores), facts=_known(facts))


def circumstances(files: RunFiles) -> Pairs | None:
    """When and where the run was trained: env.json."""
    found = files.facts(ENVIRONMENT)
    if found is None:
        return None
    started, command, threads = _text(found, "started"), found.get("command"), _text(found, "num_threads")
    if started:
        try:
            started = f"{datetime.fromisoformat(started):%-d %B %Y, %H:%M %Z}".strip()
        except ValueError as error:
            raise DataError(f"{ENVIRONMENT}: damaged: started is {started!r}; expected a date") from error
    if command is not None and not (isinstance(command, list) and all(isinstance(word, str) for word in command)):
        raise DataError(f"{ENVIRONMENT}: damaged: command is {clean(command, 60)!r}; expected words")
    processor = " · ".join(part for part in (_text(found, "processor"), threads and f"{threads} threads") if part)
    versions = " · ".join(f"{name} {_text(found, name)}" for name in ("fastcifar", "torch", "python") if name in found)
    return _known(
        [
            ("Trained", started),
            ("Device", _text(found, "gpu") or processor),
            ("System", _text(found, "system")),
            ("Versions", versions),
            ("Command", clean(command_line(*command), 1_000) if command else None),
        ]
    )


def settings(files: RunFiles) -> Settings | None:
    """The settings of config.yaml, and those of them that are not the defaults."""
    found = files.facts(CONFIG)
    if found is None:
        return None
    try:
        rows = [(clean(key, 80), _value(value)) for key, value in found.items()]
    except (RecursionError, ValueError) as error:
        raise DataError(f"{CONFIG}: damaged: {clean(error)}") from error
    if len(rows) > MOST_SETTINGS:
        raise DataError(f"{CONFIG}: damaged: it has {len(rows):,} settings; expected at most {MOST_SETTINGS}")
    defaults = {key: _value(value) for key, value in TrainConfig().to_settings().items()}
    changed = tuple((key, value) for key, value in rows if key != "data_dir" and defaults.get(key) != value)
    return Settings(changed=changed, all=tuple(rows))


def _value(value: object) -> str:
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return clean(", ".join(":".join(map(_value, v)) if isinstance(v, (list, tuple)) else _value(v) for v in value))
    return clean(f"{value:g}" if isinstance(value, float) else value)


def curves(files: RunFiles) -> Curves | None:
    """Loss, accuracy and rate by epoch, from results.csv."""
    rows = files.rows(RESULTS, COLUMNS)
    if not rows:
        return None
    validated = [row["val_loss"] != "" for row in rows]
    if any(validated) != all(validated):
        raise DataError(f"{RESULTS}: damaged: some epochs have a validation loss and some have none")
    history = [_epoch(row, validated[0]) for row in rows]

    first, last, many = history[0], history[-1], len(history) > 1
    summary = f"{len(history)} epoch{'s' if many else ''}; training loss {first['train_loss']:.3f}"
    summary += f" at first, {last['train_loss']:.3f} at the end" if many else ""
    if validated[0]:
        best = max(history, key=lambda row: row["val_accuracy"])
        summary += f"; best validation accuracy {best['val_accuracy']:.2%}, in epoch {best['epoch']}"
    drawings = [_curve(files, history, panel) for panel in ("loss", "accuracy", "lr")]
    return Curves(drawings=tuple(filter(None, drawings)), summary=summary, table=tuple(_shown(row) for row in history))


def _curve(files: RunFiles, history: list[dict[str, Any]], panel: str) -> Drawing | None:
    def draw() -> Figure:
        from fastcifar import plotting

        return plotting.curves(history, (panel,))

    name = "Learning rate" if panel == "lr" else panel.capitalize()
    return drawing(files, draw, f"{name} by epoch; the table below has the numbers")


def _epoch(row: dict[str, str], validated: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"epoch": int(parsed(RESULTS, row, "epoch", 0, 1e9)), "val_loss": None, "val_accuracy": None}
    for part in ("train", "val") if validated else ("train",):
        made[f"{part}_loss"] = parsed(RESULTS, row, f"{part}_loss")
        made[f"{part}_accuracy"] = parsed(RESULTS, row, f"{part}_accuracy", 0, 1)
    return {**made, "lr": parsed(RESULTS, row, "lr", 0)}


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    shown = [f"{row['epoch']}", f"{row['lr']:.3g}", f"{row['train_loss']:.4f}", f"{row['train_accuracy']:.2%}"]
    if row["val_loss"] is not None:
        shown += [f"{row['val_loss']:.4f}", f"{row['val_accuracy']:.2%}"]
    return tuple(shown)


def range_test(files: RunFiles) -> RangeTest | None:
    """The range test of `train --lr auto`, drawn anew from its table."""
    rows = files.rows(RANGE_TEST, ("lr", "loss", "smoothed_loss"))
    if not rows:
        return None
    from fastcifar.training.lr_finder import LrCurve

    rates = np.array([parsed(RANGE_TEST, row, "lr", 1e-30) for row in rows])
    if len(rates) > 10_000 or (np.diff(rates) <= 0).any():
        raise DataError(f"{RANGE_TEST}: damaged: expected at most 10,000 rates, each above the one before")
    losses = np.array([parsed(RANGE_TEST, row, "loss") for row in rows])
    curve = LrCurve(rates=rates, losses=losses, ended=f"{len(rates):,} steps")

    optimizer = (files.facts(CONFIG) or {}).get("optimizer")
    chosen = AUTO_SUGGESTIONS.get(str(optimizer))

    def draw() -> Figure:
        from fastcifar import plotting

        return plotting.lr_curve(curve, chosen)

    suggestions = tuple((name, f"{rate:.3g}") for name, rate in curve.suggestions.items())
    said = ", ".join(f"{name} {rate}" for name, rate in suggestions) or "no suggestion"
    alt = f"Training loss over learning rate, from {rates[0]:.3g} to {rates[-1]:.3g}: {said}"
    return RangeTest(
        drawing=drawing(files, draw, alt), suggestions=suggestions, why_not=clean(curve.why_not or "", 500)
    )


def _text(found: dict[str, Any], key: str) -> str | None:
    value = found.get(key)
    return None if value is None else clean(value)


def _known(pairs: list[tuple[str, str | None]]) -> Pairs:
    return tuple((name, value) for name, value in pairs if value)
