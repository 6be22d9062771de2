"""The picture of label errors and duplicates in docs/audit.md, of a made-up audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image as Pillow

from benchmarks import audit_picture
from benchmarks.audit_picture import draw, main
from fastcifar import open_beton
from fastcifar.audit.issues import Image, Issue, lines_of, write_issues

NUM_LABELS = 12


@pytest.fixture
def issues() -> list[Issue]:
    """The first label is to be kept; a near-duplicate precedes the near-leaks."""
    images = [Image(split="train", index=index) for index in range(20)]
    labels = [
        Issue(kind="label", image=images[i], label=f"class {i}", suggested="x$", score=0.9, action="" if i else "keep")
        for i in range(NUM_LABELS)
    ]
    pairs = [Issue(kind="near-duplicate", image=images[5], label="a", score=1.0, other=images[4])]
    pairs += [
        Issue(kind="near-leak", image=images[i], label="a", score=0.9, other=Image(split="test", index=i + 1))
        for i in range(2)
    ]
    return [*labels, *pairs]


def test_the_picture_has_the_first_of_each_kind_and_leaks_before_duplicates(
    issues: list[Issue], tiny_data: Path
) -> None:
    splits = {name: open_beton(tiny_data / f"{name}.beton") for name in ("train", "test")}
    axes = draw(issues, splits).axes
    titles = [axis.get_title().split("\n") for axis in axes]
    assert [title[0] for title in titles[:10]] == [f"given: class {i}" for i in range(10)]
    assert [title[0] for title in titles[10:14]] == ["train 0", "train 1", "train 5", ""]
    assert [title[0] for title in titles[20:24]] == ["test 1", "test 2", "train 4", ""]
    train = splits["train"]
    assert titles[12][1] == train.class_names[train.labels[5]]
    assert (axes[12].images[0].get_array() == train.images([5])[0]).all()


def test_the_command_writes_it_without_what_a_person_kept(
    issues: list[Issue], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Issue] = []
    monkeypatch.setattr(audit_picture, "draw", lambda shown, splits: drawn.extend(shown) or draw(shown, splits))
    splits = {name: open_beton(tiny_data / f"{name}.beton") for name in ("train", "test")}
    lines = lines_of(issues, splits)
    write_issues(tmp_path / "issues.csv", lines)
    options = ["--issues", str(tmp_path / "issues.csv"), "--data-dir", str(tiny_data)]
    done = CliRunner().invoke(main, [str(tmp_path / "a.png"), *options])
    assert done.exit_code == 0, done.output
    with Pillow.open(tmp_path / "a.png") as picture:
        assert picture.width > 1_000
    assert drawn == issues[1:]
    write_issues(tmp_path / "issues.csv", [replace(lines[0], data_sha256="0" * 16)])
    failed = CliRunner().invoke(main, [str(tmp_path / "c.png"), *options])
    assert failed.exit_code == 4
    assert "issues.csv: line 2 is of other data than" in failed.output
