"""A sweep: runs for each combination of some settings, compared on validation images; the test images are scored once,
for the best."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcifar.augment.params import raw_bits
from fastcifar.config import SETTINGS, TrainConfig, require_known
from fastcifar.errors import DataError, Stopped, UsageError
from fastcifar.runs.group import Group, Member, check_runs
from fastcifar.runs.log_run import train_and_log
from fastcifar.runs.statistics import Mean, mean_of
from fastcifar.runs.summary import RunSummary, summaries
from fastcifar.runs.train_group import stopped_group, train_group
from fastcifar.training.dry_run import RunPlan, dry_run
from fastcifar.training.progress import PrefixedReporter, Reporter, SilentReporter

log = logging.getLogger(__name__)
NOT_SWEPT = (
    *("recipe", "data_dir", "device", "pipeline", "seed", "val_size"),
    *("max_minutes", "log_every", "log", "threads"),
)
MAX_NAME = 100
Settings = dict[str, Any]


def sweep_members(
    values: Mapping[str, Sequence[Any]], seeds: Sequence[int], *, trials: int | None = None, seed: int = 0
) -> tuple[Member, ...]:
    """A run for each combination of the values of these settings, and each seed.

    trials: draw so many combinations at random, by `seed`. Raises UsageError for a setting that cannot be swept.
    """
    require_known(values, SETTINGS)
    for name, options in values.items():
        if name in NOT_SWEPT:
            raise UsageError(f"{name} cannot be swept; expected a setting of the network or the training")
        if not options or len(set(map(str, options))) < len(options):
            raise UsageError(f"{name} has the values {', '.join(map(str, options))}; expected at least one, each once")
    if not values:
        raise UsageError("no setting to sweep; expected e.g. --set lr=0.02,0.05,0.1")
    cells = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    if trials is not None and trials < len(cells):
        drawn = np.sort(np.argsort(raw_bits(seed, 0, "sweep", len(cells)), kind="stable")[:trials])
        cells = [cells[position] for position in drawn]
    runs = [{**cell, "seed": each} for cell in cells for each in seeds]
    return tuple(Member(name=_folder(number, run), settings=run) for number, run in enumerate(runs, 1))


def _folder(number: int, settings: Settings) -> str:
    """Its settings, where they can be the name of a folder."""
    name = ",".join(f"{key}={value}" for key, value in settings.items())
    return name if len(name) <= MAX_NAME and "/" not in name and name.isprintable() else f"run-{number:04d}"


def require_validation(config: TrainConfig) -> None:
    """Raise UsageError if no image is held out: the best of many runs by their test accuracy is a biased estimate."""
    if config.data.val_size == 0:
        raise UsageError("val_size is 0; expected validation images, by which a sweep compares its runs")


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """What the runs of one combination would do."""

    settings: Settings
    num_runs: int
    plan: RunPlan
    """Of each."""


def dry_run_sweep(
    runs_dir: str | os.PathLike[str],
    config: TrainConfig,
    members: Sequence[Member],
    reporter: Reporter | None = None,
) -> list[CellPlan]:
    """Check the runs as `create_group` does, and measure each combination as `fastcifar.training.dry_run`; nothing is
    written."""
    reporter = reporter or SilentReporter()
    config, checked, betons = check_runs(runs_dir, config, members, reporter)
    plans = []
    cells = _by_cell(checked)
    for number, runs in enumerate(cells, 1):
        own = PrefixedReporter(reporter, f"combination {number}/{len(cells)}")
        plan = dry_run(config.with_settings(**runs[0].settings), own, runs_dir=runs_dir, betons=betons)
        plans.append(CellPlan(settings=_without_seed(runs[0]), num_runs=len(runs), plan=plan))
    return plans


def _without_seed(member: Member) -> Settings:
    return {key: value for key, value in member.settings.items() if key != "seed"}


def _by_cell(members: Sequence[Member]) -> list[list[Member]]:
    """The runs of each combination."""
    cells: dict[str, list[Member]] = {}
    for member in members:
        cells.setdefault(str(_without_seed(member)), []).append(member)
    return list(cells.values())


def train_sweep(group: Group, reporter: Reporter | None = None) -> Sweep:
    """Train the runs that are not finished, then score the test images with those of the best combination."""
    train_group(group, test=False, reporter=reporter)
    result = sweep_results(group)
    if result.best is not None:
        members = {member.name: member for member in group.members}
        for run in result.best.runs:
            if run.score("test_accuracy") is None:
                config = group.config_of(members[run.run.path.name])
                log.info("%s: the best by validation accuracy; scoring its test images", run.name)
                try:
                    train_and_log(config, group=group.path.name, resume=run.run, reporter=reporter)
                except Stopped as stopped:
                    raise stopped_group(group, stopped) from None
    return sweep_results(group)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one combination."""

    settings: Settings
    runs: tuple[RunSummary, ...]
    """Those that are finished."""
    num_diverged: int
    val_accuracy: Mean | None
    """None if none of its runs has one."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The runs with one value of a setting, whatever the others."""

    name: str
    value: Any
    val_accuracy: Mean | None
    num_diverged: int


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The results of a sweep."""

    cells: tuple[Cell, ...]
    """The best first."""
    effects: tuple[Effect, ...]

    @property
    def best(self) -> Cell | None:
        """The combination of the highest mean validation accuracy, none of whose runs diverged."""
        return next((cell for cell in self.cells if cell.val_accuracy is not None and not cell.num_diverged), None)


def sweep_results(group: Group) -> Sweep:
    """What the finished runs of a sweep show. Raises DataError if the group is not a sweep."""
    if group.kind != "sweep":
        raise DataError(f"{group.path}: not a sweep; expected a group that 'fastcifar sweep' made")
    finished = {run.run.path.name: run for run in summaries(group) if run.is_finished}
    settings = {member.name: _without_seed(member) for member in group.members}
    cells = [
        _cell(_without_seed(runs[0]), [finished[run.name] for run in runs if run.name in finished])
        for runs in _by_cell(group.members)
    ]
    cells.sort(key=lambda cell: (bool(cell.num_diverged), -(cell.val_accuracy.mean if cell.val_accuracy else -1)))
    effects = []
    for key in settings[group.members[0].name]:
        for text, value in {str(chosen[key]): chosen[key] for chosen in settings.values()}.items():
            names = [name for name, chosen in settings.items() if str(chosen[key]) == text]
            cell = _cell({}, [finished[name] for name in names if name in finished])
            effects.append(
                Effect(name=key, value=value, val_accuracy=cell.val_accuracy, num_diverged=cell.num_diverged)
            )
    return Sweep(cells=tuple(cells), effects=tuple(effects))


def _cell(settings: Settings, runs: Sequence[RunSummary]) -> Cell:
    kept = tuple(run for run in runs if not run.has_diverged)
    values = [run.best_val_accuracy for run in kept]
    known = [value for value in values if value is not None]
    return Cell(
        settings=settings,
        runs=kept,
        num_diverged=len(runs) - len(kept),
        val_accuracy=mean_of(known) if known else None,
    )
