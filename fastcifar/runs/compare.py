"""Compares runs and groups: settings that differ, scores, and a test of the difference of each from the first."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastcifar.config import TrainConfig
from fastcifar.errors import DataError, UsageError
from fastcifar.inference.predictions import Predictions
from fastcifar.io.paths import command_line, numbered, user_path
from fastcifar.io.reading import read_bytes
from fastcifar.runs.group import Group, group_path, is_group, load_group
from fastcifar.runs.scores import SCORES, TEST_ACCURACY, Score, scores_of, value_of
from fastcifar.runs.statistics import McNemar, Mean, Welch, mcnemar, welch
from fastcifar.runs.summary import MAX_BYTES, NOT_COMPARED, RunSummary, summaries
from fastcifar.training.run_folder import find_run

NETWORKS_ONLY = "this compares these two networks, not the recipes: train several seeds of each (--seeds) for that"
MAX_FOLDER_NAME = 100
TESTED = ("test_accuracy", "val_accuracy")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run, or a group of runs that differ in their seed."""

    name: str
    config: TrainConfig
    runs: tuple[RunSummary, ...]
    """Those that are finished."""
    is_group: bool
    path: Path
    num_diverged: int = 0
    """Runs that diverged, which are not in `runs`."""

    @property
    def scores(self) -> dict[str, Mean]:
        """The mean of each score, by its key."""
        return scores_of(self.runs)

    def predictions(self) -> list[Predictions]:
        """Those on the test images, of the runs that have them."""
        found = []
        for run in self.runs:
            try:
                found.append(Predictions.load(run.run.predictions))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{run.run.predictions}: damaged ({error}); make it again with 'fastcifar eval'"
                ) from error
        return found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How an entry differs from the first one."""

    name: str
    test: Welch | McNemar | None
    """Welch's t-test of two groups, McNemar's test of two runs; None if there is no test."""
    score: Score
    """What the test is about."""
    sentence: str
    """The result in words."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare`."""

    entries: tuple[Entry, ...]
    settings: dict[str, tuple[Any, ...]]
    """The values of each setting that differs, by entry."""
    scores: tuple[Score, ...]
    """Those that at least one entry has."""
    differences: tuple[Difference, ...]
    """Of each entry after the first."""


def compare(names: Sequence[str | os.PathLike[str]], runs_dir: str | os.PathLike[str] = "runs") -> Comparison:
    """Compare runs or groups, by name or path; each with the first.

    Raises DataError (4) if one does not exist, is not finished or is damaged; UsageError (2) for fewer than two.
    """
    if len(names) < 2:
        raise UsageError(f"{len(names)} run{'' if len(names) == 1 else 's'} to compare; expected at least two")
    entries = _named_apart([open_entry(name, runs_dir) for name in names])
    settings = [_settings(entry.config) for entry in entries]
    ignored = {*NOT_COMPARED, *(["seed"] if any(entry.is_group for entry in entries) else [])}
    differing = {
        key: tuple(each[key] for each in settings)
        for key in settings[0]
        if key not in ignored and any(each[key] != settings[0][key] for each in settings)
    }
    trained_on = tuple(str(entry.runs[0].metrics.get("data_sha256", "unknown"))[:12] for entry in entries)
    if len({*trained_on} - {"unknown"}) > 1:
        differing["training data (SHA-256)"] = trained_on
    return Comparison(
        entries=entries,
        settings=differing,
        scores=tuple(score for score in SCORES if any(score.key in entry.scores for entry in entries)),
        differences=tuple(_difference(entries[0], entry) for entry in entries[1:]),
    )


def _named_apart(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """A run of a group is named after both; entries of the same name get as much of their paths as tells them apart.
    Raises UsageError for one twice."""
    paths = [entry.path.resolve() for entry in entries]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"{twice.name} is given twice; expected different runs or groups")
    num_parts = [2 if is_group(path.parent) else 1 for path in paths]
    while True:
        names = ["/".join(path.parts[-num:]) for path, num in zip(paths, num_parts, strict=True)]
        if len(set(names)) == len(names):
            break
        num_parts = [num + 1 for num in num_parts]
    return tuple(replace(entry, name=name) for entry, name in zip(entries, names, strict=True))


def _settings(config: TrainConfig) -> dict[str, Any]:
    """By name; with the default learning rate as a number, which a group does not store, and its runs do."""
    return {**config.to_settings(), **({"lr": config.peak_lr} if config.optimizer.lr is None else {})}


def open_entry(name: str | os.PathLike[str], runs_dir: str | os.PathLike[str]) -> Entry:
    """The run or the group of seeds with this name or path. Raises DataError, CheckpointError, UsageError."""
    path = group_path(name, runs_dir)
    if path is not None:
        return _group_entry(load_group(path))
    run = find_run(name, runs_dir)
    summary = RunSummary(run, run.path.resolve().name)
    if not summary.is_finished:
        command = command_line("fastcifar", "train", "--resume", run.path)
        raise DataError(f"{run.path}: is not finished; finish it with: {command}")
    if summary.has_diverged:
        raise DataError(f"{run.path}: diverged, and has no scores; leave it out")
    return Entry(name=summary.name, config=run.read_config(), runs=(summary,), is_group=False, path=run.path)


def _group_entry(group: Group) -> Entry:
    if group.kind != "seeds":
        raise UsageError(
            f"{group.path}: a sweep, whose runs differ in several settings; expected runs, or groups of 'train --seeds'"
        )
    finished = [run for run in summaries(group) if run.is_finished]
    runs = [run for run in finished if not run.has_diverged]
    if not runs:
        command = command_line("fastcifar", "train", "--resume", group.path)
        reason = "all of its finished runs diverged" if finished else "none of its runs is finished"
        raise DataError(f"{group.path}: {reason}; train it with: {command}")
    return Entry(
        name=group.path.resolve().name,
        config=group.config,
        runs=tuple(runs),
        is_group=True,
        path=group.path,
        num_diverged=len(finished) - len(runs),
    )


def _difference(first: Entry, second: Entry) -> Difference:
    score = next(
        (score for key in TESTED for score in SCORES if score.key == key and _have(score, first, second)), TEST_ACCURACY
    )
    test: Welch | McNemar | None = None
    if not _have(score, first, second):
        sentence = f"{second.name}: no test: it has no score in common with {first.name}"
    elif score.key == "test_accuracy" and len({*_tested_on(first), *_tested_on(second)}) > 1:
        sentence = f"{second.name}: no test: it was tested on other images than {first.name}"
    elif len(first.runs) > 1 and len(second.runs) > 1:
        test = welch(*([float(value_of(run, score) or 0) for run in entry.runs] for entry in (first, second)))
        sentence = _describe_welch(first, second, score, test)
    elif first.is_group or second.is_group:
        sentence = f"{second.name}: no test: a group of at least two runs can only be compared with another such group"
    else:
        test, sentence = _compare_networks(first, second)
        score = score if test is None else TEST_ACCURACY  # also of runs that only 'eval' tested
    return Difference(name=second.name, test=test, score=score, sentence=sentence)


def _tested_on(entry: Entry) -> set[str]:
    """SHA-256 of the test images of its runs, where it is known."""
    return {sha256 for run in entry.runs if (sha256 := run.run.tested_on()) is not None}


def _have(score: Score, *entries: Entry) -> bool:
    return all(score.key in entry.scores for entry in entries)


def _describe_welch(first: Entry, second: Entry, score: Score, test: Welch) -> str:
    low, high = (f"{100 * bound:+.2f}" for bound in test.interval)
    groups = f"{len(second.runs)} and {len(first.runs)} runs"
    text = (
        f"{second.name} against {first.name} ({groups}): {score.name} {100 * test.difference:+.2f} points, 95% "
        f"interval {low} to {high}, p {format_p(test.p_value)} (Welch's t-test): "
    )
    text += "a difference" if test.is_significant else "no difference shown"
    if test.difference and not test.is_significant:
        needed = test.num_seeds_needed
        text += "; a difference of this size needs " + (
            "over 10,000 seeds of each" if needed is None else f"about {needed:,} seeds of each"
        )
    return text


def _compare_networks(first: Entry, second: Entry) -> tuple[McNemar | None, str]:
    pair = [*first.predictions(), *second.predictions()]
    if len(pair) < 2:
        return None, f"{second.name}: no test: predictions.npz is missing; make it with 'fastcifar eval'"
    one, two = pair
    is_same = one.data_sha256 == two.data_sha256 and one.indices.tolist() == two.indices.tolist()
    if not is_same or (one.labels != two.labels).any():
        return None, f"{second.name}: no test: it was tested on other images than {first.name}"
    test = mcnemar(one.is_correct, two.is_correct)
    return test, (
        f"{second.name} against {first.name}: of {len(one):,} test images, {test.only_second:,} are correctly "
        f"classified only by {second.name}, {test.only_first:,} only by {first.name}, p {format_p(test.p_value)} "
        f"(McNemar's exact test): {'a difference' if test.is_significant else 'no difference shown'}; {NETWORKS_ONLY}"
    )


def format_p(p_value: float) -> str:
    """A p value: '= 0.042', '< 0.001'."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def comparison_folder(comparison: Comparison, runs_dir: str | os.PathLike[str]) -> Path:
    """The default folder of its files: named after the entries, with a number where that is another comparison's."""
    root, names = user_path(runs_dir, "runs_dir"), [entry.name for entry in comparison.entries]
    name = "-".join(names).replace("/", "-")[:MAX_FOLDER_NAME]
    paths = [entry.path.resolve() for entry in comparison.entries]
    if paths != [(root / each).resolve() for each in names]:  # others may have these names
        name += "-" + hashlib.sha256(b"\0".join(map(os.fsencode, paths))).hexdigest()[:8]
    folders = (root / "comparisons" / each for each in numbered(name))
    return next(folder for folder in folders if not folder.exists() or _is_of(folder / "table.csv", names))


def _is_of(table: Path, names: Sequence[str]) -> bool:
    """Whether table.csv is of a comparison of these."""
    with contextlib.suppress(OSError, ValueError, csv.Error):
        return next(csv.reader(io.StringIO(read_bytes(table, MAX_BYTES).decode())), []) == ["", *names]
    return False
