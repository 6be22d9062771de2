"""`audit`: duplicates, wrong labels and odd images of a dataset, as lines of issues.csv."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.audit.duplicates import find_pairs
from fastcifar.audit.folds import OutOfFold, fold_config, out_of_fold
from fastcifar.audit.given_predictions import read_probabilities
from fastcifar.audit.images import check_images
from fastcifar.audit.issues import KINDS, PARTS, Image, Issue, IssuesFile, Pair, lines_of, write_issues
from fastcifar.audit.labels import estimate_num_errors, label_issues, require_cleanlab
from fastcifar.audit.record import leaked_test_images, write_record
from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton, open_beton
from fastcifar.data.statistics import require_classes
from fastcifar.errors import DataError, FastcifarError, UsageError, join_names
from fastcifar.io.checks import require_choice, require_int
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import data_folder, make_folder, user_path
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter, SilentReporter, duration
from fastcifar.training.run_folder import RunFolder

log = logging.getLogger(__name__)
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """The result of `audit`."""

    data_dir: Path
    out: Path
    splits: Mapping[str, Beton]
    """'train', and 'test' if there is one."""
    parts: tuple[str, ...]
    """Those of `only` that were done."""
    issues: IssuesFile
    """By kind; of a kind those that are certain first, then by score."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of each part."""
    probabilities: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """By split, (N, C) of each image, by networks that did not see it; empty if no label was judged."""
    folds: npt.NDArray[np.int64] | None = None
    """(N,) which of `runs` did not see a training image; None without trainings."""
    runs: tuple[RunFolder, ...] = ()
    device: str = "auto"

    @cached_property
    def leaked(self) -> dict[str, int]:
        """The number of test images that are also training images, 'exact', 'near', or, as uncertain near-leaks,
        'possible'; each is counted once."""
        return leaked_test_images(self.issues)

    def counts(self, *, certain: bool = False) -> dict[str, dict[str, int]]:
        """Number of lines, or only of those that are certain, by kind and split, in the order of KINDS; of the kinds
        that occur."""
        counts: dict[str, dict[str, int]] = {}
        for line in self.issues.lines:
            if certain and not line.issue.certain:
                continue
            by_split = counts.setdefault(line.issue.kind, dict.fromkeys(self.splits, 0))
            by_split[line.issue.image.split] += 1
        return counts


@standard_torch_defaults()
def audit(
    data_dir: str | os.PathLike[str] = "data",
    out: str | os.PathLike[str] = "audit",
    *,
    only: Sequence[str] = PARTS,
    folds: int = 4,
    recipe: str | None = None,
    predictions: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Audit:
    """Look for duplicates, wrong labels and odd images in train.beton and test.beton of a folder; test.beton may be
    missing. The lines go to issues.csv in `out`, what reports need to know to audit.json in `data_dir`.

    only: some of 'duplicates', 'labels', 'images'. Labels are judged by networks that did not see the images: `folds`
    trainings with the settings of `recipe`, by default those of `fast`; or by `predictions`, see
    `fastcifar.audit.given_predictions.read_probabilities`. A training that was interrupted continues; those that are
    complete are not repeated. seed: of the trainings. device: 'auto', 'cpu', 'cuda', … reporter: shows progress, e.g. a
    `fastcifar.bars.Bars`.

    Raises DataError (exit code 4) for betons that are missing, damaged or do not match; UsageError (2);
    MissingExtraError (3) if labels are judged without cleanlab; FastcifarError (1) if `out` is not writable.
    """
    parts = _require_parts(only)
    require_int("seed", seed, 0, MAX_SEED)
    if predictions is not None and "labels" not in parts:
        raise UsageError(f"predictions is given, and only {', '.join(parts)}; expected 'labels' among them")
    if "labels" in parts:
        require_cleanlab()
    folder, data_dir, reporter = user_path(out, "out"), data_folder(data_dir), reporter or SilentReporter()
    splits = _open(data_dir)
    seconds: dict[str, float] = {}
    issues: list[Issue] = []
    probabilities: dict[str, npt.NDArray[np.float32]] = {}
    config: TrainConfig | None = None
    judged: OutOfFold | None = None
    # wrong use is found before the search for duplicates
    if predictions is not None:
        probabilities = read_probabilities(predictions, splits)
    elif "labels" in parts:
        config = fold_config(splits["train"], recipe, folds=folds, seed=seed, device=device, data_dir=data_dir)
    make_folder(folder)
    with lock_folder(folder, "another audit is writing here; wait for it to end"):
        pairs: list[Pair] = []
        if "duplicates" in parts or config is not None:  # duplicates share a fold
            with _timed(seconds, "duplicates"):
                pairs = find_pairs(splits, reporter)
        if "duplicates" in parts:
            issues += pair_issues(pairs, splits)
            _warn_of_contradictions(pairs, splits)
        if "labels" in parts:
            with _timed(seconds, "labels"):
                if config is not None:
                    judged = out_of_fold(splits, pairs, config, folds=folds, out=folder, reporter=reporter)
                    probabilities = {"train": judged.train}
                    probabilities |= {} if judged.test is None else {"test": judged.test}
                for name, of_split in probabilities.items():
                    issues += _doubtful_labels(of_split, splits[name], name)
        if "images" in parts:
            with _timed(seconds, "images"):
                issues += check_images(splits, reporter=reporter)
        issues.sort(key=lambda issue: (KINDS.index(issue.kind), not issue.certain, -issue.score))
        file = write_issues(folder / "issues.csv", lines_of(issues, splits))
    parameters: dict[str, dict[str, Any]] = {part: {} for part in parts}
    if "labels" in parts:
        trainings = {"folds": folds, "recipe": recipe, "seed": seed}
        parameters["labels"] = trainings if predictions is None else {"predictions": os.fspath(predictions)}
    try:
        write_record(data_dir, splits, file, parameters)
    except FastcifarError as error:  # the data may lie where nothing can be written
        log.warning("reports of runs will not know of this audit: %s", error)
    return Audit(
        data_dir=data_dir,
        out=folder,
        splits=splits,
        parts=parts,
        issues=file,
        seconds=seconds,
        probabilities=probabilities,
        folds=None if judged is None else judged.folds,
        runs=() if judged is None else judged.runs,
        device=device,
    )


def _require_parts(only: Sequence[str]) -> tuple[str, ...]:
    names = (only,) if isinstance(only, str) else tuple(only)
    for name in names:
        require_choice("only", name, PARTS)
    if not names:
        raise UsageError(f"only is empty; expected some of: {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def _open(data_dir: Path) -> dict[str, Beton]:
    """The betons of a folder. Raises DataError if they are missing, damaged, or do not match."""
    paths = {name: data_dir / f"{name}.beton" for name in ("train", "test")}
    if not os.path.lexists(paths["test"]) and os.path.lexists(paths["train"]):
        log.warning("%s: missing; only the training images are audited", paths.pop("test"))
    splits = {name: open_beton(path) for name, path in paths.items()}
    train, test = splits["train"], splits.get("test")
    require_classes(train.path, train.class_names)
    if test is not None and test.class_names != train.class_names:
        names = [join_names(beton.class_names) for beton in (test, train)]
        raise DataError(f"{test.path}: has the classes {names[0]}; expected those of {train.path}, {names[1]}")
    return splits


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    log.info("%s: begin", part)
    begin = time.monotonic()
    yield
    seconds[part] = time.monotonic() - begin
    log.info("%s: done in %s", part, duration(seconds[part]))


def pair_issues(pairs: Sequence[Pair], splits: Mapping[str, Beton]) -> list[Issue]:
    """The issues of some pairs of images. Exact ones, and near-leaks that are certain, are to be dropped."""
    issues = []
    for pair in pairs:
        is_leak = pair.first.split != pair.second.split
        image, other = (pair.first, pair.second) if is_leak else (pair.second, pair.first)
        issues.append(
            Issue(
                kind=f"{'exact' if pair.exact else 'near'}-{'leak' if is_leak else 'duplicate'}",
                image=image,
                label=_label(image, splits),
                score=pair.score,
                other=other,
                action="drop" if pair.exact or (is_leak and pair.certain) else "",
                certain=pair.exact or pair.certain,
            )
        )
    return issues


def _label(image: Image, splits: Mapping[str, Beton]) -> str:
    beton = splits[image.split]
    return beton.class_names[beton.labels[image.index]]


def _warn_of_contradictions(pairs: Sequence[Pair], splits: Mapping[str, Beton]) -> None:
    if num := sum(pair.exact and _label(pair.first, splits) != _label(pair.second, splits) for pair in pairs):
        log.warning(
            "pairs of equal images with different labels: %d; the action 'drop' keeps one, right or wrong: "
            "decide in issues.csv",
            num,
        )


def _doubtful_labels(probabilities: npt.NDArray[np.float32], beton: Beton, split: str) -> list[Issue]:
    """The doubtful labels of a split; as many as cleanlab expects to be wrong are certain. None where all images are of
    one class, of which cleanlab says nothing."""
    if (beton.labels == beton.labels[0]).all():
        log.warning(
            "the labels of %s are not judged: all its images are of class %s", split, beton.class_names[beton.labels[0]]
        )
        return []
    num_errors = estimate_num_errors(probabilities, beton.labels)
    if num_errors > len(beton) / 2:
        log.warning(
            "%d of %d labels of %s are expected to be wrong, and the networks agree with %.1f%%: they are too weak to "
            "judge labels; train them longer, with --recipe",
            *(num_errors, len(beton), split, 100 * np.mean(probabilities.argmax(axis=1) == beton.labels)),
        )
    issues = label_issues(probabilities, beton.labels, beton.class_names, split)
    return [replace(issue, certain=rank < num_errors) for rank, issue in enumerate(issues)]
