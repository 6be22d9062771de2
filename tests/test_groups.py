"""Groups of seeds and sweeps: trained, stopped, resumed, read back."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

import fastcifar
from fastcifar import plotting
from fastcifar.cli import main
from fastcifar.errors import CheckpointError, DataError, Stopped, UsageError
from fastcifar.loaders import choose
from fastcifar.report.group import write_group_report
from fastcifar.runs.group import Group, Member, create_group, load_group, seed_members
from fastcifar.runs.summary import summaries
from fastcifar.runs.sweep import require_validation, sweep_members, sweep_results, train_sweep
from fastcifar.runs.train_group import _open as open_betons
from fastcifar.runs.train_group import train_group
from fastcifar.training import train
from fastcifar.training.distributed import Distributed
from fastcifar.training.lr_curve import LrCurve
from fastcifar.training.weights import file_sha256
from tests.run_folders import write_results
from tests.tiny import NETWORK, Interrupts, tiny


def scores(group: Group) -> list[float | None]:
    return [run.score("test_accuracy") for run in summaries(group)]


def weights(group: Group) -> list[dict[str, torch.Tensor]]:
    return [load_file(group.run(member).best) for member in group.members]


@pytest.fixture(scope="module")
def seeds(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Group:
    folder = tmp_path_factory.mktemp("runs")
    group = create_group(folder, "few", "seeds", tiny(tiny_data), seed_members([3, 5]))
    train_group(group)
    return group


def test_each_seed_is_the_run_of_a_training_with_it(seeds: Group, tiny_data: Path, tmp_path: Path) -> None:
    metrics = train(tiny(tiny_data, seed=5), runs_dir=tmp_path)[1]
    assert metrics["test_accuracy"] == scores(seeds)[1]
    assert [run.run.path.name for run in summaries(seeds)] == ["seed-3", "seed-5"]


def test_a_group_is_read_back(seeds: Group) -> None:
    assert load_group(seeds.path) == dataclasses.replace(seeds, config=load_group(seeds.path).config)
    assert load_group(seeds.path).config_of(seeds.members[1]).seed == 5


def test_finished_runs_are_not_repeated(seeds: Group) -> None:
    before = [group_file.stat().st_mtime_ns for group_file in seeds.path.glob("*/metrics.json")]
    train_group(seeds)
    assert [group_file.stat().st_mtime_ns for group_file in seeds.path.glob("*/metrics.json")] == before


def test_the_data_is_opened_once(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = choose.open_beton
    monkeypatch.setattr(choose, "open_beton", lambda path, **more: opened.append(path) or real(path, **more))
    config = tiny(tiny_data, max_steps=1, max_minutes=600)
    group = create_group(tmp_path, "few", "seeds", config, seed_members([0, 1, 2]))
    train_group(group)
    assert len(opened) == 2
    (group.path / "seed-2" / "metrics.json").unlink()
    train_group(load_group(group.path))
    assert len(opened) == 4


def test_a_stopped_group_is_resumed_to_the_same_weights(
    tiny_data: Path, tmp_path: Path, ordinary_algorithms: None
) -> None:
    config = tiny(tiny_data, deterministic=True)
    straight = create_group(tmp_path, "straight", "seeds", config, seed_members([0, 1]))
    train_group(straight)
    group = create_group(tmp_path, "stopped", "seeds", config, seed_members([0, 1]))

    class InSecondRun(Interrupts):
        num_runs = 0

        def begin(self, name: str, total: int) -> None:
            self.at_step = 2 if name.startswith("run 2/2") else -1

    with pytest.raises(Stopped, match=f"resume the group with: fastcifar train --resume {group.path}"):
        train_group(group, reporter=InSecondRun(2, signal.SIGINT))
    assert [member.name for member in group.finished] == ["seed-0"]
    train_group(load_group(group.path))
    assert scores(group) == scores(straight)
    for one, other in zip(weights(straight), weights(group), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_killed_before_its_first_step_begins_again(tiny_data: Path, tmp_path: Path) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data, max_steps=1), seed_members([0]))
    (group.path / "seed-0" / "weights").mkdir(parents=True)
    (group.path / "seed-0" / "log.txt").touch()
    train_group(group)
    assert len(group.finished) == 1
    assert sorted(os.listdir(group.path)) == ["group.yaml", "seed-0"]


def test_a_run_that_diverges_does_not_end_the_group(tiny_data: Path, tmp_path: Path) -> None:
    members = [Member(name=f"run-{lr:g}", settings={"lr": lr}) for lr in (1e30, 0.05)]
    group = create_group(tmp_path, "sweep", "sweep", tiny(tiny_data), members)
    result = train_sweep(group)
    assert [cell.num_diverged for cell in result.cells] == [0, 1]
    assert result.best is not None
    assert result.best.settings == {"lr": 0.05}


def test_runs_whose_range_test_finds_no_rate_are_finished(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = LrCurve(rates=np.geomspace(1e-5, 1, 50), losses=np.full(50, 2.3), stop_reason="end_lr reached")
    monkeypatch.setattr("fastcifar.training.lr_finder.run_lr_range_test", lambda *_: flat)
    common = ["--model", NETWORK, "--batch-size", 36, "--data-dir", tiny_data, "--runs-dir", tmp_path]
    text = invoke("train", "--seeds", 2, "--name", "few", "--lr", "auto", *common, code=5)
    assert "2 of 2 runs diverged: few/seed-0, few/seed-1" in text
    assert len(load_group(tmp_path / "few").finished) == 2
    assert json.loads(invoke("runs", "--runs-dir", tmp_path, "--json"))["runs"][0]["name"] == "few"


@pytest.mark.full_size
def test_the_curves_of_a_group_leave_out_a_run_that_diverged(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data), seed_members([0, 1]))
    for member, num_epochs, metrics in zip(group.members, (3, 1), ({}, {"diverged": "loss is nan"}), strict=True):
        group.run(member).path.mkdir()
        write_results(group.run(member))
        rows = group.run(member).results.read_text().splitlines()
        group.run(member).results.write_text("\n".join(rows[: 1 + num_epochs]) + "\n")
        group.run(member).write_metrics(metrics)
    drawn: list[Any] = []
    draw = plotting.group_curves
    monkeypatch.setattr(plotting, "group_curves", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    write_group_report(group)
    lines = [line for figure in drawn for axis in figure.axes for line in axis.lines]
    assert {len(line.get_xdata()) for line in lines} == {3}


def test_a_sweep_whose_runs_all_diverged_claims_no_test(tiny_data: Path, tmp_path: Path) -> None:
    common = ["--model", NETWORK, "--batch-size", 36, "--epochs", 1, "--data-dir", tiny_data, "--runs-dir", tmp_path]
    text = invoke("sweep", "--set", "lr=1e30", *common)
    page = (tmp_path / "sweep" / "report.html").read_text()
    for shown in (text, page):
        assert "no test image was scored" in shown
        assert "test images were scored" not in shown


def test_the_runs_of_a_group_start_from_a_run_in_runs_dir(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, max_steps=1, init="first")
    first, _ = train(config.with_settings(init=None), runs_dir=tmp_path, name="first")
    group = create_group(tmp_path, "few", "seeds", config, seed_members([0]))
    assert load_group(group.path).config.init == group.config.init == str(first.best)
    train_group(load_group(group.path))
    members = sweep_members({"init": (Path("first"), None)}, [0])
    sweep = create_group(tmp_path, "both", "sweep", config.with_settings(init=None), members)
    assert [member.settings["init"] for member in load_group(sweep.path).members] == [str(first.best), None]
    assert {each.name for each in train_sweep(sweep).effects} == {"init"}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"data_dir": "nowhere"}, DataError),
        ({"init": "nobody"}, DataError),
        ({"model": "resnet19"}, UsageError),
        ({"batch_size": 5000}, UsageError),
        ({"val_size": 1000}, UsageError),
        ({"freeze_until": "layer9"}, UsageError),
    ],
)
def test_what_cannot_start_leaves_no_folder(
    settings: dict[str, Any], error: type[Exception], tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=str(next(iter(settings.values())))):
        create_group(tmp_path, "few", "seeds", tiny(tiny_data).with_settings(**settings), seed_members([0]))
    assert not list(tmp_path.iterdir())


def test_a_sweep_checks_each_combination_before_the_first_run(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5000"):
        create_group(tmp_path, "s", "sweep", tiny(tiny_data), sweep_members({"batch_size": [36, 5000]}, [0, 1]))
    assert not list(tmp_path.iterdir())


def test_all_runs_of_a_group_start_from_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, max_steps=1)
    first, _ = train(config, runs_dir=tmp_path, name="first")
    group = create_group(tmp_path, "few", "seeds", config.with_settings(init="first"), seed_members([0, 1]))
    assert load_group(group.path).init_sha256 == {str(first.best): file_sha256(first.best)}
    train_group(group)
    (group.path / "seed-1" / "metrics.json").unlink()
    other, _ = train(config.with_settings(seed=1), runs_dir=tmp_path, name="other")
    first.best.write_bytes(other.best.read_bytes())
    with pytest.raises(CheckpointError, match="changed since .*few was created"):
        train_group(load_group(group.path))


def test_the_runs_of_a_sweep_start_from_the_weights_it_was_created_with(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, max_steps=1)
    first, second = (train(config.with_settings(seed=seed), runs_dir=tmp_path, name=f"{seed}")[0] for seed in (1, 2))
    group = create_group(tmp_path, "s", "sweep", config, sweep_members({"init": [str(first.best), "2"]}, [0]))
    second.best.write_bytes(first.best.read_bytes())
    with pytest.raises(CheckpointError, match="2/weights/best.safetensors: changed since .*s was created"):
        train_group(load_group(group.path))


def test_all_runs_of_a_group_have_the_same_images(tiny_data: Path, own_data_dir: Path, tmp_path: Path) -> None:
    config = tiny(own_data_dir, max_steps=1, batch_size=10)
    group = create_group(tmp_path, "few", "seeds", config, seed_members([0, 1]))
    for file in own_data_dir.iterdir():
        file.write_bytes((tiny_data / file.name).read_bytes())
    with pytest.raises(DataError, match=f"few: was created with a train.beton of SHA-256 .*; that in {own_data_dir}"):
        train_group(load_group(group.path))
    own = group.path / "group.yaml"
    stored = yaml.safe_load(own.read_text())
    del stored["data_sha256"]  # a group of an earlier version
    own.write_text(yaml.safe_dump(stored))
    train_group(load_group(group.path))
    assert len(group.finished) == 2


def test_a_run_of_a_group_keeps_its_length(tiny_data: Path, tmp_path: Path) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data, max_steps=1), seed_members([0, 1]))
    train_group(group)
    run = group.run(group.members[0])
    for flag, value in (("--epochs", 5), ("--max-steps", 3), ("--early-stop", 1)):
        text = invoke("train", "--resume", run.path, flag, value, "--model", NETWORK, code=2)
        assert f"{flag} cannot be changed when a run of a group is resumed; only --data-dir" in text
    longer = group.config_of(group.members[0]).with_settings(max_steps=3)
    with pytest.raises(UsageError, match="max_steps is 3; .*seed-0 is one of a group .*: expected 1"):
        fastcifar.train(longer, resume="few/seed-0", runs_dir=tmp_path, progress=False)
    same = longer.with_settings(max_steps=1)
    assert fastcifar.train(same, resume=run.path, progress=False).metrics["steps"] == 1


def test_a_run_with_damaged_metrics_is_finished_again(
    tiny_data: Path, tmp_path: Path, ordinary_algorithms: None
) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data, max_steps=1), seed_members([0, 1]))
    train_group(group)
    expected, run = scores(group), group.run(group.members[0])
    run.metrics.write_bytes(run.metrics.read_bytes()[:40])
    assert [member.name for member in group.finished] == ["seed-1"]
    train_group(load_group(group.path))
    assert scores(group) == expected
    run.metrics.write_text("{")
    for file in (run.last, run.previous):
        file.unlink(missing_ok=True)
    with pytest.raises(DataError, match="seed-0: has neither a checkpoint nor a metrics.json that can be read"):
        train_group(load_group(group.path))
    assert run.best.is_file()


def test_what_is_in_the_place_of_a_run_is_not_removed(tiny_data: Path, tmp_path: Path) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data, max_steps=1), seed_members([0]))
    (tmp_path / "precious").mkdir()
    (group.path / "seed-0").symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="seed-0: expected the folder of a run"):
        train_group(group)
    assert (tmp_path / "precious").is_dir()


def test_a_sweep_stopped_in_its_test_is_resumed_by_its_name(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = create_group(tmp_path, "s", "sweep", tiny(tiny_data, max_steps=1), sweep_members({"lr": [0.1]}, [0]))

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped(signal.SIGINT, "saved")

    monkeypatch.setattr("fastcifar.runs.sweep.train_and_log", stop)
    with pytest.raises(Stopped, match=f"resume the group with: fastcifar train --resume {group.path}"):
        train_sweep(group)


def test_the_images_of_a_resumed_group_are_opened_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def choose_loader(loader: str, paths: object, *, num_processes: int, **more: object) -> choose.LoaderChoice:
        counts.append(num_processes)
        return choose.LoaderChoice("resident", "", [])

    monkeypatch.setattr("fastcifar.runs.train_group.choose_loader", choose_loader)
    group = Group(path=tmp_path, kind="seeds", config=tiny(tmp_path), members=())
    for rank in range(3):
        open_betons(group, torch.device("cpu"), Distributed(rank, 6, rank, 3))
    assert counts == [3, 2, 1], "ranks before this one have copied theirs"


def test_a_resumed_run_keeps_the_rate_of_its_range_test(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data, lr="auto", epochs=1), seed_members([0]))
    with pytest.raises(Stopped):
        train_group(group, reporter=Interrupts(1, signal.SIGINT))
    monkeypatch.delattr("fastcifar.training.lr_finder.run_lr_range_test")
    train_group(load_group(group.path))
    assert len(group.finished) == 1


def test_only_the_network_that_the_user_named_is_code(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has to be that of all runs"):
        create_group(tmp_path, "two", "sweep", tiny(tiny_data), sweep_members({"model": (NETWORK, "os:system")}, [0]))
    group = create_group(tmp_path, "few", "sweep", tiny(tiny_data, max_steps=1), sweep_members({"lr": (0.1,)}, [0]))
    train_group(group, test=False)
    run = group.run(group.members[0])
    run.config.write_text(run.config.read_text().replace(NETWORK, "os:system"))
    train_sweep(load_group(group.path))
    assert "test_accuracy" in json.loads(run.metrics.read_text())
    own = group.path / "group.yaml"
    own.write_text(own.read_text().replace("lr: 0.1", "model: os:system"))
    with pytest.raises(DataError, match="has to be that of all runs"):
        load_group(group.path)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"runs": []},
        {"runs": [{"name": "../up", "settings": {}}]},
        {"runs": [{"name": "a", "settings": {}}] * 2},
        {"runs": [{"name": "a", "settings": {"lr": -1}}]},
        {"runs": [{"name": "a", "settings": {"model": "os:system"}}]},
        {"runs": 3},
        {"fastcifar_group": 2},
    ],
)
def test_a_damaged_group_is_one_line(seeds: Group, tmp_path: Path, change: dict[str, Any]) -> None:
    content = yaml.safe_load((seeds.path / "group.yaml").read_text())
    content["settings"]["model"] = "small"
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(DataError, match="group.yaml: not the settings of a group of runs"):
        load_group(tmp_path)


@pytest.mark.parametrize("chosen", [[], [1, 1]])
def test_seeds_are_given_once_each(chosen: list[int]) -> None:
    with pytest.raises(UsageError, match="expected at least one, each once"):
        seed_members(chosen)


def test_a_sweep_has_each_combination_and_each_seed() -> None:
    members = sweep_members({"lr": [0.1, 0.2], "cutout_size": [0, 8]}, [0, 1])
    assert [member.name for member in members][:3] == [
        "lr=0.1,cutout_size=0,seed=0",
        "lr=0.1,cutout_size=0,seed=1",
        "lr=0.1,cutout_size=8,seed=0",
    ]
    assert len(members) == 8


def test_trials_are_drawn_by_the_seed() -> None:
    values = {"lr": list(np.linspace(0.01, 1, 20)), "cutout_size": [0, 2, 4, 8]}
    first, again, other = (sweep_members(values, [0], trials=7, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 7
    assert first == again != other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no setting to sweep"),
        ({"data_dir": ["a"]}, "data_dir cannot be swept"),
        ({"rate": [1]}, "unknown setting 'rate'"),
        ({"lr": [0.1, 0.1]}, "each once"),
    ],
)
def test_what_cannot_be_swept_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep_members(values, [0])


def test_a_sweep_needs_validation_images(tiny_data: Path) -> None:
    with pytest.raises(UsageError, match="val_size is 0; expected validation images"):
        require_validation(tiny(tiny_data, val_size=0))


def test_a_sweep_scores_the_test_images_of_the_best_alone(tiny_data: Path, tmp_path: Path) -> None:
    members = sweep_members({"lr": [1e-4, 0.05]}, [0, 1])
    group = create_group(tmp_path, "sweep", "sweep", tiny(tiny_data, epochs=4), members)
    result = train_sweep(group)
    assert result.best is not None
    assert result.best.val_accuracy is not None
    best = {run.run.path.name for run in result.best.runs}
    tested = {run.run.path.name for run in summaries(group) if run.score("test_accuracy") is not None}
    assert tested == best
    assert len(best) == 2
    assert [effect.name for effect in result.effects] == ["lr", "lr"]
    assert sweep_results(load_group(group.path)).best == result.best


def invoke(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_the_seed_of_a_sweep_is_that_of_its_runs(tiny_data: Path, tmp_path: Path) -> None:
    common = ["--model", NETWORK, "--batch-size", 36, "--max-steps", 1, "--data-dir", tiny_data, "--runs-dir", tmp_path]
    invoke("sweep", "--set", "lr=0.01,0.1", "--seed", 7, *common)
    sweep = load_group(tmp_path / "sweep")
    assert {sweep.run(member).read_config().seed for member in sweep.members} == {7}
    invoke("sweep", "--set", "lr=0.01,0.1", "--trials", 1, "--seeds", "3,4", "--seed", 7, "--name", "drawn", *common)
    rows = json.loads(invoke("runs", "--runs-dir", tmp_path, "--json"))["runs"]
    assert ["seed" in row["changed"] for row in rows] == [False, False]


def test_train_seeds_and_sweep_print_what_they_show(tiny_data: Path, tmp_path: Path) -> None:
    common = ["--model", NETWORK, "--batch-size", 36, "--epochs", 1, "--data-dir", tiny_data, "--runs-dir", tmp_path]
    text = invoke("train", "--seeds", "2", "--name", "few", *common)
    assert re.search(r"test accuracy +\d+\.\d\d% ± \d+\.\d\d +standard deviation", text)
    assert (tmp_path / "few" / "seed-1" / "report.html").is_file()
    assert 'href="seed-1/report.html"' in (tmp_path / "few" / "report.html").read_text()
    found = json.loads(invoke("train", "--resume", "few", "--runs-dir", tmp_path, "--model", NETWORK, "--json"))
    assert found["scores"]["test_accuracy"]["num_runs"] == 2
    assert "few: holds 2 runs; choose one, e.g." in invoke("train", *common, "--init", "few", code=6)
    text = invoke("sweep", "--set", "lr0=0.01,0.1", "--set", "flip=true,false", *common)
    assert "the test images were scored once" in text
    assert f"next: fastcifar runs --runs-dir {tmp_path}\n" in text
    assert re.search(r"lr=0.1, flip=False +\d", text)
    text = invoke("sweep", "--set", "sched=none,step", "--set", "early-stop=none,1", "--dry-run", *common)
    assert "sched=none, early_stop=none" in text
    found = json.loads(invoke("train", "--resume", "sweep", "--runs-dir", tmp_path, "--model", NETWORK, "--json"))
    assert [effect["settings"] for effect in found["effects"]] == [
        {"lr": 0.01},
        {"lr": 0.1},
        {"flip": True},
        {"flip": False},
    ]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "group.yaml").write_bytes((tmp_path / "few" / "group.yaml").read_bytes())
    for sort in ("date", "accuracy", "seconds", "name"):
        listed = json.loads(invoke("runs", "--runs-dir", tmp_path, "--sort", sort, "--json"))["runs"]
        assert {row["name"] for row in listed} == {"few", "sweep", "begun"}
        assert listed[-1]["name"] == "begun" or sort == "name" or (sort == "seconds" and listed[0]["name"] == "begun")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--seeds", "0"], "'0'; expected their number, 1..1,000, or the seeds, each once"),
        (["train", "--seeds", "1,1"], "'1,1'; expected their number"),
        (["train", "--seeds", "5,"], "'5,'; expected their number"),
        (["train", "--seeds", "-1,2"], "'-1,2'; expected their number"),
        (["train", "--seeds", "3", "--seed", "1"], "--seeds cannot be combined with --seed"),
        (["train", "--seeds", "3", "--resume", "x"], "--seeds cannot be combined with --resume"),
        (["sweep", "--set", "lr"], "expected a setting and its values"),
        (["sweep", "--set", "lr=a,b"], "'a'; expected a number or 'auto'"),
        (["sweep", "--set", "rate=1,2"], "unknown setting 'rate'"),
        (["sweep", "--set", "lr=1,2", "--val-size", "0"], "expected validation images"),
        (["sweep"], "no setting to sweep"),
        (["sweep", "--set", "lr=1", "--seeds", "2", "--seed", "1"], "--seeds cannot be combined with --seed, except"),
        (["sweep", "--set", "lr=1", "--set", "lr0=2"], "--set lr is given twice"),
        (["sweep", "--set", "lr=1,2", "--lr", "1"], "--lr is also in --set"),
        (["sweep", "--set", "augment=a.py"], "pipeline cannot be swept"),
        (["sweep", "--set", "no-flip=true"], "--set no-flip: write flip=true or flip=false"),
        (["sweep", "--set", "step-size=1,5"], "--set step_size has no effect: sched is 'plateau'"),
    ],
)
def test_wrong_groups_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in invoke(*arguments, "--runs-dir", tmp_path, code=2)
    assert not list(tmp_path.iterdir())


def in_two_processes(tiny_data: Path, tmp_path: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastcifar", *arguments]
    command += ["--model", "small", "--batch-size", "36", "--data-dir", str(tiny_data), "--runs-dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=500)


@pytest.mark.slow
def test_the_seeds_of_several_processes_are_one_group(tiny_data: Path, tmp_path: Path) -> None:
    in_two_processes(tiny_data, tmp_path, "train", "--seeds", "2", "--name", "few", "--max-steps", "2")
    assert os.listdir(tmp_path) == ["few"]
    assert len(load_group(tmp_path / "few").finished) == 2


@pytest.mark.slow
def test_the_processes_of_a_sweep_agree_on_the_best(tiny_data: Path, tmp_path: Path) -> None:
    in_two_processes(tiny_data, tmp_path, "sweep", "--set", "lr=1e-7,0.2", "--epochs", "10", "--val-size", "40")
    sweep = load_group(tmp_path / "sweep")
    tested = [run.run.path.name for run in summaries(sweep) if run.score("test_accuracy") is not None]
    assert tested == [sweep.members[1].name]
