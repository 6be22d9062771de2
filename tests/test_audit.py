"""The audit of a dataset: its table, its page, its record, and the scores and reports that use them. What the parts
find is made up here; they have tests of their own."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastcifar import convert, open_beton
from fastcifar.audit import run as audit_run
from fastcifar.audit.edits import read_left_out
from fastcifar.audit.folds import fold_config
from fastcifar.audit.given_predictions import read_probabilities
from fastcifar.audit.issues import COLUMNS, KINDS, Image, Issue, Pair, lines_of, read_issues, rows_of, write_issues
from fastcifar.audit.record import NAME, read_record
from fastcifar.audit.run import Audit, audit
from fastcifar.cli import main
from fastcifar.config import TrainConfig
from fastcifar.converters.official import DOWNLOADED
from fastcifar.data.beton import Beton
from fastcifar.data.manifest import manifest_path, read_manifest
from fastcifar.errors import DataError, UsageError
from fastcifar.inference.evaluation import evaluate_run
from fastcifar.inference.metrics import wilson_interval
from fastcifar.io.paths import command_line
from fastcifar.report import audit as audit_page
from fastcifar.report import write_report
from fastcifar.report.audit import write_audit_page
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.report.training import headline, settings
from fastcifar.training import RunFolder, train
from tests.conftest import synthetic_data
from tests.tiny import NETWORK, tiny

LEAKED = (3, 7)
"""Test images, the first exactly; image 9 is a candidate."""
WRONG = (5, 11)
"""Training images."""


def image(split: str, index: int) -> Image:
    return Image(split=split, index=index)


def pairs(splits: Any, reporter: Any = None) -> list[Pair]:
    near = [
        Pair(first=image("train", i), second=image("test", i), score=s, exact=False, certain=s > 0.5)
        for i, s in ((7, 0.999), (9, 0.1))
    ]
    return [
        Pair(first=image("train", 3), second=image("test", 3), score=1.0, exact=True),
        *near,
        Pair(first=image("train", 20), second=image("train", 30), score=1.0, exact=True),
        Pair(first=image("test", 1), second=image("test", 3), score=0.5, exact=False),
    ]


def probabilities(splits: dict[str, Beton], wrong: Sequence[int] = WRONG) -> dict[str, Any]:
    """Certain of each label, but for the wrong ones: those are of the next class."""
    found = {}
    for name, beton in splits.items():
        suggested = beton.labels.copy()
        if name == "train":
            suggested[list(wrong)] = (suggested[list(wrong)] + 1) % len(beton.class_names)
        found[name] = np.eye(len(beton.class_names), dtype=np.float32)[suggested] * 0.9 + np.float32(0.01)
    return found


@dataclass
class Judged:
    train: Any
    test: Any
    folds: Any
    runs: tuple[RunFolder, ...] = ()


def odd(splits: dict[str, Beton], *more: Any, **named: Any) -> list[Issue]:
    beton = splits["train"]
    return [Issue(kind="blank", image=image("train", 2), label=beton.class_names[beton.labels[2]], score=1.0)]


def errors(of_split: Any, labels: Any, names: Any, split: str) -> list[Issue]:
    return [
        Issue(
            kind="label",
            image=image(split, i),
            label=names[labels[i]],
            score=0.9,
            suggested=names[of_split[i].argmax()],
        )
        for i in np.flatnonzero(of_split.argmax(axis=1) != labels).tolist()
    ]


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts find what is made up above."""

    def out_of_fold(splits: dict[str, Beton], *more: Any, **named: Any) -> Judged:
        found = probabilities(splits)
        return Judged(found["train"], found.get("test"), np.zeros(len(splits["train"]), np.int64))

    for name, function in {
        "find_pairs": pairs,
        "check_images": odd,
        "out_of_fold": out_of_fold,
        "fold_config": lambda *given, **named: TrainConfig(),
        "read_probabilities": lambda path, splits: probabilities(splits, WRONG[:1]),
        "require_cleanlab": lambda: None,
        "estimate_num_errors": lambda of_split, labels: 10,
        "label_issues": errors,
    }.items():
        monkeypatch.setattr(audit_run, name, function)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data, to write audit.json into."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def done(data: Path, tmp_path: Path) -> Audit:
    return audit(data, tmp_path / "audit")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


# ---- the table ----------------------------------------------------------------------------------------------------


def test_an_audit_writes_a_line_for_each_issue_the_worst_of_a_kind_first(done: Audit) -> None:
    lines = read_issues(done.out / "issues.csv").lines
    issues = [line.issue for line in lines]
    assert [issue.kind for issue in issues] == sorted((issue.kind for issue in issues), key=KINDS.index)
    found = [(issue.kind, issue.image.split, issue.image.index, issue.action) for issue in issues]
    assert found == [
        ("exact-leak", "train", 3, "drop"),
        ("near-leak", "train", 7, "drop"),
        ("near-leak", "train", 9, ""),
        ("exact-duplicate", "train", 30, "drop"),
        ("near-duplicate", "test", 3, ""),
        ("label", "train", 5, ""),
        ("label", "train", 11, ""),
        ("blank", "train", 2, ""),
    ]
    assert done.counts()["near-leak"] == {"train": 2, "test": 0}
    assert done.leaked == {"exact": 1, "near": 1, "possible": 1}
    splits = {name: open_beton(done.data_dir / f"{name}.beton") for name in ("train", "test")}
    assert lines[0].origin == splits["train"].origins()[3]
    assert lines[0].other_origin == splits["test"].origins()[3]
    assert issues[5].suggested != issues[5].label


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        ("duplicates", {"exact-leak", "near-leak", "exact-duplicate", "near-duplicate"}),
        ("labels", {"label"}),
        ("images", {"blank"}),
    ],
)
def test_parts_can_be_chosen(data: Path, tmp_path: Path, part: str, kinds: set[str]) -> None:
    done = audit(data, tmp_path / "audit", only=[part])
    assert {line.issue.kind for line in done.issues.lines} == kinds
    assert part in done.seconds


def test_labels_are_judged_by_given_predictions(data: Path, tmp_path: Path) -> None:
    done = audit(data, tmp_path / "audit", only=["labels"], predictions="mine.npz")
    assert [line.issue.image.index for line in done.issues.lines] == list(WRONG[:1])
    assert list(done.seconds) == ["labels"]  # no duplicates are needed, as nothing is trained


def test_as_many_labels_are_certain_as_are_expected_to_be_wrong(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_run, "estimate_num_errors", lambda of_split, labels: 1)
    done = audit(data, tmp_path / "audit", only=["labels"])
    assert [line.issue.certain for line in read_issues(done.issues.path).lines] == [True, False]
    assert (done.counts()["label"]["train"], done.counts(certain=True)["label"]["train"]) == (2, 1)


def test_networks_that_doubt_most_labels_are_a_warning(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for num, expected in ((40, 0), (41, 1)):  # of 80 training images, and 40 test images
        monkeypatch.setattr(audit_run, "estimate_num_errors", lambda of_split, labels, num=num: num * len(labels) // 80)
        caplog.clear()
        audit(data, tmp_path / "audit", only=["labels"])
        assert (
            caplog.text.count("labels of train are expected to be wrong, and the networks agree with 97.5%") == expected
        )
        assert "labels of test" not in caplog.text


def test_equal_images_with_different_labels_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 256, (16, 16, 3), np.uint8), "ab"[i % 2]) for i in range(24)]
    for other, expected in (("a", 0), ("b", 1)):
        data = tmp_path / f"data {other}"
        convert({"train": [*images[:20], (images[0][0], other)], "test": images[20:]}, data)
        caplog.clear()
        audit(data, tmp_path / "audit", only=["duplicates"])
        assert (
            caplog.text.count("pairs of equal images with different labels: 1; the action 'drop' keeps one") == expected
        )


def test_the_labels_of_one_class_are_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng, classes = np.random.default_rng(0), (("train", 3), ("test", 1))
    splits = {name: [(rng.integers(0, 256, (8, 8, 3), np.uint8), i % num) for i in range(30)] for name, num in classes}
    convert(splits, tmp_path / "data", class_names=["a", "b", "c"])
    caplog.clear()
    np.savez(tmp_path / "given.npz", **{name: np.eye(3)[np.arange(30) % num] for name, num in classes})
    monkeypatch.undo()
    audit(tmp_path / "data", tmp_path / "audit", only=["labels"], predictions=tmp_path / "given.npz")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "the labels of test are not judged: all its images are of class a"
    ]


def test_the_labels_that_are_expected_to_be_wrong_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, labels = np.random.default_rng(0), np.arange(30) % 2
    splits = {
        name: [(rng.integers(0, 256, (8, 8, 3), np.uint8), label) for label in labels] for name in ("train", "test")
    }
    convert(splits, tmp_path / "data", class_names=["a", "b"])
    given = {name: np.eye(2)[labels] for name in splits}
    for name, wrong in (("train", (0.9, 0.8)), ("test", (0.7, 0.6))):
        for i, share in enumerate(wrong):
            given[name][i] = np.where(labels[i] == np.arange(2), 1 - share, share)
    np.savez(tmp_path / "given.npz", **given)
    monkeypatch.undo()
    monkeypatch.setattr(audit_run, "estimate_num_errors", lambda *_: 1)
    done = audit(tmp_path / "data", tmp_path / "audit", only=["labels"], predictions=tmp_path / "given.npz")
    found = [(line.issue.image.split, line.issue.image.index, line.issue.certain) for line in done.issues.lines]
    assert found == [("train", 0, True), ("test", 0, True), ("train", 1, False), ("test", 1, False)]


def test_wrong_use_is_named(data: Path, tmp_path: Path) -> None:
    for more, message in (
        ({"only": ["label"]}, "only is 'label'; expected one of: duplicates, labels, images"),
        ({"only": []}, "only is empty"),
        ({"seed": -1}, "seed is -1"),
        ({"only": ["images"], "predictions": "a.npz"}, "predictions is given, and only images; expected 'labels'"),
    ):
        with pytest.raises(UsageError, match=message):
            audit(data, tmp_path / "audit", **more)  # type: ignore[arg-type]
    assert not (tmp_path / "audit").exists()


def test_training_images_alone_are_audited(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "test.beton").unlink()
    monkeypatch.setattr(audit_run, "find_pairs", lambda splits, reporter: pairs(splits)[3:4])
    done = audit(data, tmp_path / "audit")
    assert "test.beton: missing; only the training images are audited" in caplog.text
    assert done.counts() == {"exact-duplicate": {"train": 1}, "label": {"train": 2}, "blank": {"train": 1}}
    assert "test images that leak" not in write_audit_page(done).read_text(encoding="utf-8")


def test_betons_that_are_missing_or_do_not_match_are_refused(
    data: Path, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    convert(image_folder(), tmp_path / "other")
    for file in (tmp_path / "other").glob("test.*"):
        shutil.copy(file, data / file.name)
    failed = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit")
    assert failed.exit_code == 4
    assert "test.beton: has the classes cat, dog; expected those of" in failed.output
    (data / "train.beton").unlink()
    failed = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit")
    assert failed.exit_code == 4
    assert "train.beton: no such file; make it with: fastcifar convert" in failed.output


@pytest.mark.parametrize(
    ("option", "value", "exit_code", "message"),
    [
        ("--folds", "21", 2, "folds is 21; expected 2"),
        ("--recipe", "none", 2, "none"),
        ("--device", "cuda:99", 2, "cuda:99"),
        ("--predictions", "none.npz", 4, r"none\.npz: not predictions of these images \(no such file\)"),
    ],
)
def test_wrong_use_is_found_before_anything_is_computed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, exit_code: int, message: str
) -> None:
    monkeypatch.setattr(audit_run, "find_pairs", None)
    monkeypatch.setattr(audit_run, "fold_config", fold_config)
    monkeypatch.setattr(audit_run, "read_probabilities", read_probabilities)
    failed = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit", option, value)
    assert failed.exit_code == exit_code, failed.output
    assert re.search(message, failed.output)
    assert not (tmp_path / "audit").exists()


def test_without_numba_an_audit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    result = invoke("audit", "--data-dir", tmp_path, "--only", "duplicates")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("Error: the search for similar images cannot be compiled (NUMBA_DISABLE_JIT")


# ---- the record next to the data ----------------------------------------------------------------------------------


def test_the_record_keeps_earlier_parts_of_the_same_data_only(data: Path, tmp_path: Path) -> None:
    audit(data, tmp_path / "audit", only=["duplicates"])
    audit(data, tmp_path / "audit", only=["labels"], folds=3)
    record = read_record(data)
    assert record is not None
    assert record.parts.keys() == {"duplicates", "labels"}
    assert record.parts["duplicates"].leaked == {"exact": 1, "near": 1, "possible": 1}
    assert record.parts["labels"].counts == {"label": {"train": 2}}
    assert record.parts["labels"].parameters == {"folds": 3, "recipe": None, "seed": 0}
    assert record.data_sha256["train"] == open_beton(data / "train.beton").sha256
    synthetic_data(data, 80, 50)
    audit(data, tmp_path / "audit", only=["images"])
    record = read_record(data)
    assert record is not None
    assert record.parts.keys() == {"images"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"fastcifar_audit": 2}', '{"fastcifar_audit": 1, "parts": {"duplicates": 3}}', "damaged: ["],
)
def test_a_damaged_record_is_as_none(data: Path, text: str) -> None:
    (data / NAME).write_text(text)
    assert read_record(data) is None


def test_an_audit_of_data_that_cannot_be_written_to_is_complete(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data / NAME).mkdir()
    done = audit(data, tmp_path / "audit", only=["images"])
    assert (done.out / "issues.csv").is_file()
    assert "reports of runs will not know of this audit" in caplog.text


# ---- the page -----------------------------------------------------------------------------------------------------


def page_of(done: Audit) -> str:
    return write_audit_page(done).read_text(encoding="utf-8")


def embedded(page: str) -> dict[str, Any]:
    return dict(json.loads(page.split('<script type="application/json" id="issues">')[1].split("</script>")[0]))


def test_the_page_has_a_section_for_each_kind_and_all_lines(done: Audit) -> None:
    page = page_of(done)
    assert re.findall(r'<section id="([\w-]+)"', page) == list(done.counts())
    data = embedded(page)
    assert data["columns"] == list(COLUMNS)
    assert data["rows"] == [list(row) for row in rows_of(done.issues.lines)]
    assert data["classes"] == list(done.splits["train"].class_names)
    assert page.count('class="card issue"') == len(done.issues.lines)
    assert page.count("Typical of ") == len(WRONG)
    assert "1 exact, 1 near, 1 possible" in page
    assert page.count('<img class="pixels"') == 5 * 2 + 2 * 2 + 1  # pairs; labels with typical images; blank
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-.*?'; script-src 'sha256-", unescape(page))


def test_typical_images_are_certain_and_have_no_issue(done: Audit) -> None:
    train, pictures = done.splits["train"], audit_page._Pictures(done, {})
    with_issues = {line.issue.image.index for line in done.issues.lines}
    for label in range(len(train.class_names)):
        indices = pictures._most_certain(train, label)
        assert 0 < len(indices) <= audit_page.NUM_TYPICAL
        assert (train.labels[indices] == label).all()
        assert not with_issues & set(indices)


def test_a_section_shows_what_fits_and_the_table_has_the_others(done: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_page, "MAX_SECTION_BYTES", 1)
    page = page_of(done)
    assert page.count('class="card issue"') == len(done.counts())
    assert "The first 1 of 2; all are in issues.csv." in page
    assert len(embedded(page)["rows"]) == len(done.issues.lines)
    monkeypatch.setattr(audit_page, "MAX_CARDS", 1)
    assert page_of(done).count('class="card issue"') == len(done.counts())


def test_the_page_of_data_without_issues_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_run, "check_images", lambda *given, **named: [])
    shown = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit", "--only", "images")
    assert shown.exit_code == 0, shown.output
    assert "nothing found" in shown.output
    assert "Nothing was found." in (tmp_path / "audit" / "index.html").read_text()
    assert read_issues(tmp_path / "audit" / "issues.csv").lines == ()


def test_names_cannot_leave_their_place_in_the_page(done: Audit) -> None:
    hostile = "</script><script>alert(1)</script>"
    lines = [replace(line, origin=hostile) for line in done.issues.lines]
    splits = {name: replace(b, class_names=(hostile, *b.class_names[1:])) for name, b in done.splits.items()}
    page = page_of(replace(done, splits=splits, issues=replace(done.issues, lines=tuple(lines))))
    assert page.count("<script>") == 1
    assert embedded(page)["rows"][0][2] == hostile
    assert embedded(page)["classes"][0] == hostile


def test_maps_of_the_suggested_class_come_from_the_network_that_did_not_see_the_image(
    done: Audit, tiny_data: Path, tmp_path: Path
) -> None:
    run = train(tiny(tiny_data, model="small", epochs=1), runs_dir=tmp_path)[0]
    folds = np.zeros(len(done.splits["train"]), np.int64)
    folds[WRONG[1]] = 1
    no_run = RunFolder(tmp_path / "none")
    page = page_of(replace(done, runs=(run, no_run), folds=folds))
    suggested = [line.issue.suggested for line in done.issues.lines if line.issue.kind == "label"]
    assert re.findall(r'alt="The evidence for (\w+)"', page) == suggested[:1]


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_ends_with_the_next_commands(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data, issues = image_folder(each=20), tmp_path / "data", tmp_path / "audit" / "issues.csv"
    convert(source, data, size=(8, 10), fit="pad", background=(0, 0, 9))
    monkeypatch.setenv("FASTCIFAR_RUNS_DIR", str(tmp_path / "runs"))
    shown = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"near-leak +2 +0 +1$", shown.output, re.MULTILINE)
    assert "2 of 40 test images (5.00%) are also training images, 1 of them exactly; 1 more may be" in shown.output
    following = [line.removeprefix("next: ") for line in shown.output.splitlines() if line.startswith("next: ")]
    dropped = f"fastcifar convert --source SOURCE --size 8x10 --fit pad --background 0,0,9 --drop {issues}"
    relabelled = f"{dropped} --relabel {issues} --data-dir {data}-clean"
    assert following == [f"{dropped} --data-dir {data}-clean", relabelled]
    assert "repeat its --test-share and other options" in shown.output
    done = invoke(*shlex.split(following[0].removeprefix("fastcifar ").replace("SOURCE", str(source))))
    assert done.exit_code == 0, done.output
    assert "train: 3 images dropped: exact-duplicate (1), exact-leak (1), near-leak (1)" in done.output
    assert len(open_beton(tmp_path / "data-clean" / "train.beton")) == 37


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        (DOWNLOADED["cifar10"], "--drop"),
        (DOWNLOADED["cifar100"], "--dataset cifar100 --drop"),
        ("images of downloaded", "--source SOURCE --drop"),
    ],
)
def test_the_next_command_converts_the_same_source(
    tmp_path: Path, image_folder: Callable[..., Path], source: str, flags: str
) -> None:
    convert(image_folder(each=20), tmp_path / "data")
    path = manifest_path(tmp_path / "data" / "train.beton")
    manifest = read_manifest(path.with_suffix(""))
    assert manifest is not None
    path.write_text(replace(manifest, source=source).to_json(), encoding="utf-8")
    shown = invoke("audit", "--data-dir", tmp_path / "data", "--out", tmp_path / "audit")
    assert f"next: fastcifar convert {flags} " in shown.output


def test_the_next_commands_of_data_in_the_current_folder(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(image_folder(each=20), tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    (tmp_path / "data/runs/a/weights").mkdir(parents=True)
    (tmp_path / "data/runs/a/weights/best.safetensors").touch()
    shown = invoke("audit", "--data-dir", ".", "--out", "../audit")
    assert shown.exit_code == 0, shown.output
    assert "next: fastcifar eval --without ../audit/issues.csv" in shown.output
    assert "--drop ../audit/issues.csv --data-dir data-clean" in shown.output


def test_the_command_prints_json_and_no_conversion_of_images_that_cannot_be_found(data: Path, tmp_path: Path) -> None:
    shown = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit")
    assert "convert" not in shown.output
    as_json = json.loads(invoke("audit", "--data-dir", data, "--out", tmp_path / "audit", "--json").stdout)
    assert as_json["leaked"] == {"exact": 1, "near": 1, "possible": 1}
    assert as_json["counts"]["blank"] == {"train": 1, "test": 0}
    assert as_json["page"] == str(tmp_path / "audit" / "index.html")


@pytest.mark.parametrize(
    "flags",
    [
        ("--predictions", "a.npz", "--folds", "3"),
        ("--folds", "1"),
        ("--only", "all"),
        ("--seed", "-1"),
        ("--folds", "3", "--only", "images"),
        ("--recipe", "fast", "--only", "duplicates,images"),
    ],
)
def test_flags_that_make_no_sense_are_wrong_use(data: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    failed = invoke("audit", "--data-dir", data, "--out", tmp_path / "audit", *flags)
    assert failed.exit_code == 2
    assert flags[0] in failed.output or flags[0].lstrip("-") in failed.output


# ---- scores without leaks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Not to be written to."""
    return train(tiny(tiny_data), runs_dir=tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture
def run(trained: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A copy, whose data are those of `data`."""
    monkeypatch.setattr("fastcifar.plotting.figures.write_png", lambda path, figure: path.write_bytes(b"png"))
    run = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / "a")))
    config = run.path / "config.yaml"
    settings = re.sub(r"^data_dir: .*$", f"data_dir: {data}", config.read_text(), flags=re.MULTILINE)
    config.write_text(settings)
    return run


def disputed(done: Audit, index: int, action: str = "") -> Issue:
    test = done.splits["test"]
    label = test.class_names[test.labels[index]]
    return Issue(kind="label", image=image("test", index), label=label, score=0.8, suggested="x", action=action)


def with_lines(done: Audit, *issues: Issue) -> Path:
    lines = lines_of([*(line.issue for line in done.issues.lines), *issues], done.splits)
    return write_issues(done.out / "issues.csv", lines).path


def test_eval_scores_a_run_without_leaks_and_without_disputed_labels(done: Audit, run: RunFolder) -> None:
    issues = with_lines(done, disputed(done, 20), disputed(done, 3), disputed(done, 21, "keep"))
    shown = invoke("eval", run.path, "--model", NETWORK, "--without", issues)
    assert shown.exit_code == 0, shown.output
    assert "left out: exact-leak (1), label (1), near-leak (1)" in shown.output
    written = json.loads((run.path / "eval" / "test" / "metrics.json").read_text())
    evaluation = evaluate_run(run, trusted=NETWORK)
    is_correct, indices = evaluation.metrics.predictions.is_correct, np.arange(40)
    for name, left_out in (("leaks", LEAKED), ("disputed labels", (*LEAKED, 20))):
        remaining = is_correct[~np.isin(indices, left_out)]
        found = written["without"][name]
        assert found["num_images"] == 40 - len(left_out)
        assert found["accuracy"] == remaining.mean()
        assert found["accuracy_interval"] == list(wilson_interval(int(remaining.sum()), len(remaining)))
        low, high = found["accuracy_interval"]
        assert re.search(
            rf"without {name} +{len(remaining)} +{found['accuracy']:.2%} +{low:.2%} to {high:.2%}", shown.output
        )
    assert written["accuracy"] == is_correct.mean()
    assert written["issues_sha256"] == read_issues(issues).sha256
    as_json = json.loads(invoke("eval", run.path, "--model", NETWORK, "--without", issues, "--json").stdout)
    assert as_json["without"] == written["without"]


def test_both_images_of_a_leak_and_lines_to_keep_count(done: Audit) -> None:
    lines = list(done.issues.lines)
    assert read_left_out(done.issues.path).kinds == {3: "exact-leak", 7: "near-leak"}
    lines[1] = replace(lines[1], issue=replace(lines[1].issue, action="keep"))
    left_out = read_left_out(write_issues(done.out / "issues.csv", lines).path)
    assert left_out.kinds == {3: "exact-leak"}
    assert done.splits["test"].sha256.startswith(left_out.data_sha256)


def test_a_test_image_of_two_leaks_is_left_out_as_an_exact_one(done: Audit) -> None:
    exact, near, *others = done.issues.lines
    near = replace(near, issue=replace(near.issue, other=exact.issue.other))
    for first, second in ((exact, near), (near, exact)):
        issues = write_issues(done.out / "issues.csv", [first, second, *others])
        assert read_left_out(issues.path).kinds == {3: "exact-leak"}


def test_candidates_are_left_out_of_a_score_after_a_decision(done: Audit) -> None:
    candidate = disputed(done, 20)
    for action, certain, expected in (
        ("", False, False),
        ("drop", False, True),
        ("keep", True, False),
        ("", True, True),
    ):
        issues = with_lines(done, replace(candidate, action=action, certain=certain))
        assert (20 in read_left_out(issues).kinds) == expected


def test_eval_refuses_the_issues_of_other_data(done: Audit, run: RunFolder, tmp_path: Path) -> None:
    other = synthetic_data(tmp_path / "other", 80, 50)
    failed = invoke("eval", run.path, "--model", NETWORK, "--data-dir", other, "--without", done.issues.path)
    assert failed.exit_code == 4
    assert f"issues.csv: made for test images of SHA-256 {done.splits['test'].sha256[:16]}…; " in failed.output
    everything = with_lines(done, *(disputed(done, index) for index in range(40)))
    failed = invoke("eval", run.path, "--model", NETWORK, "--without", everything)
    assert failed.exit_code == 4
    assert "leaves out all 40 images; expected some to remain" in failed.output
    beyond = done.issues.path.read_text().replace(",test,7,", ",test,70,")
    done.issues.path.write_text(beyond)
    failed = invoke("eval", run.path, "--model", NETWORK, "--without", done.issues.path)
    assert failed.exit_code == 4
    assert "names test image 70; expected 0..39" in failed.output


def test_without_is_for_the_test_images_of_the_data(done: Audit, run: RunFolder) -> None:
    for flags in (["--split", "val"], ["--on", done.data_dir / "test.beton"]):
        failed = invoke("eval", run.path, "--without", done.issues.path, *flags)
        assert failed.exit_code == 2
        assert f"--without names test images of the data; cannot be combined with {flags[0]}" in failed.output
    with pytest.raises(UsageError, match="without names test images"):
        evaluate_run(run, split="val", without=read_left_out(done.issues.path), trusted=NETWORK)


# ---- the report of a run ------------------------------------------------------------------------------------------


def leaks_in_report(run: RunFolder) -> str:
    found = headline(RunFiles(run.path))
    assert found is not None
    return dict(found["facts"])["Leaks"]


def test_the_report_of_a_run_says_how_many_test_images_leak(run: RunFolder, data: Path, tmp_path: Path) -> None:
    assert (
        leaks_in_report(run)
        == "the data were not audited for test images that are also training images: fastcifar audit --data-dir data"
    )
    audit(data, tmp_path / "audit", only=["images"])
    assert leaks_in_report(run).startswith("the data were not audited")
    audit(data, tmp_path / "audit")
    expected = "2 test images are also training images, 1 of them exactly; 1 more may be"
    assert leaks_in_report(run) == expected
    assert expected in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("typed", ["data", "../data", ""])
def test_the_report_shows_the_data_folder_as_the_command_named_it(run: RunFolder, tmp_path: Path, typed: str) -> None:
    folder = tmp_path / (typed or "images")
    (run.path / "config.yaml").write_text(f"data_dir: {folder}\n")
    (run.path / "env.json").write_text(json.dumps({"command": ["fastcifar", "train", f"--data-dir={typed}"]}))
    folder.mkdir(exist_ok=True)
    shown = command_line("fastcifar", "audit", "--data-dir", typed or folder)
    assert leaks_in_report(run) == f"the data were not audited for test images that are also training images: {shown}"
    assert settings(RunFiles(run.path)) == {"changed": [], "all": [("data_dir", clean(typed or folder))]}


def test_the_report_says_when_there_is_no_leak_or_nothing_is_known(
    run: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_run, "find_pairs", lambda splits, reporter: [])
    audit(data, tmp_path / "audit", only=["duplicates"])
    assert leaks_in_report(run) == "no test image is also a training image"
    synthetic_data(data, 80, 50)
    audit(data, tmp_path / "audit", only=["duplicates"])
    assert leaks_in_report(run).startswith("the data were not audited")
    shutil.rmtree(data)
    assert leaks_in_report(run) == "unknown: the data are not where the run used them"


def test_a_record_cannot_be_made_of_a_pipe_or_a_huge_file(data: Path) -> None:
    (data / NAME).write_bytes(b" " * 2**21)
    assert read_record(data) is None


def test_two_audits_of_one_folder_do_not_mix(data: Path, tmp_path: Path) -> None:
    from fastcifar.errors import FastcifarError
    from fastcifar.io.locks import lock_folder

    (tmp_path / "audit").mkdir()
    with lock_folder(tmp_path / "audit", "busy"), pytest.raises(FastcifarError, match="another audit is writing here"):
        audit(data, tmp_path / "audit")


def test_an_audit_needs_betons_of_classes(data: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        audit(data / "none")
