"""A group of runs in one folder: `group.yaml` holds their settings, and those in which each run differs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError, UsageError, one_line
from fastcifar.io.atomic import write_text
from fastcifar.io.paths import user_path
from fastcifar.io.reading import read_mapping
from fastcifar.loggers import open_loggers
from fastcifar.models import builder
from fastcifar.training.data import Loaders
from fastcifar.training.device import choose_device
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import find_initial_weights, prepare_network, read_initial_weights
from fastcifar.training.lr_finder import make_initial_network
from fastcifar.training.pace import max_steps_of_all
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder, create_run, find_run
from fastcifar.training.weights import file_sha256

KINDS = ("seeds", "sweep")
FILE = "group.yaml"
FORMAT = 1
MAX_BYTES = 8 * 2**20
MAX_RUNS = 10_000


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a group."""

    name: str
    """Of its folder in that of the group."""
    settings: dict[str, Any]
    """In which it differs from the others, by name."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that share their settings but for some of them."""

    path: Path
    kind: str
    """'seeds': they differ in their seed alone; 'sweep': also in other settings."""
    config: TrainConfig
    """What they share."""
    members: tuple[Member, ...]
    init_sha256: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of `init`, by its path."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each beton, by its name; empty in groups of earlier versions."""
    betons: tuple[Beton, ...] = field(default=(), compare=False, repr=False)
    """The training and test images, if they are open already."""

    def run(self, member: Member) -> RunFolder:
        """The folder of a run, which may not exist yet."""
        return RunFolder(self.path / member.name)

    def config_of(self, member: Member) -> TrainConfig:
        """All settings of a run, as group.yaml has them: its config.yaml may come from elsewhere, and name code."""
        return self.config.with_settings(**member.settings)

    @property
    def finished(self) -> tuple[Member, ...]:
        """Those whose training has ended."""
        return tuple(member for member in self.members if self.run(member).stored_metrics())

    def write(self) -> None:
        """Write group.yaml."""
        settings = {**self.config.to_settings(), "data_dir": str(Path(self.config.data.data_dir).absolute())}
        runs = [{"name": member.name, "settings": member.settings} for member in self.members]
        content = {"fastcifar_group": FORMAT, "kind": self.kind, "runs": runs, "settings": settings}
        content |= {"data_sha256": self.data_sha256} if self.data_sha256 else {}
        content |= {"init_sha256": self.init_sha256} if self.init_sha256 else {}
        write_text(self.path / FILE, yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False))


def create_group(
    runs_dir: str | os.PathLike[str],
    name: str,
    kind: str,
    config: TrainConfig,
    members: Sequence[Member],
    reporter: Reporter | None = None,
) -> Group:
    """Create the folder of a group in `runs_dir`: `name`, or `name-2`, `name-3`, … if it exists.

    What is wrong or missing fails before that, as far as it is known; `init` may be the name of a run in `runs_dir`.
    With `max_minutes`, the pace of each combination of settings is measured first, and `max_steps` is set to the steps
    that fit for the slowest one: all runs have the same.
    """
    config, checked, betons = check_runs(runs_dir, config, members, reporter)
    inits = {each.init for each in _combinations(config, checked)} - {None}
    init_sha256 = {init: file_sha256(Path(init)) for init in sorted(map(str, inits))}
    distributed = Distributed.from_environment()
    device = choose_device(config.runtime.device, distributed)
    with distributed.connect(device):  # of several processes, rank 0 creates it
        path = distributed.broadcast(create_run(runs_dir, name).path if distributed.is_main else Path())
        group = Group(
            path=path,
            kind=kind,
            config=config,
            members=checked,
            init_sha256=init_sha256,
            data_sha256=sha256_of(betons),
            betons=betons,
        )
        if distributed.is_main:
            group.write()
        distributed.barrier()
    return group


def check_runs(
    runs_dir: str | os.PathLike[str], config: TrainConfig, members: Sequence[Member], reporter: Reporter | None = None
) -> tuple[TrainConfig, tuple[Member, ...], tuple[Beton, ...]]:
    """What `create_group` does before it creates a folder. Returns the settings that the runs share, the runs with
    values as group.yaml stores them, and the open training and test images."""
    if len(members) > MAX_RUNS:
        raise UsageError(f"{len(members):,} runs; expected at most {MAX_RUNS:,}")
    config = _with_path_of_weights(config, runs_dir)
    checked = tuple(_checked(member, config, runs_dir) for member in members)
    open_loggers(config.runtime.log)
    distributed = Distributed.from_environment()
    device = choose_device(config.runtime.device, distributed)
    betons = _check_starts(_combinations(config, checked), device, distributed)
    if config.max_minutes is not None:
        config = _with_one_length(config, checked, betons, reporter)
    return config, checked, tuple(betons)


def _with_path_of_weights(config: TrainConfig, runs_dir: str | os.PathLike[str]) -> TrainConfig:
    """The runs of a group look up names in its folder, not in `runs_dir`."""
    return config if config.init is None else config.with_settings(init=find_initial_weights(config.init, runs_dir))


def _checked(member: Member, config: TrainConfig, runs_dir: str | os.PathLike[str]) -> Member:
    """The run with values as group.yaml stores them."""
    own = config.with_settings(**member.settings)
    _require_same_code(own.model, config.model)
    builder(own.model)
    stored = _with_path_of_weights(own, runs_dir).to_settings()
    return replace(member, settings={name: stored[name] for name in member.settings})


def _require_same_code(own: ModelConfig, shared: ModelConfig) -> None:
    """The user trusts the one network of --model; group.yaml may come from a stranger."""
    if own.name != shared.name and (own.names_code or shared.names_code):
        raise UsageError(
            f"one run has model {own.name!r}, another {shared.name!r}; a network that is code or a download has to be "
            "that of all runs"
        )


def _with_one_length(
    config: TrainConfig, members: Sequence[Member], betons: Sequence[Beton], reporter: Reporter | None
) -> TrainConfig:
    """The settings with `max_minutes` replaced by `max_steps`. Raises UsageError if the runs differ in either."""
    for name in ("max_minutes", "max_steps"):
        if any(name in member.settings for member in members):
            raise UsageError(f"{name} cannot be swept with max_minutes, which fixes one number of steps for all runs")
    max_steps = max_steps_of_all(_combinations(config, members), betons, reporter)
    return config.with_settings(max_minutes=None, max_steps=config.max_steps if max_steps is None else max_steps)


def _combinations(config: TrainConfig, members: Sequence[Member]) -> list[TrainConfig]:
    """The different settings of the runs, whatever their seed."""
    found = {str({**member.settings, "seed": 0}): config.with_settings(**member.settings) for member in members}
    return list(found.values())


def _check_starts(configs: Sequence[TrainConfig], device: torch.device, distributed: Distributed) -> Sequence[Beton]:
    """Raise what `train` would raise before the first step with each of these settings; returns the open betons."""
    betons: Sequence[Beton] = ()
    for config in configs:
        with closing(Loaders(config, device, distributed, betons)) as loaders:
            betons = loaders.choice.betons
            network = make_initial_network(config, loaders.info, device, pretrained=False)
            initial = None if config.init is None else read_initial_weights(config.init, "")
            prepare_network(network, config, loaders.info, initial)
    return betons


def sha256_of(betons: Sequence[Beton]) -> dict[str, str]:
    """The SHA-256 of each beton, by its name."""
    return {beton.path.name: beton.sha256 for beton in betons}


def seed_members(seeds: Sequence[int]) -> tuple[Member, ...]:
    """A run for each seed."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds is {','.join(map(str, seeds))!r}; expected at least one, each once")
    return tuple(Member(name=f"seed-{seed}", settings={"seed": seed}) for seed in seeds)


def is_group(path: Path) -> bool:
    """Whether this is the folder of a group."""
    return (path / FILE).is_file()


def group_path(name: str | os.PathLike[str], runs_dir: str | os.PathLike[str]) -> Path | None:
    """The folder of the group with this name or path; None if there is none."""
    path = user_path(name, "run")
    return next((folder for folder in (user_path(runs_dir, "runs_dir") / path, path) if is_group(folder)), None)


def find_group(name: str | os.PathLike[str] | None, runs_dir: str | os.PathLike[str]) -> Group | None:
    """The group with this name or path, or the one of the run that was saved last; None if that is no group.

    Raises DataError if it is damaged.
    """
    if name is not None:
        path = group_path(name, runs_dir) if os.fsdecode(name).strip() else None
    else:
        path = find_run(None, runs_dir).path.parent
    return load_group(path) if path is not None and is_group(path) else None


def load_group(path: Path) -> Group:
    """The group at `path`. Raises DataError if its group.yaml is damaged."""
    file = path / FILE
    try:
        content = read_mapping(file, MAX_BYTES)
        if content.get("fastcifar_group") is not FORMAT:
            raise ValueError(f"it does not begin with fastcifar_group: {FORMAT}")
        if content["kind"] not in KINDS:
            raise ValueError(f"its kind is none of {', '.join(KINDS)}")
        runs = content["runs"]
        if not isinstance(runs, list) or not 0 < len(runs) <= MAX_RUNS:
            raise ValueError(f"its runs are not a list of 1 to {MAX_RUNS:,}")
        members = tuple(Member(name=run["name"], settings=dict(run["settings"])) for run in runs)
        names = [member.name for member in members]
        if not all(isinstance(name, str) and _is_folder_name(name) for name in names) or len(set(names)) < len(names):
            raise ValueError("its runs have names that are no different folders in it")
        config = TrainConfig.from_stored(**content["settings"])
        group = Group(
            path=path,
            kind=content["kind"],
            config=config,
            members=members,
            init_sha256=_texts(content.get("init_sha256", {})),
            data_sha256=_texts(content.get("data_sha256", {})),
        )
        for member in members:
            _require_same_code(group.config_of(member).model, config.model)
        return group
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: not the settings of a group of runs ({one_line(error, 300)})") from error


def _texts(values: dict[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def _is_folder_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and Path(name).name == name and name.isprintable()
