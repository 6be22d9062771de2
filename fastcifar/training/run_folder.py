"""The folder of a run: what stands where, how a new one is made, how an old one is found."""

from __future__ import annotations

import contextlib
import csv
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
from fastcifar.config import TrainConfig
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError, one_line
from fastcifar.io.atomic import open_append, wrap_write_errors, write_text
from fastcifar.io.paths import command_line, make_folder, user_path, why_missing
from fastcifar.io.reading import parse_yaml, read_bytes

log = logging.getLogger(__name__)

MOST_TEXT = 8 * 2**20
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


@dataclass(frozen=True)
class RunFolder:
    """Paths within one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def results(self) -> Path:
        return self.path / "results.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.npz"

    @property
    def last(self) -> Path:
        return self.path / "weights" / "last.pt"

    @property
    def previous(self) -> Path:
        return self.path / "weights" / "previous.pt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a training can go on from here."""
        return self.last.is_file() or self.previous.is_file()

    @property
    def best(self) -> Path:
        return self.path / "weights" / "best.safetensors"

    @property
    def lr_find(self) -> Path:
        return self.path / "lr_find"

    @property
    def explain(self) -> Path:
        return self.path / "explain"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def own(self, folder: Path) -> Path:
        """`folder`, which lies in this one, made if need be. Raises FastcifarError if it cannot be, or if a link leads
        out of the run: nothing is written there."""
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.path)):
            raise FastcifarError(f"{folder}: is a link that leads out of the run; put a folder there")
        with wrap_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_config(self, config: TrainConfig) -> None:
        """Store the settings, and what they run on (env.json, which keeps where the run began)."""
        stored = {
            **config.to_settings(),
            "data_dir": str(Path(config.data.data_dir).absolute()),
        }  # to be found from other folders
        write_text(self.config, yaml.safe_dump(stored, sort_keys=False))
        env, about = self.path / "env.json", environment()
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            begun: Any = parse_yaml(read_bytes(env, MOST_TEXT).decode("utf-8"))
            about = {**begun, "resumed": [*begun.get("resumed", []), about]}
        write_text(env, json.dumps(about, indent=1) + "\n")

    def read_config(self) -> TrainConfig:
        """The settings of the run. Raises DataError if they are damaged."""
        try:
            raw: Any = parse_yaml(read_bytes(self.config, MOST_TEXT).decode("utf-8"))
            return TrainConfig.from_settings(**raw)
        except (OSError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"{self.config}: not the settings of a run ({one_line(error)})") from error

    def write_results(self, history: list[dict[str, Any]]) -> None:
        """results.csv: a row for each finished epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if row[key] is None else row[key] for key in COLUMNS} for row in history)
        write_text(self.results, text.getvalue())

    def tested_on(self) -> str | None:
        """SHA-256 of the test images that metrics.json scores; None if it does not say."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            metrics: Any = parse_yaml(read_bytes(self.metrics, MOST_TEXT).decode("utf-8"))
            found = metrics.get("test_data_sha256")
            return found if isinstance(found, str) else None
        return None

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """metrics.json: how the run ended."""
        write_text(self.metrics, json.dumps(metrics, indent=1, allow_nan=False) + "\n")


def create_run(runs_dir: str | os.PathLike[str], name: str) -> RunFolder:
    """Make a new folder `name` in `runs_dir`, or `name-2`, `name-3`, … where it is taken; never an existing one."""
    if not name or name in (".", "..") or Path(name).name != name or not name.isprintable():
        raise UsageError(f"name is {name!r}; expected the name of a folder, without '/'")
    root = user_path(runs_dir, "runs_dir")
    make_folder(root)
    with wrap_write_errors(root):
        number = 1
        while True:
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()  # of two runs at once, one goes on to the next number
                break
            except FileExistsError:
                number += 1
    return RunFolder(path)


def find_run(
    run: str | os.PathLike[str] | None, runs_dir: str | os.PathLike[str], *, trained: bool = False
) -> RunFolder:
    """The run of that name or path, or the one that holds the file of that path (a checkpoint, its report); the one
    that was saved last if `run` is None. With `trained`, a run of which at least one epoch has ended.

    Raises CheckpointError (exit code 6) if it has no checkpoint, DataError (exit code 4) if there is no such run.
    """
    root = user_path(runs_dir, "runs_dir")
    if run is None:
        return _latest_run(root, trained)
    if not os.fsdecode(run).strip():
        raise DataError(f"run is {run!r}; expected its name or path, or nothing for the latest")
    given = user_path(run, "run")
    found = _run_of(given, root)
    if found is None:
        if os.path.exists(given):
            raise DataError(f"{given}: not a run, nor in one; expected the folder of a run, or a file in it")
        known = ", ".join(sorted(p.name for p in root.glob("*") if p.is_dir())[:12]) or "none yet"
        why = f"; it is {why_missing(given)}" if os.path.islink(given) else ""
        raise DataError(f"{run}: no such run in {root}{why}; expected a folder or one of: {known}")
    if found.path not in (root / given, given):
        log.info("%s stands for its run, %s", given, found.path)
    if trained and found.best.is_file():
        return found
    if not found.has_checkpoint:
        raise CheckpointError(f"{found.path}: has no checkpoint yet; train it further or choose another run")
    if trained:
        go_on = command_line("fastcifar", "train", "--resume", found.path)
        raise CheckpointError(f"{found.path}: was stopped before its first epoch ended; go on with: {go_on}")
    return found


def is_run(given: Path, runs_dir: Path) -> bool:
    """Whether that is the name or path of a trained run, or the path of something in one."""
    found = _run_of(given, runs_dir)
    return found is not None and (found.has_checkpoint or found.best.is_file())


def _run_of(given: Path, root: Path) -> RunFolder | None:
    return next(filter(None, map(_run_at, (root / given, given))), None)


def _run_at(path: Path) -> RunFolder | None:
    """The run at `path`, which is its folder, or a file or folder in it; None if there is none."""
    if not os.path.exists(path):
        return None
    for inside in (path, path.absolute(), path.resolve()):
        for folder in (inside, *inside.parents):
            run = RunFolder(folder)
            if folder.name not in ("", "..") and (run.has_checkpoint or run.best.is_file()):
                return run
    return RunFolder(path) if path.is_dir() else None


def _latest_run(root: Path, trained: bool) -> RunFolder:
    kept = ("best.safetensors", "last.pt", "previous.pt") if trained else ("last.pt", "previous.pt")
    saved = []
    for file in (file for name in kept for file in root.glob(f"*/weights/{name}")):
        path = file.parent.parent
        with contextlib.suppress(OSError):  # removed meanwhile, or a link to nothing
            if not trained or RunFolder(path).best.is_file():
                saved.append((file.stat().st_mtime_ns, not path.is_symlink(), path))  # a run, not a link to it
    if saved:
        return RunFolder(max(saved)[-1])
    if RunFolder(root).has_checkpoint:
        raise CheckpointError(f"{root}: a run, not the folder of runs; give it as RUN, without --runs-dir")
    why = f" ({why_missing(root)})" if root.is_symlink() and not root.is_dir() else ""
    raise CheckpointError(f"{root}: no run with a checkpoint{why}; make one with 'fastcifar train'")


class _LogFile(logging.FileHandler):
    """A log whose disk may be full: the run goes on until something that counts cannot be written, and tells that."""

    def _open(self) -> io.TextIOWrapper:
        """Not what a link names; a pipe is not waited for."""
        return open_append(self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name in logging)
        pass


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """In the block, what fastcifar logs is also appended to `path`, with the time."""
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
    """What a run ran on."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fastcifar": fastcifar.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
