"""Lists and comparisons of runs: of folders written without training."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.config import TrainConfig
from fastcifar.errors import DataError, UsageError
from fastcifar.inference.predictions import Predictions
from fastcifar.runs.compare import compare, comparison_folder
from fastcifar.runs.compare_files import as_latex, as_markdown, table_of, write_comparison
from fastcifar.runs.group import Group, load_group, seed_members
from fastcifar.runs.statistics import McNemar, Welch
from fastcifar.runs.summary import RunSummary, list_runs, summaries
from fastcifar.training import RunFolder
from fastcifar.training.run_folder import create_run
from tests.run_folders import write_results

N = 200


def write_run(path: Path, num_wrong: Sequence[int], data_sha256: str = "d" * 64, **settings: Any) -> RunFolder:
    """A finished run that misclassifies the images `num_wrong` of 200."""
    path.mkdir(parents=True, exist_ok=True)
    run = RunFolder(path)
    run.best.parent.mkdir(exist_ok=True)
    run.best.touch()
    run.last.touch()
    run.write_config(TrainConfig.from_stored(**{"model": "small", "epochs": 3, **settings}))
    labels = np.arange(N) % 4
    predicted = labels.copy()
    predicted[list(num_wrong)] = (predicted[list(num_wrong)] + 1) % 4
    logits = 3 * np.eye(4, dtype=np.float32)[predicted]
    Predictions(np.arange(N), labels, logits, "w" * 64, data_sha256).save(run.predictions)
    run.write_metrics(
        {"test_accuracy": 1 - len(num_wrong) / N, "test_loss": 0.5, "num_test_images": N, "train_seconds": 61.0}
    )
    write_results(run)
    return run


def write_group(folder: Path, name: str, accuracies: Sequence[float], **settings: Any) -> Group:
    config = TrainConfig.from_settings(model="small", **settings)
    members = seed_members(range(len(accuracies)))
    group = Group(path=create_run(folder, name).path, kind="seeds", config=config, members=members)
    group.write()
    for member, accuracy in zip(group.members, accuracies, strict=True):
        write_run(group.run(member).path, range(round((1 - accuracy) * N)), **settings, **member.settings)
    return group


def test_the_validation_accuracy_is_that_of_the_weights(tmp_path: Path) -> None:
    """Not that of a last epoch that --max-steps cut short, which is in the history too."""
    run = write_run(tmp_path / "a", [])
    assert RunSummary(run, "a").best_val_accuracy == 0.75
    run.write_metrics({"best": {"epoch": 2, "val_loss": 1.1, "val_accuracy": 0.5}})
    assert RunSummary(run, "a").best_val_accuracy == 0.5


def test_two_runs_are_compared_on_the_same_images(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(30), lr=0.1)
    write_run(tmp_path / "b", range(20, 32), lr=0.2)
    comparison = compare(["a", "b"], tmp_path)
    (difference,) = comparison.differences
    assert isinstance(difference.test, McNemar)
    assert (difference.test.only_first, difference.test.only_second) == (2, 20)
    assert "this compares these two networks, not the recipes" in difference.sentence
    assert "a difference;" in difference.sentence
    assert comparison.settings == {"lr": (0.1, 0.2)}


def test_two_groups_are_compared_by_welch(tmp_path: Path) -> None:
    write_group(tmp_path, "plain", [0.80, 0.82, 0.81])
    write_group(tmp_path, "smooth", [0.90, 0.92, 0.91], label_smoothing=0.1)
    comparison = compare(["plain", "smooth"], tmp_path)
    (difference,) = comparison.differences
    assert isinstance(difference.test, Welch)
    assert difference.test.difference == pytest.approx(0.1)
    assert comparison.settings == {"label_smoothing": (0.0, 0.1)}  # not the seed
    assert "smooth against plain (3 and 3 runs): test accuracy +10.00 points" in difference.sentence
    assert comparison.entries[0].scores["test_accuracy"].num_runs == 3


def test_a_difference_that_is_not_shown_says_how_many_seeds_it_needs(tmp_path: Path) -> None:
    write_group(tmp_path, "a", [0.80, 0.90, 0.85])
    write_group(tmp_path, "b", [0.81, 0.91, 0.86])
    (difference,) = compare(["a", "b"], tmp_path).differences
    assert "no difference shown; a difference of this size needs about 394 seeds of each" in difference.sentence


def test_runs_tested_on_other_images_are_not_tested_against_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(3))
    write_run(tmp_path / "b", range(9), data_sha256="e" * 64)
    (difference,) = compare(["a", "b"], tmp_path).differences
    assert difference.test is None
    assert "tested on other images" in difference.sentence


def test_a_run_is_not_tested_against_a_group(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(3))
    write_group(tmp_path, "b", [0.81, 0.91])
    (difference,) = compare(["a", "b"], tmp_path).differences
    assert difference.test is None
    assert "can only be compared with another such group" in difference.sentence


def test_the_files_of_a_comparison(tmp_path: Path, data_dir: Path) -> None:
    from fastcifar.data.beton import open_beton

    sha256 = open_beton(data_dir / "test.beton").sha256
    for name, wrong in (("a", range(30)), ("b_1", range(20, 32))):
        write_run(tmp_path / name, wrong, sha256, data_dir=str(data_dir))
    files = write_comparison(compare(["a", "b_1"], tmp_path), tmp_path / "out")
    names = ["table.md", "table.csv", "table.tex", "curves.png", "only-1-not-2.png", "only-2-not-1.png"]
    assert [file.name for file in files] == names
    rows = list(csv.reader((tmp_path / "out" / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["", "a", "b_1"]
    assert ["test accuracy", "85.00%", "94.00%"] in rows
    assert "| test accuracy | 85.00% | 94.00% |" in (tmp_path / "out" / "table.md").read_text()
    assert r" & a & b\_1 \\" in (tmp_path / "out" / "table.tex").read_text()
    write_run(tmp_path / "b_1", range(20, 30), sha256, data_dir=str(data_dir))
    (tmp_path / "out" / "only-mine.png").write_bytes(b"")
    files = write_comparison(compare(["a", "b_1"], tmp_path), tmp_path / "out")  # a classifies no image alone
    assert {*files, tmp_path / "out" / "only-mine.png"} == {*(tmp_path / "out").iterdir()}
    assert "only-1-not-2.png" not in {file.name for file in files}


def test_tables_escape_what_their_format_reserves() -> None:
    assert as_markdown([["", "a|b"], ["<b>", "1"]]).splitlines()[::2] == [r"|  | a\|b |", r"| \<b\> | 1 |"]
    assert r"50\% \& more $\pm$ 1" in as_latex([["", "x"], ["y", "50% & more ± 1"]])


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a"], UsageError, "1 run to compare"),
        (["a", "nothing"], DataError, "no such run"),
        (["a", "a"], UsageError, "a is given twice"),
        (["a", "new"], DataError, "not finished"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, names: list[str], error: type, message: str) -> None:
    write_run(tmp_path / "a", range(3))
    write_run(tmp_path / "new", range(3)).metrics.unlink()
    with pytest.raises(error, match=message):
        compare(names, tmp_path)


def test_a_list_names_what_differs_from_the_recipe(tmp_path: Path) -> None:
    from fastcifar import recipes

    settings = {**recipes.load("fast").settings, "recipe": "fast", "lr": 0.3}
    write_run(tmp_path / "a", range(20), **settings)
    (summary,) = list_runs(tmp_path)
    assert isinstance(summary, RunSummary)
    assert summary.changed == {"lr": 0.3}
    assert summary.interval is not None
    assert summary.interval[0] < 0.9 < summary.interval[1]


def test_a_list_has_the_runs_of_groups_and_leaves_out_other_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(3))
    write_group(tmp_path, "b", [0.81, 0.91])
    (tmp_path / "notes").mkdir()
    result = invoke("runs", "--runs-dir", tmp_path, "--json", "--members")
    assert sorted(row["name"] for row in json.loads(result)["runs"]) == ["a", "b", "b/seed-0", "b/seed-1"]
    (row,) = (row for row in json.loads(invoke("runs", "--runs-dir", tmp_path, "--json"))["runs"] if row["runs"])
    assert (row["name"], row["runs"]) == ("b", "2/2")
    assert row["test_accuracy"] == pytest.approx(0.86)


def test_damaged_files_do_not_end_a_list(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", range(3))
    for file in (run.config, run.metrics, run.results, run.path / "env.json"):
        file.write_text("\0{")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "group.yaml").write_text("no")
    assert "a " in invoke("runs", "--runs-dir", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--filter", "lr=0.1"], ["a"]),
        (["--filter", "lr>0.1"], ["b"]),
        (["--filter", "accuracy<=0.9", "--filter", "model=small"], ["a"]),
        (["--filter", "model!=small"], []),
        (["--filter", "--Label-Smoothing=0", "--filter", "accuracy>90%"], ["b"]),
        (["--filter", "milestones=1,2"], ["b"]),
        (["--filter", "started>=2020", "--sort", "name"], ["a", "b"]),
        (["--filter", "started<2020"], []),
        (["--filter", "recipe>a"], []),
        (["--filter", "flip=yes"], ["a", "b"]),
        (["--sort", "accuracy"], ["b", "a"]),
        (["--sort", "name"], ["a", "b"]),
    ],
)
def test_a_list_is_filtered_and_sorted(tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    write_run(tmp_path / "a", range(30), lr=0.1)
    write_run(tmp_path / "b", range(10), lr=0.2, milestones=(1, 2))
    rows = json.loads(invoke("runs", "--runs-dir", tmp_path, "--json", *arguments))["runs"]
    assert [row["name"] for row in rows] == expected


def test_a_filter_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(30))
    assert "expected a share, up to 1, or e.g. 93%" in invoke(
        "runs", "--runs-dir", tmp_path, "--filter", "accuracy>93", code=2
    )
    assert "expected a setting or one of" in invoke("runs", "--runs-dir", tmp_path, "--filter", "rate=1", code=2)
    assert "expected a number" in invoke("runs", "--runs-dir", tmp_path, "--filter", "accuracy>high", code=2)
    empty = invoke("runs", "--runs-dir", tmp_path, "--filter", "accuracy>0.99")
    assert "that passes the filters" in empty
    assert "next:" not in empty


def test_a_filter_sees_what_the_runs_of_a_group_share(tmp_path: Path) -> None:
    write_group(tmp_path, "b", [0.81, 0.91], label_smoothing=0.1)
    for text, num in (("seed=0", 0), ("seed!=0", 1), ("label_smoothing>=0.1", 1)):
        listed = json.loads(invoke("runs", "--runs-dir", tmp_path, "--filter", text, "--json"))
        assert len(listed["runs"]) == num


def test_a_list_names_the_next_command_with_the_folder_of_its_runs(tmp_path: Path) -> None:
    folder = ["--runs-dir", str(tmp_path)]
    assert f"next: fastcifar train --recipe fast {shlex.join(folder)}\n" in invoke("runs", *folder)
    for name in ("a", "b"):
        write_run(tmp_path / name, range(3))
    (following,) = re.findall("^next: fastcifar (.*)$", invoke("runs", *folder), flags=re.MULTILINE)
    assert "McNemar" in invoke(*shlex.split(following))


def test_options_of_the_list_are_not_lost_before_compare(tmp_path: Path) -> None:
    assert "write them after it" in invoke("runs", "--runs-dir", tmp_path, "compare", "a", "b", code=2)


def test_entries_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_group(tmp_path, "plain", [0.80, 0.82])
    write_group(tmp_path, "smooth", [0.90, 0.92], label_smoothing=0.1)
    members = compare(["plain/seed-0", "plain/seed-1"], tmp_path)
    assert [entry.name for entry in members.entries] == ["plain/seed-0", "plain/seed-1"]
    comparison = compare(["plain/seed-0", "smooth/seed-0"], tmp_path)
    assert [entry.name for entry in comparison.entries] == ["plain/seed-0", "smooth/seed-0"]
    text = invoke("runs", "compare", "plain/seed-0", "smooth/seed-0", "--runs-dir", tmp_path)
    assert "smooth/seed-0 against plain/seed-0" in text
    table = (tmp_path / "comparisons" / "plain-seed-0-smooth-seed-0" / "table.md").read_text()
    assert "\n- smooth/seed-0 against plain/seed-0: " in table


def test_the_score_of_a_comparison_is_the_one_that_was_tested(tmp_path: Path) -> None:
    for name, wrong in (("a", range(30)), ("b", range(20, 32))):  # of a sweep: only 'eval' has tested them
        write_run(tmp_path / name, wrong).write_metrics({"best": {"epoch": 2, "val_loss": 1.1, "val_accuracy": 0.5}})
    (difference,) = compare(["a", "b"], tmp_path).differences
    assert isinstance(difference.test, McNemar)
    assert difference.score.key == "test_accuracy"
    RunFolder(tmp_path / "a").predictions.unlink()
    (difference,) = compare(["a", "b"], tmp_path).differences
    assert (difference.test, difference.score.key) == (None, "val_accuracy")


def test_each_comparison_has_a_folder_of_its_own(tmp_path: Path) -> None:
    long = "n" * 60
    for name in ("a", "a-b", "b-c", "c", "elsewhere/a", long, f"{long}1", f"{long}2"):
        write_run(tmp_path / name, range(3))
    folders = []
    for names in (
        ["a-b", "c"],
        ["a", "b-c"],
        [tmp_path / "elsewhere" / "a", "b-c"],
        [long, f"{long}1"],
        [long, f"{long}2"],
    ):
        comparison = compare(names, tmp_path)
        folders.append(comparison_folder(comparison, tmp_path))
        write_comparison(comparison, folders[-1])
        assert comparison_folder(compare(names, tmp_path), tmp_path) == folders[-1]
    assert [folder.name for folder in folders[:2]] == ["a-b-c", "a-b-c-2"]
    assert len(set(folders)) == 5


def test_groups_tested_on_other_images_are_not_tested_against_each_other(tmp_path: Path) -> None:
    write_group(tmp_path, "a", [0.80, 0.82])
    other = write_group(tmp_path, "b", [0.90, 0.92])
    for group, sha256 in ((load_group(tmp_path / "a"), "d" * 64), (other, "e" * 64)):
        for run in summaries(group):
            run.run.write_metrics({**run.metrics, "test_data_sha256": sha256, "data_sha256": sha256})
    comparison = compare(["a", "b"], tmp_path)
    assert comparison.differences[0].test is None
    assert "tested on other images than a" in comparison.differences[0].sentence
    assert comparison.settings == {"training data (SHA-256)": ("d" * 12, "e" * 12)}


def test_runs_that_diverged_are_counted(tmp_path: Path) -> None:
    write_group(tmp_path, "a", [0.80, 0.82])
    group = write_group(tmp_path, "b", [0.90, 0.92, 0.91])
    group.run(group.members[0]).write_metrics({"diverged": "the loss is nan"})
    assert ["diverged, left out", "0", "1"] in table_of(compare(["a", "b"], tmp_path))
    with pytest.raises(DataError, match="seed-0: diverged"):
        compare(["a/seed-0", "b/seed-0"], tmp_path)


def test_the_default_rate_is_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(3), lr=0.02)
    write_group(tmp_path, "b", [0.81, 0.91], epochs=3)
    assert compare(["a", "b"], tmp_path).settings == {}
    first, *_ = list_runs(tmp_path)
    assert isinstance(first, RunSummary)
    assert "lr" not in first.changed


def test_compare_prints_the_table_and_the_test(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(30), lr=0.1)
    write_run(tmp_path / "b", range(20, 32), lr=0.2)
    text = invoke("runs", "compare", "a", "b", "--runs-dir", tmp_path)
    assert re.search(r"lr +0.1 +0.2", text)
    assert "McNemar's exact test" in text
    assert (tmp_path / "comparisons" / "a-b" / "table.md").is_file()
    found = json.loads(invoke("runs", "compare", "a", "b", "--runs-dir", tmp_path, "--json"))
    assert found["differences"][0]["test"]["kind"] == "McNemar"


def invoke(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output
