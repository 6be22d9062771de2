"""What is known of a run from the files of its folder: settings, scores, history. Nothing of it is trusted."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastcifar import recipes
from fastcifar.config import TrainConfig
from fastcifar.config.optimizer import default_lr
from fastcifar.errors import DataError, one_line
from fastcifar.inference.metrics import wilson_interval
from fastcifar.io.paths import why_missing
from fastcifar.io.reading import read_bytes, read_mapping
from fastcifar.runs.group import Group, is_group, load_group
from fastcifar.training.run_folder import COLUMNS, RunFolder

MAX_BYTES = 8 * 2**20
NOT_COMPARED = ("recipe", "data_dir", "device", "threads", "log_every", "log")
"""Settings that say where a run was trained, not what it does."""
Row = dict[str, float]


@dataclass(frozen=True)
class RunSummary:
    """A run, by the files of its folder."""

    run: RunFolder
    name: str
    """Of its folder; with that of its group, if it has one: 'group/seed-0'."""

    @cached_property
    def config(self) -> TrainConfig | None:
        """Its settings; None if they are missing or damaged."""
        try:
            return self.run.read_config()
        except DataError:
            return None

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """As `RunFolder.stored_metrics`."""
        return self.run.stored_metrics()

    def score(self, key: str) -> float | None:
        """A finite number of metrics.json; None if it has none of that name."""
        return _finite(self.metrics.get(key))

    @property
    def best(self) -> dict[str, Any] | None:
        """Epoch, val_loss and val_accuracy of its weights, by metrics.json; None before the training has ended."""
        best = self.metrics.get("best")
        return best if isinstance(best, dict) else None

    @property
    def best_val_accuracy(self) -> float | None:
        """The validation accuracy of its weights, 0..1; None without validation."""
        if self.best is not None:  # not the largest of the history, if --max-steps ended the training within an epoch
            return _finite(self.best.get("val_accuracy"))
        rows = [row["val_accuracy"] for row in self.history if "val_accuracy" in row]
        return max(rows, default=None)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of its test accuracy, over other test images of the same kind (Wilson); None if unknown."""
        accuracy, num = self.score("test_accuracy"), self.score("num_test_images")
        if accuracy is None or num is None or not 0 <= accuracy <= 1 or not 1 <= num < 2**53:
            return None
        return wilson_interval(round(accuracy * num), int(num))

    @cached_property
    def history(self) -> tuple[Row, ...]:
        """The rows of results.csv, without empty cells; () if it is missing or damaged."""
        with contextlib.suppress(DataError):
            return read_history(self.run)
        return ()

    @cached_property
    def started(self) -> str:
        """When its training began, ISO 8601; empty if that is unknown."""
        with contextlib.suppress(OSError, ValueError):
            return one_line(read_mapping(self.run.path / "env.json", MAX_BYTES).get("started", ""), 40)
        return ""

    @property
    def is_finished(self) -> bool:
        """Whether its training has ended."""
        return bool(self.metrics)

    @property
    def has_diverged(self) -> bool:
        """Whether it ended with a loss that is not finite, or before, with a range test that found no rate."""
        return "diverged" in self.metrics

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from those of its recipe, or from the defaults; by name."""
        return {} if self.config is None else changed_settings(self.config)


def _finite(value: object) -> float | None:
    is_number = type(value) in (int, float) and math.isfinite(float(str(value)))
    return float(str(value)) if is_number else None


def read_metrics(run: RunFolder) -> dict[str, Any]:
    """metrics.json; empty before the training has ended. Raises DataError if it is damaged, or there is no
    such folder."""
    with _reading(run, run.metrics, "the scores"):
        return read_mapping(run.metrics, MAX_BYTES)
    return {}


def read_history(run: RunFolder) -> tuple[Row, ...]:
    """The rows of results.csv, without empty cells; () before the first epoch has ended. Raises DataError if it is
    damaged, or the folder is missing."""
    with _reading(run, run.results, "the epochs"):
        text = read_bytes(run.results, MAX_BYTES).decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
        parsed = tuple({key: float(row[key]) for key in COLUMNS if row[key] not in ("", None)} for row in rows)
        if not all(map(math.isfinite, (value for row in parsed for value in row.values()))):
            raise ValueError("a number is not finite")
        return parsed
    return ()


@contextlib.contextmanager
def _reading(run: RunFolder, file: Path, content: str) -> Iterator[None]:
    """In the block a file that is not there yet is no error; any other raises DataError."""
    try:
        yield
    except FileNotFoundError as error:
        if not run.path.is_dir():
            raise DataError(f"{run.path}: {why_missing(run.path)}; expected the folder of a run") from error
    except (OSError, ValueError, csv.Error, KeyError) as error:
        raise DataError(f"{file}: not {content} of a run ({one_line(error)}); restore it from a copy") from error


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that differ from those of the recipe of `config`, or from the defaults; by name."""
    base = TrainConfig()
    if config.recipe in recipes.names():
        base = recipes.load(str(config.recipe)).config
    defaults, settings = base.to_settings(), config.to_settings()
    if defaults["lr"] is None and settings["lr"] == default_lr(config.model, config.optimizer.name):
        settings["lr"] = None  # a run stores its default rate as a number
    return {key: value for key, value in settings.items() if key not in NOT_COMPARED and value != defaults[key]}


def setting_text(value: Any) -> str:
    """The value of a setting as text: '0.1', '15, 25', '20:0.3, 24:0.7', 'none'."""
    if isinstance(value, (list, tuple)):
        texts = [":".join(map(str, each)) if isinstance(each, (list, tuple)) else setting_text(each) for each in value]
        return ", ".join(texts) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def list_runs(runs_dir: Path) -> list[RunSummary | tuple[Group, list[RunSummary]]]:
    """The runs in a folder, and its groups with their runs, by name. A group that is damaged is left out."""
    found: list[RunSummary | tuple[Group, list[RunSummary]]] = []
    for path in _folders(runs_dir):
        if is_group(path):
            with contextlib.suppress(DataError):
                group = load_group(path)
                found.append((group, list(summaries(group))))
        elif RunFolder(path).is_trained or RunFolder(path).metrics.is_file():
            found.append(RunSummary(RunFolder(path), path.name))
    return found


def summaries(group: Group) -> Iterator[RunSummary]:
    """The runs of a group that have begun."""
    for member in group.members:
        run = group.run(member)
        if run.path.is_dir():
            yield RunSummary(run, f"{group.path.name}/{member.name}")


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror}); expected the folder of runs") from error
