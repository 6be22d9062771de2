"""The folder of a run: its files, how it is created, how it is found."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

import fastcifar
from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError, one_line
from fastcifar.io.atomic import open_append, wrap_write_errors, write_csv, write_text
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import command_line, make_folder, numbered, user_path, why_missing
from fastcifar.io.reading import read_mapping
from fastcifar.system.cpus import cpu_name
from fastcifar.training.distributed import Distributed

MAX_TEXT_BYTES = 8 * 2**20
COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "images_per_s",
)


class _PathIn:
    """An attribute of a run: a path in its folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run at `path`."""

    path: Path

    config = _PathIn("config.yaml")
    log = _PathIn("log.txt")
    results = _PathIn("results.csv")
    metrics = _PathIn("metrics.json")
    curves = _PathIn("curves.png")
    predictions = _PathIn("predictions.npz")
    last = _PathIn("weights/last.pt")
    previous = _PathIn("weights/previous.pt")
    best = _PathIn("weights/best.safetensors")
    calibration = _PathIn("calibration.json")
    lr_find = _PathIn("lr_find")
    explain = _PathIn("explain")
    report = _PathIn("report.html")

    @property
    def has_checkpoint(self) -> bool:
        """Whether training can resume from here."""
        return self.last.is_file() or self.previous.is_file()

    @property
    def is_trained(self) -> bool:
        """Whether there are weights."""
        return self.has_checkpoint or self.best.is_file()

    @property
    def is_other(self) -> bool:
        """Whether the folder holds other files than those of a run, or of several."""
        if self.is_trained or self.log.exists() or self.config.exists() or any(self.path.glob("*/weights")):
            return False
        return any(self.path.glob("*"))

    def make_subfolder(self, folder: Path) -> Path:
        """Create `folder`, in this one, if needed. Raises FastcifarError if it cannot be created, or is a link to a
        folder outside the run, where nothing is written."""
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.path)):
            raise FastcifarError(f"{folder}: a link to a folder outside the run; replace it by a folder")
        with wrap_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_config(self, config: TrainConfig, **facts: Any) -> None:
        """Write config.yaml, and env.json, which keeps the environment that the run started in, and `facts`."""
        settings = {**config.to_settings(), "data_dir": str(Path(config.data.data_dir).absolute())}
        write_text(self.config, yaml.safe_dump(settings, sort_keys=False))
        path, env = self.path / "env.json", {**environment(), **facts}
        with contextlib.suppress(OSError, ValueError, TypeError):
            started = read_mapping(path, MAX_TEXT_BYTES)
            env = {**started, "resumed": [*started.get("resumed", []), env]}
        write_text(path, json.dumps(env, indent=1) + "\n")

    def read_config(self) -> TrainConfig:
        """The settings of the run. Raises DataError if they are damaged."""
        try:
            return TrainConfig.from_stored(**read_mapping(self.config, MAX_TEXT_BYTES))
        except (OSError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"{self.config}: not the settings of a run ({one_line(error)})") from error

    def write_results(self, history: list[dict[str, Any]]) -> None:
        """Write results.csv: one row per epoch, also of one that --max-steps cut short."""
        write_csv(self.results, COLUMNS, ([row[key] for key in COLUMNS] for row in history))

    def tested_on(self) -> str | None:
        """SHA-256 of the test beton of metrics.json; None if it is unknown."""
        sha256 = self.metric("test_data_sha256")
        return sha256 if isinstance(sha256, str) else None

    def stored_metrics(self) -> dict[str, Any]:
        """metrics.json; empty before the training has ended, or if it is damaged: the run is then not finished."""
        with contextlib.suppress(OSError, ValueError):
            return read_mapping(self.metrics, MAX_TEXT_BYTES)
        return {}

    def metric(self, name: str) -> object:
        """A value in metrics.json; None if it is unknown."""
        return self.stored_metrics().get(name)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        write_text(self.metrics, json.dumps(metrics, indent=1, allow_nan=False) + "\n")

    def remove_metrics(self) -> None:
        """Remove metrics.json, if there is one: that of a shorter training, which goes on."""
        with wrap_write_errors(self.metrics):
            self.metrics.unlink(missing_ok=True)

    @property
    def is_unfinished(self) -> bool:
        """Whether training was stopped, or goes on: there is a checkpoint, and no result."""
        return self.has_checkpoint and not self.stored_metrics()

    def resume_command(self, model: ModelConfig, distributed: Distributed | None = None) -> str:
        """The command that resumes the run; after its last step, it repeats the test."""
        arguments: list[Any] = ["fastcifar", "train", "--resume", self.path]
        arguments += ["--model", model.name] if model.names_code else []
        if distributed is not None and distributed.world_size > 1:
            arguments[:1] = ["torchrun", "--nproc-per-node", str(distributed.local_world_size), "-m", "fastcifar"]
        return command_line(*arguments)


def create_run(runs_dir: str | os.PathLike[str], name: str) -> RunFolder:
    """Create the folder `name` in `runs_dir`, or `name-2`, `name-3`, … if it exists."""
    if not name or name in (".", "..") or Path(name).name != name or not name.isprintable():
        raise UsageError(f"name is {name!r}; expected the name of a folder, without '/'")
    root = user_path(runs_dir, "runs_dir")
    make_folder(root)
    with wrap_write_errors(root):
        for path in (root / each for each in numbered(name)):
            with contextlib.suppress(FileExistsError):
                path.mkdir()  # atomic: of two runs at once, one takes the next number
                break
    return RunFolder(path)


def find_run(
    run: str | os.PathLike[str] | None, runs_dir: str | os.PathLike[str], *, trained: bool = False
) -> RunFolder:
    """The run with this name or path, or the one that holds the file at this path (a checkpoint, a report); if `run` is
    None, the one that was saved last. trained: require at least one completed epoch.

    Raises CheckpointError (exit code 6) if it has no checkpoint, DataError (exit code 4) if there is no such run.
    """
    root = user_path(runs_dir, "runs_dir")
    if run is None:
        return _latest_run(root, trained)
    if not os.fsdecode(run).strip():
        raise DataError(f"run is {run!r}; expected its name or path; leave it out for the latest")
    path = user_path(run, "run")
    folder = _run_at(root / path) or _run_at(path)
    if folder is None or folder.is_other:
        place = path if folder is None else folder.path
        if os.path.exists(place):
            raise DataError(f"{place}: not a run, nor in one; expected the folder of a run, or a file in it")
        files = (*root.glob("*/config.yaml"), *root.glob("*/*/config.yaml"))  # also of the runs of groups
        names = sorted({file.relative_to(root).parts[0] for file in files})
        known = ", ".join([*names[:12], *(["…"] if len(names) > 12 else [])]) or "none yet"
        reason = f"; it is {why_missing(path)}" if os.path.islink(path) else ""
        raise DataError(f"{run}: no such run in {root}{reason}; expected a folder or one of: {known}")
    if trained and folder.best.is_file():
        return folder
    if not folder.has_checkpoint:
        inside = sorted(weights.parent.name for weights in folder.path.glob("*/weights"))
        if inside:
            raise CheckpointError(
                f"{folder.path}: holds {len(inside):,} runs; choose one, e.g. {folder.path / inside[0]}"
            )
        raise CheckpointError(f"{folder.path}: has no checkpoint yet; train it further or choose another run")
    if trained:
        try:
            with lock_folder(folder.path, "is being trained, and has no completed epoch yet; wait for the first"):
                pass
        except FastcifarError as error:
            raise CheckpointError(str(error)) from None
        command = command_line("fastcifar", "train", "--resume", folder.path)
        raise CheckpointError(
            f"{folder.path}: has no {folder.best.relative_to(folder.path)}: it was stopped in its first epoch, or the "
            f"file was removed; resume with: {command}"
        )
    return folder


def is_run(path: Path, runs_dir: Path) -> bool:
    """Whether this is the name or path of a trained run, or a path in one."""
    run = _run_at(runs_dir / path) or _run_at(path)
    return run is not None and run.is_trained


def _run_at(path: Path) -> RunFolder | None:
    """The run whose folder is at `path` or above it; None if there is none."""
    if not os.path.exists(path):
        return None
    for inside in (path, path.absolute(), path.resolve()):
        for folder in (inside, *inside.parents):
            if folder.name == "..":  # what comes before it is not above `path`
                break
            run = RunFolder(folder)
            if folder.name and run.is_trained:
                return run
    return RunFolder(path) if path.is_dir() else None


def _latest_run(root: Path, trained: bool) -> RunFolder:
    saved = []
    for file in (*root.glob("*/weights/*"), *root.glob("*/*/weights/*")):  # also of the runs of groups
        run = RunFolder(file.parent.parent)
        if run.best.is_file() if trained else run.has_checkpoint:
            with contextlib.suppress(OSError):  # a temporary file that has been renamed
                is_link = run.path.is_symlink()  # a run comes before a link to it
                saved.append((file.stat().st_mtime_ns, not is_link, run.path))
    if saved:
        latest = RunFolder(max(saved)[-1])
        if trained and latest.path.parent != root:  # of a sweep, the best settings alone are tested
            group = [each for each in saved if each[-1].parent == latest.path.parent]
            tested = [each for each in group if RunFolder(each[-1]).predictions.is_file()]
            latest = RunFolder(max(tested or group)[-1])
        return latest
    if RunFolder(root).has_checkpoint:
        raise CheckpointError(f"{root}: a run, not a folder of runs; pass it as RUN, without --runs-dir")
    reason = f" ({why_missing(root)})" if root.is_symlink() and not root.is_dir() else ""
    raise CheckpointError(f"{root}: no run with a checkpoint{reason}; create one with 'fastcifar train'")


class _LogFile(logging.FileHandler):
    """A log that loses lines when the disk is full: the run ends when a checkpoint cannot be written."""

    def _open(self) -> io.TextIOWrapper:
        return open_append(self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name in logging)
        pass


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """In the block, log records of fastcifar are also appended to `path`, with the time."""
    with wrap_write_errors(path):
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fastcifar")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def environment() -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fastcifar": fastcifar.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        "processor": cpu_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
