"""issues.csv, read back after a person edited it; and what `convert` makes of it: images dropped and relabelled."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastcifar import open_beton
from fastcifar.audit.edits import read_edits
from fastcifar.audit.issues import COLUMNS, Image, Issue, lines_of, read_issues, write_issues
from fastcifar.cli import main
from fastcifar.converters import convert
from fastcifar.data.manifest import _checksum, read_manifest
from fastcifar.errors import DataError, UsageError
from tests.conftest import ImageFolder


def image(index: int, split: str = "train") -> Image:
    return Image(split=split, index=index)


def leak(index: int = 0, other: int = 1, **more: Any) -> Issue:
    given = {"kind": "near-leak", "image": image(index), "label": "cat", "score": 0.9, "other": image(other, "test")}
    return Issue(**{**given, **more})


def duplicate(index: int, other: int) -> Issue:
    return Issue(kind="near-duplicate", image=image(index), label="dog", score=0.5, other=image(other))


def wrong(index: int = 2, **more: Any) -> Issue:
    return Issue(**{"kind": "label", "image": image(index), "label": "cat", "score": 0.75, "suggested": "dog", **more})


@pytest.fixture
def data(image_folder: ImageFolder, tmp_path: Path) -> Path:
    """Three cats and three dogs in each split, converted; the source is images/ next to it."""
    convert(image_folder(), tmp_path / "data")
    return tmp_path / "data"


def written(data: Path, issues: Sequence[Issue]) -> Path:
    splits = {name: open_beton(data / f"{name}.beton") for name in ("train", "test")}
    return write_issues(data.parent / "issues.csv", lines_of(issues, splits)).path


def table(file: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))


def rewritten(file: Path, number: int, **cells: str) -> Path:
    """The file with other cells in line `number`."""
    rows = table(file)
    for name, cell in cells.items():
        rows[number - 1][COLUMNS.index(name)] = cell
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    return file


def converted(data: Path, *arguments: str | Path, out: str = "clean") -> Result:
    line = ["convert", "--source", data.parent / "images", "--data-dir", data.parent / out, *arguments]
    return CliRunner().invoke(main, list(map(str, line)))


def test_lines_are_read_as_they_were_written(data: Path) -> None:
    issues = [leak(action="drop"), wrong(certain=False), duplicate(5, 3)]
    file = written(data, issues)
    lines = read_issues(file).lines
    assert [line.issue for line in lines] == issues
    assert [line.number for line in lines] == [2, 3, 4]
    assert lines[0].origin == "train/cat/00.png"
    assert lines[0].other_origin == "test/cat/01.png"
    shas = {name: open_beton(data / f"{name}.beton").sha256 for name in ("train", "test")}
    assert (lines[0].data_sha256, lines[0].other_sha256) == (shas["train"][:16], shas["test"][:16])
    assert file.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_an_edited_file_is_kept_when_the_audit_is_repeated(data: Path) -> None:
    file = written(data, [wrong()])
    written(data, [wrong()])
    assert not (data.parent / "issues.previous.csv").exists()
    rewritten(file, 2, action="drop")
    written(data, [wrong()])
    assert read_issues(data.parent / "issues.previous.csv").lines[0].issue.action == "drop"


def test_each_edited_file_is_kept(data: Path) -> None:
    file = written(data, [wrong()])
    for action in ("drop", "keep"):
        rewritten(file, 2, action=action)
        written(data, [wrong()])
    kept = [data.parent / f"issues.previous{number}.csv" for number in ("", "-2")]
    assert [read_issues(path).lines[0].issue.action for path in kept] == ["drop", "keep"]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "'quoted'", "'=x", "it's", " a, "])
def test_no_name_becomes_a_formula_of_a_spreadsheet(data: Path, name: str) -> None:
    issue = wrong(label=name, suggested=name)
    file = written(data, [issue])
    assert all(cell[:1] not in ("=", "+", "-", "@") for cell in table(file)[1])
    assert read_issues(file).lines[0].issue == issue
    assert read_issues(rewritten(file, 2, suggested="=typed")).lines[0].issue.suggested == "=typed"


def test_what_spreadsheets_write_is_accepted(data: Path) -> None:
    file = written(data, [leak(action="drop"), wrong()])
    expected = read_issues(file).lines
    order = [10, 12, 13, 11, *range(10)]
    rows = [[*(row[i] for i in order), "my own column"] for row in table(file)]
    for row in rows[1:]:
        row[order.index(5)] = row[order.index(5)].replace(".", ",")
        row[0] = row[0].upper()
    for separator in ";\t,":
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            csv.writer(out, delimiter=separator, lineterminator="\r\n").writerows([*rows, [""] * len(rows[0])])
        assert read_issues(file).lines == expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"action": "remove"}, "line 2: action is 'remove'; expected drop, relabel, keep, or nothing"),
        ({"kind": "leak"}, "line 2: kind is 'leak'; expected exact-leak, near-leak"),
        ({"split": "val"}, "line 2: split is 'val'; expected train, test"),
        ({"index": "-1"}, "line 2: index is '-1'; expected the number of an image"),
        ({"index": "1.5"}, "line 2: index is '1.5'"),
        ({"score": "high"}, "line 2: score is 'high'; expected a number of 0..1"),
        ({"score": "nan"}, "line 2: score is 'nan'"),
        ({"certain": "maybe"}, "line 2: certain is 'maybe'; expected yes, no"),
        ({"label": ""}, "line 2: label is empty; expected the name of a class"),
        ({"action": "relabel", "suggested": ""}, "line 2: action is 'relabel', and suggested is empty"),
        ({"data_sha256": "1.2E+15"}, "line 2: data_sha256 is '1.2E.15'; expected 16 hexadecimal digits"),
        ({"other_split": "test"}, "line 2: other_index is ''; expected the number of an image"),
        (
            {"kind": "near-leak"},
            "line 2: other_index is '', and kind 'near-leak'; expected the number of the other image",
        ),
        ({"other_split": "test", "other_index": "3"}, "line 2: other_index is '3', and kind 'label'; expected nothing"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line(data: Path, cells: dict[str, str], message: str) -> None:
    file = rewritten(written(data, [wrong()]), 2, **cells)
    with pytest.raises(DataError, match=message) as caught:
        read_issues(file)
    assert str(caught.value).startswith(f"{file}: line 2: ")
    failed = converted(data, "--drop", file)
    assert failed.exit_code == 4
    assert not (data.parent / "clean").exists()


def test_other_files_are_not_an_issues_csv(data: Path, tmp_path: Path) -> None:
    file = written(data, [wrong()])
    text = file.read_text()
    cases = {
        text.replace(",suggested", ",proposed"): "its first line has no column suggested; expected: split,index,",
        "": "it is empty",
        text.replace(",,,", ","): "line 2: 12 values; expected 14",
        text + '"open': "not the issues.csv of an audit .unexpected end of data.; make it with: fastcifar audit",
    }
    for content, message in cases.items():
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            read_issues(file)
    file.write_bytes(text.replace("cat", "chât").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 .byte .*; save it as 'CSV UTF-8'"):
        read_issues(file)
    with pytest.raises(DataError, match="no such file"):
        read_issues(tmp_path / "none.csv")


def test_convert_drops_what_the_file_says_and_records_it(data: Path) -> None:
    file = written(data, [leak(action="drop"), wrong(), duplicate(4, 3)])
    done = converted(data, "--drop", file)
    assert done.exit_code == 0, done.output
    assert "train: 1 image dropped: near-leak (1)" in done.output
    before, after = (open_beton(folder / "train.beton") for folder in (data, data.parent / "clean"))
    assert after.origins() == before.origins()[1:]
    assert np.array_equal(after.images(range(5)), before.images(range(1, 6)))
    assert after.labels.tolist() == before.labels.tolist()[1:]
    facts = after.manifest.conversion  # type: ignore[union-attr]
    assert (facts.dropped, facts.relabelled) == ({"near-leak": 1}, 0)
    assert facts.edits_sha256 == (read_issues(file).sha256,)
    assert len(open_beton(data.parent / "clean" / "test.beton")) == 6
    shown = CliRunner().invoke(main, ["inspect", str(data.parent / "clean" / "train.beton")])
    assert "train.beton: 1 image dropped: near-leak (1)" in shown.output


def test_drop_kinds_take_all_lines_but_those_to_keep(data: Path) -> None:
    issues = [
        leak(action="drop"),
        wrong(),
        wrong(4, label="dog", suggested="cat", action="keep"),
        wrong(5, label="dog"),
    ]
    done = converted(data, "--drop", written(data, issues), "--drop-kinds", "label,blank")
    assert done.exit_code == 0, done.output
    assert open_beton(data.parent / "clean" / "train.beton").origins() == [
        f"train/{name}.png" for name in ("cat/00", "cat/01", "dog/00", "dog/01")
    ]
    assert read_edits(written(data, issues), ["label"]).dropped("train") == {"label": 2}


def test_drop_kinds_take_no_line_that_is_relabelled(data: Path) -> None:
    file = written(data, [wrong(0, action="relabel"), wrong(1)])
    assert read_edits(file, ["label"]).dropped("train") == {"label": 2}
    edits = read_edits(file, ["label"], file)
    assert edits.dropped("train") == {"label": 1}
    assert [*edits.relabel["train"].values()] == ["dog"]


def test_convert_relabels_and_records_it(data: Path) -> None:
    file = written(data, [wrong(0, action="relabel"), wrong(1), leak(2, action="drop"), wrong(2, action="relabel")])
    done = converted(data, "--relabel", file, "--drop", file)
    assert done.exit_code == 0, done.output
    assert "train: 1 image relabelled" in done.output
    after = open_beton(data.parent / "clean" / "train.beton")
    assert after.labels.tolist() == [1, 0, 1, 1, 1]
    assert after.manifest.conversion.relabelled == 1  # type: ignore[union-attr]
    assert after.manifest.conversion.edits_sha256 == (read_issues(file).sha256,)  # type: ignore[union-attr]
    only = converted(data, "--relabel", file, out="only")
    assert only.exit_code == 0, only.output
    assert open_beton(data.parent / "only" / "train.beton").labels.tolist() == [1, 0, 1, 1, 1, 1]
    assert ": 0 images" not in done.output + only.output


def test_convert_warns_of_an_unedited_file(data: Path) -> None:
    file = written(data, [wrong(1), wrong(2)])
    done = converted(data, "--relabel", file, "--drop", file)
    assert f"--drop {file}: 0 images; expected 'drop' in the column action: edit the file first" in done.stderr
    assert f"--relabel {file}: 0 images; expected 'relabel' in the column action" in done.stderr
    done = converted(data, "--drop", file, "--drop-kinds", "blank", out="again")
    assert f"--drop {file}: 0 images; expected lines of these kinds" in done.stderr


@pytest.mark.parametrize(
    ("issues", "flags", "message"),
    [
        ([wrong(action="relabel", suggested="bird")], ["--relabel"], "is 'bird'; expected one of: cat, dog"),
        (
            [wrong(action="relabel"), wrong(action="relabel", suggested="cat")],
            ["--relabel"],
            "line 3: suggested is 'cat', and 'dog' in another line of this image",
        ),
        (
            [wrong(i) for i in range(3)],
            ["--drop-kinds", "label", "--drop"],
            "leaves 1 classes of train without images: cat",
        ),
        (
            [wrong(i) for i in range(6)],
            ["--drop-kinds", "label", "--drop"],
            "leaves 2 classes of train without images: cat, dog",
        ),
    ],
)
def test_edits_that_cannot_be_made_leave_the_data_as_they_are(
    data: Path, issues: list[Issue], flags: list[str], message: str
) -> None:
    before = (data / "train.beton").read_bytes()
    failed = converted(data, *flags, written(data, issues), out="data")
    assert failed.exit_code == 4
    assert message in failed.output
    assert (data / "train.beton").read_bytes() == before


@pytest.mark.parametrize("action", ["drop", "relabel"])
def test_a_file_of_other_data_is_refused(data: Path, action: str) -> None:
    file = rewritten(written(data, [wrong(action=action)]), 2, origin="train/cat/99.png")
    failed = converted(data, f"--{action}", file)
    assert failed.exit_code == 4
    assert (
        "the train image 'train/cat/99.png', which is to be dropped or relabelled, is not among its images"
        in failed.output
    )
    assert not (data.parent / "clean" / "train.beton").exists()


def test_images_without_an_origin_cannot_be_edited(data: Path) -> None:
    file = rewritten(written(data, [wrong(action="drop")]), 2, origin="")
    with pytest.raises(DataError, match="line 2: has no origin, by which the image would be found"):
        read_edits(file)


def test_an_origin_that_two_images_have_is_refused(tmp_path: Path, data: Path) -> None:
    from fastcifar.converters.edits import Edits

    class Twice:
        class_names = ("a", "b")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return np.zeros((8, 8, 3), np.uint8), index % 2

    convert(Twice(), tmp_path / "own", test=Twice())
    origin = open_beton(tmp_path / "own" / "train.beton").origins()[0]
    assert origin
    both = Edits(drop={"train": {origin: "label", "no such image": "label"}})
    with pytest.raises(DataError, match="'no such image'.* is not among its images"):
        convert(Twice(), tmp_path / "own", test=Twice(), edits=both)


def test_kinds_that_do_not_exist_are_wrong_use(data: Path) -> None:
    file = written(data, [wrong()])
    for arguments in (["--drop", file, "--drop-kinds", "labels"], ["--drop-kinds", "label"]):
        failed = converted(data, *arguments)
        assert failed.exit_code == 2
        assert "drop" in failed.output
    with pytest.raises(UsageError, match="drop_kinds is 'labels'; expected one of: exact-leak"):
        read_edits(file, ["labels"])


def test_a_manifest_of_version_3_is_still_read(data: Path) -> None:
    file = data / "train.beton.json"
    facts = json.loads(file.read_text())
    for name in ("dropped", "relabelled", "edits_sha256", "elongated"):
        del facts["conversion"][name]
    facts |= {"fastcifar_manifest": 3}
    del facts["checksum"]
    file.write_text(json.dumps(facts | {"checksum": _checksum(facts)}))
    manifest = read_manifest(data / "train.beton")
    assert manifest is not None
    assert (manifest.conversion.dropped, manifest.conversion.edits_sha256) == ({}, ())
    assert len(open_beton(data / "train.beton")) == 6


@pytest.mark.parametrize("rows", [5, [5], [[0, 0, 9]], [[0, 9]], [[0, 9.5, 9]], [[-1, 9, 9]]])
def test_a_wrong_list_of_elongated_images_is_refused(data: Path, rows: object) -> None:
    file = data / "train.beton.json"
    facts = json.loads(file.read_text())
    facts["conversion"]["elongated"] = rows
    del facts["checksum"]
    file.write_text(json.dumps(facts | {"checksum": _checksum(facts)}))
    with pytest.raises(DataError, match="conversion.elongated is not a list of indices"):
        read_manifest(data / "train.beton")
