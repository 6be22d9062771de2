"""Settings, environment and course of the training: headline, settings, curves, LR range test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar import plotting
from fastcifar.config import AUTO_SUGGESTIONS, ModelConfig, TrainConfig
from fastcifar.errors import DataError, FastcifarError
from fastcifar.io.paths import command_line
from fastcifar.report.dataset import leaks, shown_data_dir
from fastcifar.report.figures import drawing
from fastcifar.report.run_files import CONFIG, ENVIRONMENT, METRICS, RunFiles, clean, interval, number
from fastcifar.training.lr_curve import LrCurve
from fastcifar.training.progress import duration
from fastcifar.training.run_folder import COLUMNS, RunFolder

RESULTS = "results.csv"
RANGE_TEST = "lr_find/lr_find.csv"
MAX_COMMAND = 1_000
Pairs = list[tuple[str, str]]


def headline(files: RunFiles) -> dict[str, Pairs] | None:
    """Scores, the most important first, and facts of metrics.json."""
    metrics = files.mapping(METRICS)
    if metrics is None:
        return None

    def shown(key: str, form: Callable[[float], str]) -> str | None:
        return None if metrics.get(key) is None else form(number(METRICS, metrics, key))

    has_interval = "test_accuracy_interval" in metrics
    scores = [
        ("test accuracy", shown("test_accuracy", "{:.2%}".format)),
        ("95% interval", interval(METRICS, metrics, "test_accuracy_interval") if has_interval else None),
        (f"with {clean(metrics.get('tta', 'augmentation'), 40)}", shown("tta_accuracy", "{:.2%}".format)),
        ("test loss", shown("test_loss", "{:.4f}".format)),
        ("training time", shown("train_seconds", duration)),
    ]
    facts = [
        ("Network", _text(metrics, "model")),
        ("Parameters", shown("num_parameters", "{:,.0f}".format)),
        ("Recipe", _text(metrics, "recipe")),
        ("Epochs", shown("epochs", "{:,.0f}".format)),
        ("Test images", shown("num_test_images", "{:,.0f}".format)),
        ("Leaks", leaks(files, metrics)),
        ("Weights", _text(metrics, "weights")),
    ]
    return {"scores": _known(scores), "facts": _known(facts)}


def environment(files: RunFiles) -> Pairs | None:
    """When and where the run was trained: env.json."""
    env = files.mapping(ENVIRONMENT)
    if env is None:
        return None
    started, threads = _text(env, "started"), _text(env, "num_threads")
    with suppress(KeyError, TypeError, ValueError):
        started = f"{datetime.fromisoformat(env['started']):%-d %B %Y, %H:%M %Z}".strip()
    processor = " · ".join(part for part in (_text(env, "processor"), threads and f"{threads} threads") if part)
    versions = " · ".join(f"{name} {_text(env, name)}" for name in ("fastcifar", "torch", "python") if name in env)
    return _known(
        [
            ("Trained", started),
            ("Device", _text(env, "gpu") or processor),
            ("System", _text(env, "system")),
            ("Versions", versions),
        ]
    )


def command(files: RunFiles) -> dict[str, Any] | None:
    """The command that started the run: `text`, and whether that is all of it; from env.json."""
    words = (files.mapping(ENVIRONMENT) or {}).get("command")
    if not isinstance(words, list) or not words:
        return None
    whole = command_line(*map(str, words))
    text = clean(whole, MAX_COMMAND)
    return {"text": text, "is_whole": text == whole}


def unfinished(files: RunFiles) -> str | None:
    """The command that finishes the run; None if its training has ended."""
    run, model = RunFolder(files.root), ModelConfig()
    if not run.is_unfinished:
        return None
    with suppress(FastcifarError):  # `settings` says that they are damaged
        model = run.read_config().model
    return clean(run.resume_command(model), MAX_COMMAND)


def settings(files: RunFiles) -> dict[str, Pairs] | None:
    """The settings of config.yaml, and those of them that differ from the defaults."""
    config = files.mapping(CONFIG)
    if config is None:
        return None
    if isinstance(config.get("data_dir"), str):
        config["data_dir"] = str(shown_data_dir(files, Path(config["data_dir"])))
    try:
        rows = [(clean(key, 80), shown_setting(value)) for key, value in config.items()]
    except (RecursionError, ValueError) as error:
        raise DataError(f"{CONFIG}: damaged: {clean(error)}") from error
    defaults = {key: shown_setting(value) for key, value in TrainConfig().to_settings().items()}
    changed = [(key, value) for key, value in rows if key != "data_dir" and defaults.get(key) != value]
    return {"changed": changed, "all": rows}


def shown_setting(value: object) -> str:
    """The value of a setting in words."""
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return clean(
            ", ".join(
                ":".join(map(shown_setting, v)) if isinstance(v, (list, tuple)) else shown_setting(v) for v in value
            )
        )
    return clean(f"{value:g}" if isinstance(value, float) else value)


def curves(files: RunFiles) -> dict[str, Any] | None:
    """Loss, accuracy and learning rate by epoch, from results.csv: those of the drawings that could be made, a summary,
    and a table."""
    rows = files.rows(RESULTS, COLUMNS)
    if not rows:
        return None
    is_validated = rows[0]["val_loss"] != ""
    history = [_epoch(row, is_validated) for row in rows]
    first, last = history[0], history[-1]
    num_epochs = f"{len(history)} epoch{'s' * (len(history) > 1)}"
    if RunFolder(files.root).is_unfinished:
        planned = (files.attempt(lambda files: files.mapping(CONFIG)) or {}).get("epochs", "unknown")
        num_epochs += f" of {clean(planned)}"
    since = f"from {first['train_loss']:.3f} to " if len(history) > 1 else ""
    summary = f"{num_epochs}; training loss {since}{last['train_loss']:.3f}"
    best = None
    if is_validated:
        row = _best_row(files, history)
        best = row["epoch"]
        summary += f"; best validation accuracy {row['val_accuracy']:.2%}, in epoch {best}"
    drawings = [_curve(files, history, panel, best) for panel in ("loss", "accuracy", "lr")]
    return {"drawings": list(filter(None, drawings)), "summary": summary, "table": list(map(_table_row, history))}


def _best_row(files: RunFiles, history: list[dict[str, Any]]) -> dict[str, Any]:
    """That of the best weights, by metrics.json; of the highest validation accuracy where that does not say it."""
    best = (files.attempt(lambda files: files.mapping(METRICS)) or {}).get("best")
    kept = [row for row in history if isinstance(best, dict) and row["epoch"] == best.get("epoch")]
    return max(kept or history, key=lambda row: row["val_accuracy"])


def _curve(files: RunFiles, history: list[dict[str, Any]], panel: str, best: int | None) -> dict[str, Any] | None:
    name = "Learning rate" if panel == "lr" else panel.capitalize()
    alt = f"{name} by epoch; the table below has the numbers"
    return drawing(files, lambda: plotting.curves(history, (panel,), best), alt)


def _epoch(row: dict[str, str], is_validated: bool) -> dict[str, Any]:
    keys = ["lr", "train_loss", "train_accuracy", *(["val_loss", "val_accuracy"] if is_validated else [])]
    numbers = {key: number(RESULTS, row, key) for key in keys}
    return {"epoch": int(number(RESULTS, row, "epoch")), "val_loss": None, "val_accuracy": None, **numbers}


def _table_row(row: dict[str, Any]) -> list[str]:
    cells = [f"{row['epoch']}", f"{row['lr']:.3g}", f"{row['train_loss']:.4f}", f"{row['train_accuracy']:.2%}"]
    if row["val_loss"] is not None:
        cells += [f"{row['val_loss']:.4f}", f"{row['val_accuracy']:.2%}"]
    return cells


def lr_range_test(files: RunFiles) -> dict[str, Any] | None:
    """The LR range test of `train --lr auto`, drawn from its table."""
    rows = files.rows(RANGE_TEST, ("lr", "loss", "smoothed_loss"))
    if not rows:
        return None
    lrs = np.array([number(RANGE_TEST, row, "lr") for row in rows])
    if lrs[0] <= 0 or (np.diff(lrs) <= 0).any():
        raise DataError(f"{RANGE_TEST}: damaged: expected learning rates above 0, each above the one before")
    losses = np.array([number(RANGE_TEST, row, "loss") for row in rows])
    curve = LrCurve(rates=lrs, losses=losses, stop_reason=f"{len(lrs):,} steps")
    chosen = AUTO_SUGGESTIONS.get(str((files.mapping(CONFIG) or {}).get("optimizer")))
    suggestions = [(name, f"{lr:.3g}") for name, lr in curve.suggestions.items()]
    summary = ", ".join(f"{name} {lr}" for name, lr in suggestions) or "no suggestion"
    alt = f"Training loss over learning rate, from {lrs[0]:.3g} to {lrs[-1]:.3g}: {summary}"
    return {
        "drawing": drawing(files, lambda: plotting.lr_curve(curve, chosen), alt),
        "suggestions": suggestions,
        "failure_reason": clean(curve.failure_reason or "", 500),
    }


def _text(values: dict[str, Any], key: str) -> str | None:
    return None if values.get(key) is None else clean(values[key])


def _known(pairs: list[tuple[str, str | None]]) -> Pairs:
    return [(name, value) for name, value in pairs if value]
