"""The report of a run: its sections, damaged files, and what it does not let in."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import logging
import os
import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.config import TrainConfig
from fastcifar.data.manifest import read_manifest
from fastcifar.errors import DataError, FastcifarError, Stopped
from fastcifar.inference.predictions import Predictions
from fastcifar.io import reading
from fastcifar.report import write_report, write_report_or_warn
from fastcifar.report.classification import classification
from fastcifar.report.explanations import explanations
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.training import RunFolder
from tests import run_folders as make

NAMES = ("cat", "dog", "ship", "tree")
HOSTILE = (
    "<script>document.title='ran'</script>",
    '"><img src=x onerror="document.title=\'ran\'">',
    "</style><script>document.title='ran'</script>",
    "{{7*7}}{% raw %}",
    "W" * 255,
    "قطة \u202egnp.exe",
    "👩‍🚀🐱",
    "a\nb\x00\x1b[2J\ud800$",
)
PREDICTED = ("indices", "labels", "logits", "weights_sha256", "data_sha256")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make.whole_run(tmp_path_factory.mktemp("runs") / "a-run", NAMES, model="somebody.module:network")
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An empty run folder."""
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def text_of(page: str) -> str:
    """The visible text."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def headings(page: str) -> list[tuple[int, str]]:
    return [(int(level), text_of(text)) for level, text in re.findall(r"<h(\d)[^>]*>(.*?)</h\1>", page, re.DOTALL)]


def notes_of(page: str) -> list[str]:
    """The notes about files that could not be read."""
    found = re.search(r'<section class="notes".*?</section>', page, re.DOTALL)
    return [html.unescape(note) for note in re.findall(r"<li>(.*?)</li>", found[0])] if found else []


def report_of(run: RunFolder) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_shows_the_metrics_of_the_run(page: str) -> None:
    text = text_of(page)
    for fact in (
        "a-run",
        "test accuracy 75.00%",
        "with flip 78.00%",
        "test loss 0.8125",
        "training time 5 min 25 s",
        "Network small",
        "Recipe fast",
        "Device A processor",
    ):
        assert fact in text


def test_sections_and_heading_levels_are_in_order(page: str) -> None:
    found = headings(page)
    assert [text for level, text in found if level == 2] == [
        "Training",
        "Test",
        "Class activation maps",
        "Own images",
        "LR range test",
        "Settings",
    ]
    assert [text for level, text in found if level == 1] == ["a-run"]
    levels = [level for level, _ in found]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_metrics_by_class_are_those_of_the_predictions(page: str, tmp_path: Path) -> None:
    run = make.whole_run(tmp_path / "run", NAMES)
    with np.load(run.predictions) as found:
        guess, label = found["logits"].argmax(axis=1), found["labels"]
    text = text_of(page)
    assert f"Accuracy {(guess == label).mean():.2%}" in text
    for i, name in enumerate(NAMES):
        hits, guesses, images = ((guess == i) & (label == i)).sum(), (guess == i).sum(), (label == i).sum()
        f1 = 2 * hits / (guesses + images)
        assert f"{name} {hits / guesses:.1%} {hits / images:.1%} {f1:.1%} 15" in text
    worst = max(((guess == j) & (label == i)).sum() for i in range(4) for j in range(4) if i != j)
    assert f"{worst}×" in text


def test_settings_that_differ_from_the_defaults_come_first(page: str) -> None:
    changed, rest = page.split("<details>\n    <summary>All", 1)
    changed = text_of(changed.split('id="settings"', 1)[1])
    assert "model small" in changed
    assert "lr 0.25" in changed
    assert "momentum" not in changed
    assert "crop_padding 4" in text_of(rest)


@pytest.mark.full_size
def test_curves_and_range_test_are_drawn_for_both_colour_schemes(tmp_path: Path) -> None:
    page = write_report(make.whole_run(tmp_path / "a", NAMES)).read_text(encoding="utf-8")
    figures = re.findall(r'<span class="drawing">(.*?)</span>', page, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        light, dark = (base64.b64decode(part) for part in re.findall(r"base64,([^\"]+)", figure))
        assert b"#16181d" in dark
        assert b"#16181d" not in light
        assert re.search(r'alt="[^"]{20,}"', figure)
    assert "best validation accuracy 75.00%, in epoch 3" in text_of(page)
    assert "valley" in text_of(page)


def test_every_explained_image_has_a_card_with_its_sheet(page: str) -> None:
    cards = re.findall(r'<li class="card".*?</li>', page, re.DOTALL)
    assert len(cards) == 8
    first = text_of(cards[0])
    assert "True: cat , predicted: → dog" in first
    assert "confidence 75.0% , loss 4.00 Test image 0" in first
    assert "my cat.jpg" in text_of(cards[6])
    assert "loss" not in text_of(cards[6])
    for card in cards:
        assert card.count("data:image/png;base64,") == 2
        assert card.count("data:image/webp;base64,") == 8  # two targets, two layers: heatmap and mask
    assert "Grad-CAM for the predicted class at layer1 (8x8)" in text_of(page)


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make.whole_run(tmp_path / "run", NAMES)
    assert report_of(run) == report_of(run)


def test_the_page_loads_nothing(page: str) -> None:
    for attribute in ("src", "srcset", "href"):
        for address in re.findall(rf'\b{attribute}="([^"]*)"', page):
            assert re.match(r"data:|#", address), address
    style, script = (
        re.search(r"<style>(.*?)</style>", page, re.DOTALL),
        re.search(r"<script>(.*?)</script>", page, re.DOTALL),
    )
    assert style
    assert script
    assert not re.search(r"url\(|@import|https?:", style[1] + script[1])
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", page))


def test_the_policy_allows_exactly_the_style_and_script_of_the_page(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    hashes = {}
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": hashes["style"],
        "script-src": hashes["script"],
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
    assert '<meta name="referrer" content="no-referrer">' in page
    assert '<html lang="en">' in page


def test_a_section_without_its_files_is_left_out(run: RunFolder) -> None:
    make.write_metrics(run)
    page = report_of(run)
    assert [text for _, text in headings(page)] == ["run"]
    assert "Settings" not in page
    assert "<section" not in page


@pytest.mark.parametrize(
    ("best", "text"),
    [
        ({"epoch": 2, "val_accuracy": 0.5}, "50.00%, in epoch 2"),
        ({"epoch": [2]}, "75.00%, in epoch 3"),
        ("2", "75.00%, in epoch 3"),
    ],
)
def test_the_best_accuracy_is_that_of_the_weights(run: RunFolder, best: object, text: str) -> None:
    """Not of an epoch that --max-steps cut short; metrics.json may say anything."""
    make.write_results(run)
    run.write_metrics({"test_accuracy": 0.5, "best": best})
    page = text_of(write_report(run).read_text(encoding="utf-8"))
    assert f"best validation accuracy {text}" in page


def test_a_run_without_validation_has_curves_too(run: RunFolder) -> None:
    make.write_results(run, validated=False)
    assert "Training loss" in text_of(report_of(run))
    assert "Validation" not in text_of(report_of(run))


def test_a_folder_without_results_is_refused(run: RunFolder) -> None:
    with pytest.raises(DataError, match="run: has no results to report; train it with 'fastcifar train'"):
        write_report(run)
    assert not run.report.exists()


def test_a_report_needs_neither_data_nor_code_of_the_network(run: RunFolder) -> None:
    make.write_weights(run, NAMES, model="nobody.has_this:network")
    make.write_predictions(run, 4)
    found = classification(RunFiles(run.path))
    assert found
    assert [row["name"] for row in found["classes"]] == list(NAMES)


def test_classes_have_numbers_if_the_weights_are_damaged(run: RunFolder) -> None:
    make.write_weights(run, NAMES)
    make.write_predictions(run, 4)
    run.best.write_bytes(b"no weights")
    files = RunFiles(run.path)
    found = classification(files)
    assert found
    assert [row["name"] for row in found["classes"]] == ["class 0", "class 1", "class 2", "class 3"]
    assert files.notes[0].startswith("weights/best.safetensors: damaged, or not weights written by fastcifar")


def test_predictions_of_other_weights_are_named(run: RunFolder) -> None:
    make.write_weights(run, NAMES)
    make.write_predictions(run, 4)
    make.write_weights(run, NAMES[::-1])
    assert "predictions.npz: made with other weights than weights/best.safetensors; make it again" in text_of(
        report_of(run)
    )


def test_predictions_of_other_images_are_named(run: RunFolder) -> None:
    make.write_predictions(run, 4)
    run.write_metrics({"test_accuracy": 0.5, "test_data_sha256": "a"})
    assert "predictions.npz: made from other images than those of metrics.json" in text_of(report_of(run))


def test_maps_of_other_weights_are_named(tmp_path: Path) -> None:
    run = make.whole_run(tmp_path / "whole", NAMES)
    assert "made with other weights" not in text_of(report_of(run))
    make.write_weights(run, NAMES[::-1])
    assert "explain/: made with other weights than those of the run; make it again with 'fastcifar explain'" in text_of(
        report_of(run)
    )


def test_joiners_within_words_are_kept() -> None:
    for name in ("\u06a9\u062a\u0627\u0628\u200c\u0647\u0627", "\U0001f469\u200d\U0001f680"):
        assert clean(name) == name


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    page = report_of(make.whole_run(tmp_path / "<b>run", HOSTILE))
    assert page.count("<script>") == 1
    assert 'onerror="' not in page.replace("&#34;", "'")
    assert not re.search(r"<img src=x|<b>", page)
    assert page.count("</style>") == 1
    text = text_of(page)
    assert "<b>run" in text
    for name in HOSTILE:
        assert clean(name).encode("utf-8", "replace").decode() in text
    assert "W" * 121 not in page
    assert not set("\x00\x1b\u202e") & set(page)


RESULTS_HEAD = b"epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds,images_per_s\n"
TEXTS = ("", "{", "[1]", '{"test_accuracy": "much"}', '{"test_accuracy": true}', "[" * 9_999)


@pytest.mark.parametrize("content", [*TEXTS, '{"test_accuracy": 1e999}', f'{{"test_loss": {"9" * 400}}}'])
def test_damaged_metrics_are_named(run: RunFolder, content: str) -> None:
    run.metrics.write_text(content)
    assert text_of(report_of(run)).count("metrics.json: damaged: ") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"\xff\xfe"),
        ("config.yaml", b"a: &a [1]\nb: *a"),
        ("config.yaml", b"- 1"),
        ("config.yaml", b"a: 0x" + b"f" * 9_999),
        ("config.yaml", b"!!python/object/apply:os.system ['false']"),
        ("results.csv", b"epoch,loss\n1,2\n"),
        ("results.csv", RESULTS_HEAD + b"1,x,1,1,,,1,1\n"),
        ("results.csv", RESULTS_HEAD + b"1,1,nan,1,,,1,1\n"),
        ("results.csv", RESULTS_HEAD + b"1,1\n"),
        ("lr_find/lr_find.csv", b"lr,loss,smoothed_loss\n1,2,3\n0.5,2,3\n"),
        ("lr_find/lr_find.csv", b"lr,loss,smoothed_loss\n-1,2,3\n"),
        ("explain/index.csv", b"index,true\n1,cat\n"),
        ("explain/index.csv", b"index,true,predicted,confidence,loss,file\n1,cat,dog,much,1,sheets/a.png\n"),
        ("predictions.npz", b"PK"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_line_and_left_out(run: RunFolder, name: str, content: bytes) -> None:
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_bytes(content)
    page = report_of(run)
    (note,) = notes_of(page)
    assert note.startswith(f"{name}: ")
    assert [text for level, text in headings(page) if level == 2] == ["Some files could not be read"]


def test_weights_larger_than_memory_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "free_memory", lambda: 2**31)
    run = make.whole_run(tmp_path / "run", NAMES)
    os.truncate(run.best, 2**32)
    assert "best.safetensors: damaged: it has 4,096.0 MiB; expected at most 1,024" in text_of(report_of(run))


def test_files_that_are_too_large_or_not_regular_are_named(run: RunFolder) -> None:
    with run.metrics.open("wb") as file:
        file.truncate(9 * 2**20)
    run.predictions.mkdir()
    os.mkfifo(run.config)
    text = text_of(report_of(run))
    assert "metrics.json: damaged: it has 9.0 MiB; expected at most 8" in text
    assert "predictions.npz: damaged: not a regular file" in text
    assert "config.yaml: damaged: not a regular file" in text


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"labels": np.array([object()] * 60)}, "Object arrays cannot be loaded"),
        ({"labels": np.zeros(3, np.int64)}, "do not match"),
        ({"labels": np.full(60, 4)}, "its labels are 4..4; expected 0..3"),
        ({"labels": np.full(60, -1)}, "its labels are -1..-1; expected 0..3"),
        ({"logits": np.full((60, 4), np.nan, np.float32)}, "its logits are not finite"),
        ({"logits": np.zeros((60, 4), np.complex64)}, "expected int64, int64, float32"),
        ({"logits": np.zeros(60, np.float32)}, "do not match"),
        ({"logits": np.zeros((60, 5_000), np.float32)}, "has 5,000 classes; expected 2..1,000"),
        ({"logits": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}, "do not match"),
    ],
)
def test_damaged_predictions_are_refused(run: RunFolder, changed: dict[str, np.ndarray], reason: str) -> None:
    make.write_predictions(run, 4)
    with np.load(run.predictions) as found:
        arrays = {key: found[key] for key in found}
    np.savez(run.predictions, **{**arrays, **changed}, allow_pickle=True)
    files = RunFiles(run.path)
    assert files.attempt(classification) is None
    assert files.notes[0].startswith("predictions.npz: ")
    assert reason in files.notes[0]


def test_an_array_with_a_huge_shape_is_refused_before_it_takes_memory(run: RunFolder) -> None:
    make.write_predictions(run, 4)
    content = run.predictions.read_bytes()
    np.savez(run.predictions, **{key: np.zeros(1) for key in PREDICTED})
    content = run.predictions.read_bytes()
    run.predictions.write_bytes(content.replace(b"'shape': (1,), }        ", b"'shape': (99999999,), } "))
    files = RunFiles(run.path)
    assert files.attempt(classification) is None
    assert "predictions.npz: damaged: " in files.notes[0]


@pytest.mark.parametrize("file", ["../../secret.png", "/etc/passwd", "sheets/00000.png", ""])
def test_no_file_that_the_index_names_is_read(run: RunFolder, file: str) -> None:
    make.write_explained(run, NAMES, 1)
    page = report_of(run)
    PIL.Image.new("RGB", (50, 50), "red").save(run.path.parent / "secret.png")
    (run.explain / "sheets" / "00000.png").write_text("not an image")
    make.write_index(run.explain / "index.csv", [["0", "cat", "cat", "0.75", "4.000", file, ""]])
    assert report_of(run) == page


def test_a_link_to_a_run_folder_is_reported(run: RunFolder, tmp_path: Path) -> None:
    make.write_metrics(run)
    (tmp_path / "link").symlink_to(run.path)
    assert "75.00%" in text_of(report_of(RunFolder(tmp_path / "link")))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"images": np.zeros((5, 8, 8, 3), np.uint8)}, "its arrays do not match each other, or the 6 images"),
        ({"images": np.zeros((6, 8, 8, 3), np.float32)}, "its arrays do not match each other"),
        ({"sizes": np.zeros((2, 2))}, "its arrays do not match each other"),
        ({"layers": np.array(["layer1"])}, "its arrays do not match each other"),
        ({"layers": np.array([1, 2])}, "its arrays do not match each other"),
        ({"has_evidence": np.ones(6, np.bool_)}, "its arrays do not match each other"),
        ({"indices": np.arange(6) + 1}, "its images are not those of index.csv"),
    ],
)
def test_cards_have_no_images_if_the_maps_are_damaged(
    run: RunFolder, changed: dict[str, np.ndarray], reason: str
) -> None:
    make.write_explained(run, NAMES)
    make.write_maps(run.explain / "maps.npz", 6, **changed)
    files = RunFiles(run.path)
    found = files.attempt(explanations)
    assert found
    assert all(card["image"] is None and card["overlay"] is None and card["sheet"] is None for card in found["cards"])
    (note,) = files.notes
    assert note.startswith("explain/maps.npz: damaged: ")
    assert reason in note


def test_explained_images_of_other_data_are_named(run: RunFolder) -> None:
    make.write_predictions(run, 4)
    stored = Predictions.load(run.predictions)
    dataclasses.replace(stored, data_sha256="d" * 64).save(run.predictions)
    make.write_explained(run, NAMES)
    note = "explain/: of other test images than predictions.npz; make it again with 'fastcifar explain'"
    for sha256, is_noted in (("", False), ("d" * 64, False), ("e" * 64, True)):
        make.write_maps(run.explain / "maps.npz", 6, **({"data_sha256": sha256} if sha256 else {}))
        assert (note in text_of(report_of(run))) == is_noted


def test_maps_are_optional(run: RunFolder) -> None:
    make.write_explained(run, NAMES)
    (run.explain / "maps.npz").unlink()
    page = report_of(run)
    assert len(re.findall(r'<li class="card"', page)) == 6
    assert "<dialog" not in page
    assert "Some files could not be read" not in page


def test_a_card_says_that_its_map_has_no_evidence(run: RunFolder) -> None:
    make.write_explained(run, NAMES, 2)
    evidence = np.ones((2, 1, 2, 2), np.bool_)
    evidence[0, 0, 1, 0] = False
    make.write_maps(run.explain / "maps.npz", 2, has_evidence=evidence)
    assert text_of(report_of(run)).count("no evidence at this layer") == 1


def test_a_card_shows_the_map_of_the_first_target_and_method_at_the_best_layer(run: RunFolder) -> None:
    make.write_explained(run, NAMES, 2)
    maps = np.zeros((2, 3, 2, 2, 8, 8), np.float32)
    maps[0, 0, :, 0] = 1
    methods = np.array(["hirescam", "gradcam", "gradcampp"])
    evidence = np.ones((2, 3, 2, 2), np.bool_)
    make.write_maps(run.explain / "maps.npz", 2, maps=maps, methods=methods, has_evidence=evidence)
    found = explanations(RunFiles(run.path))
    assert found
    assert found["map_name"] == "HiResCAM for the predicted class at layer1 (8x8)"
    before = [card["overlay"] for card in found["cards"]]
    maps[1:], maps[:, 1:], maps[..., 1, :, :] = 0.5, 0.5, 0.5  # none of the others is drawn
    make.write_maps(run.explain / "maps.npz", 2, maps=maps, methods=methods, has_evidence=evidence)
    again = explanations(RunFiles(run.path))
    assert again
    assert [card["overlay"] for card in again["cards"]] == before
    assert "2 of 60 test images." in text_of(report_of(run))


@pytest.mark.slow
def test_at_most_200_images_are_shown_and_the_page_says_so(run: RunFolder) -> None:
    make.write_explained(run, NAMES, 203, sheets=False)
    page = report_of(run)
    assert len(re.findall(r'<li class="card"', page)) == 200
    assert "The first 200 of 203 are shown" in text_of(page)


def test_an_image_larger_than_its_card_is_reduced(run: RunFolder) -> None:
    make.write_explained(run, NAMES, 1)
    side = 400
    make.write_maps(
        run.explain / "maps.npz",
        1,
        images=np.zeros((1, side, side, 3), np.uint8),
        maps=np.zeros((2, 1, 1, 2, side, side), np.float32),
    )
    found = explanations(RunFiles(run.path))
    assert found
    (card,) = found["cards"]
    assert card["image"]
    assert card["overlay"]
    assert (card["image"].width, card["overlay"].height) == (192, 192)


@pytest.mark.parametrize("num_classes", [2, 100])
def test_any_number_of_classes_can_be_reported(run: RunFolder, num_classes: int) -> None:
    make.write_weights(run, [f"class-{i:03d}" for i in range(num_classes)])
    make.write_predictions(run, num_classes, n=300)
    text = text_of(report_of(run))
    assert f"class-{num_classes - 1:03d}" in text


def test_the_command_writes_the_report_of_a_run(tmp_path: Path) -> None:
    run = make.whole_run(tmp_path / "runs" / "a", NAMES)
    command = ["report", "--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(main, [*command, "a"])
    assert (result.exit_code, result.stdout) == (0, f"{run.report}\nnext: fastcifar eval {run.path}\n")
    facts = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert facts == {"run": str(run.path), "file": str(run.report)}
    assert run.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_refuses_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for args, code in ((["report", "empty"], 6), (["report", "nothing"], 4), (["report"], 6)):
        result = CliRunner().invoke(main, [*args, "--runs-dir", str(tmp_path)])
        assert result.exit_code == code
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FastcifarError("report.html: cannot be written (No space left on device)"), "report.html: cannot be written"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_a_report_that_cannot_be_written_is_a_warning(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    monkeypatch.setattr("fastcifar.report.write_report", raising(error))
    with caplog.at_level(logging.WARNING, "fastcifar"):
        assert write_report_or_warn(run) is None
    (record,) = caplog.records
    assert record.getMessage().startswith(f"no report: {reason}")


def test_a_signal_while_the_report_is_written_stops_the_program(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcifar.report.write_report", raising(Stopped(signal.SIGTERM, "now")))
    with pytest.raises(Stopped):
        write_report_or_warn(run)
    make.write_explained(run, NAMES, 1)
    monkeypatch.setattr("PIL.Image.Image.save", raising(Stopped(signal.SIGTERM, "now")))
    with pytest.raises(Stopped):
        explanations(RunFiles(run.path))


def raising(error: Exception) -> Callable[..., Path]:
    def fail(*args: object, **settings: object) -> Path:
        raise error

    return fail


def test_train_and_explain_write_a_report(data_dir: Path, tmp_path: Path) -> None:
    args = ["--model", "small", "--batch-size", "100", "--max-steps", "1", "--json"]
    runs = ["--runs-dir", str(tmp_path)]
    trained = json.loads(CliRunner().invoke(main, ["train", "--data-dir", str(data_dir), *args, *runs]).stdout)
    page = Path(trained["report"])
    assert page == tmp_path / "small" / "report.html"
    manifest = read_manifest(data_dir / "test.beton")
    assert manifest
    assert json.loads((page.parent / "metrics.json").read_text())["data_source"] == manifest.source
    assert "Class activation maps" not in page.read_text(encoding="utf-8")
    explained = json.loads(CliRunner().invoke(main, ["explain", "--n", "2", "--json", *runs]).stdout)
    assert explained["report"] == str(page)
    assert len(re.findall(r'<li class="card"', page.read_text(encoding="utf-8"))) == 2
    assert "not finished" not in page.read_text(encoding="utf-8")
    assert TrainConfig().model != "small"


def test_the_report_of_an_unfinished_run_says_so_and_names_its_data(run: RunFolder, data_dir: Path) -> None:
    run.metrics.unlink(missing_ok=True)
    run.write_config(TrainConfig.from_settings(model="my.code:network", epochs=8, data_dir=data_dir))
    make.write_results(run)
    make.write_weights(run, NAMES)
    unknown = text_of(report_of(run))
    assert "3 epochs of 8; training loss from" in unknown
    command = f"fastcifar train --resume {run.path} --model my.code:network"
    assert f"The training is not finished Finish it with: {command}" in " ".join(unknown.split())
    manifest = read_manifest(data_dir / "train.beton")
    assert manifest
    assert manifest.source not in unknown  # the weights are from other images
    make.write_weights(run, NAMES, sha256=manifest.sha256)
    assert manifest.source in text_of(report_of(run))
