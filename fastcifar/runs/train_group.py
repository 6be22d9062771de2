"""Trains the runs of a group one after another, with the datasets and the compiled kernel in memory once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from fastcifar.data.beton import Beton
from fastcifar.errors import CheckpointError, DataError, DivergedError, Stopped, one_line
from fastcifar.io.locks import lock_folder
from fastcifar.io.paths import make_folder
from fastcifar.loaders import choose_loader
from fastcifar.runs.group import Group, Member, sha256_of
from fastcifar.runs.log_run import train_and_log
from fastcifar.training.device import choose_device
from fastcifar.training.distributed import Distributed
from fastcifar.training.progress import PrefixedReporter, Reporter, SilentReporter
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.weights import file_sha256

log = logging.getLogger(__name__)


def train_group(group: Group, *, test: bool = True, reporter: Reporter | None = None) -> None:
    """Train the runs that are not finished: a run that has begun is resumed, one that is finished is not repeated. A
    run that diverges is finished, with a warning.

    test: whether each run evaluates the test images. Raises as `fastcifar.training.train`; `Stopped` names the command
    that resumes the group.
    """
    distributed, reporter = Distributed.from_environment(), reporter or SilentReporter()
    device = choose_device(group.config.runtime.device, distributed)
    busy = "another process is training this group; wait for it to end"
    with distributed.connect(device), lock_folder(group.path, busy) if distributed.is_main else nullcontext():
        _train_all(group, device, test, reporter)
        distributed.barrier()  # rank 0 has written the results, which all processes read


def _train_all(group: Group, device: torch.device, test: bool, reporter: Reporter) -> None:
    finished = {member.name for member in group.finished}
    todo = [member for member in group.members if member.name not in finished]
    if not todo:
        return
    if finished:
        log.info("%s: %d of %d runs are finished", group.path, len(finished), len(group.members))
    _require_same_init(group, todo)
    betons = group.betons or _open(group, device, Distributed.from_environment())
    _require_same_data(group, betons)
    for member in todo:
        number = group.members.index(member) + 1
        log.info("run %d of %d: %s", number, len(group.members), member.name)
        try:
            _train_member(group, member, betons, test, PrefixedReporter(reporter, f"run {number}/{len(group.members)}"))
        except Stopped as stopped:
            raise stopped_group(group, stopped) from None
        except DivergedError as error:
            log.warning("%s: %s", member.name, error)
            if Distributed.from_environment().is_main:
                make_folder(group.run(member).path)  # a range test that fails comes before it
                group.run(member).write_metrics({"diverged": str(error)})


def _train_member(group: Group, member: Member, betons: Sequence[Beton], test: bool, reporter: Reporter) -> None:
    run = group.run(member)
    if Distributed.from_environment().is_main and os.path.lexists(run.path) and not run.has_checkpoint:
        if run.path.is_symlink() or not run.path.is_dir():
            raise DataError(f"{run.path}: expected the folder of a run; remove it, and resume the group")
        if run.best.is_file():
            raise DataError(
                f"{run.path}: has neither a checkpoint nor a {run.metrics.name} that can be read; restore one, or "
                "remove the folder, and resume the group"
            )
        shutil.rmtree(run.path)  # killed before its first step
    resume = run if run.has_checkpoint else None
    train_and_log(
        group.config_of(member),
        group=group.path.name,
        runs_dir=group.path,
        name=member.name,
        resume=resume,
        reporter=reporter,
        betons=betons,
        test=test,
    )


def stopped_group(group: Group, stopped: Stopped) -> Stopped:
    """The error of a group one of whose runs was stopped."""
    command = RunFolder(group.path).resume_command(group.config.model, Distributed.from_environment())
    return Stopped(stopped.exit_code - 128, f"saved; resume the group with: {command}")


def _require_same_init(group: Group, todo: Sequence[Member]) -> None:
    """Raise CheckpointError if the initial weights of these runs are not those that the group was created with."""
    for init in {str(group.config_of(member).init) for member in todo} & group.init_sha256.keys():
        if Path(init).is_file() and file_sha256(Path(init)) != group.init_sha256[init]:  # a missing one fails when read
            raise CheckpointError(
                f"{init}: changed since {group.path} was created, so that its runs would start from different weights; "
                "restore the file, or start a new group"
            )


def _require_same_data(group: Group, betons: Sequence[Beton]) -> None:
    """Raise DataError if the images are not those that the group was created with."""
    for name, sha256 in sha256_of(betons).items():
        was = group.data_sha256.get(name, sha256)  # groups of earlier versions have none
        if sha256 != was:
            raise DataError(
                f"{group.path}: was created with a {name} of SHA-256 {one_line(was, 16)}…; that in "
                f"{group.config.data.data_dir} has {sha256[:16]}…: convert the same source again or start a new group"
            )


def _open(group: Group, device: torch.device, distributed: Distributed) -> Sequence[Beton]:
    data, augment, num_processes = group.config.data, group.config.augment, distributed.num_yet_to_load
    paths = [Path(data.data_dir) / name for name in ("train.beton", "test.beton")]
    return choose_loader(data.loader, paths, augment=augment, device=device, num_processes=num_processes).betons
