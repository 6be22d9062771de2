"""Class names in figures, in any script."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from fastcifar import plotting
from fastcifar.plotting import text
from fastcifar.plotting.images import Caption, SheetRow
from fastcifar.plotting.tiles import Tile, captioned, fitting

Install = Callable[..., Path]
CAT, DOG = "\u732b", "\u72ac"
ARABIC_CAT, ARABIC_DOG = "\u0642\u0637\u0629", "\u0643\u0644\u0628"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a font of black squares after matplotlib has listed the fonts; until the first call only those of
    matplotlib are installed."""
    bundled = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    monkeypatch.setattr(text, "_families", {})
    monkeypatch.setattr(text, "SHAPES_TEXT", True)  # as matplotlib 3.11 does
    text._warn.cache_clear()
    paths: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)

    def make(name: str, characters: str) -> Path:
        path = tmp_path / f"{name}.ttf"
        pen = TTGlyphPen(None)
        for move, points in (("moveTo", [(0, 0)]), ("lineTo", [(0, 1000)]), ("lineTo", [(1000, 1000), (1000, 0)])):
            for point in points:
                getattr(pen, move)(point)
        pen.closePath()
        square = pen.glyph()
        font = FontBuilder(1000, isTTF=True)
        font.setupGlyphOrder([".notdef", "square"])
        font.setupCharacterMap(dict.fromkeys(map(ord, characters), "square"))
        font.setupGlyf({".notdef": square, "square": square})
        font.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
        font.setupHorizontalHeader(ascent=1000, descent=0)
        font.setupNameTable({"familyName": name, "styleName": "Regular"})
        font.setupOS2(usWeightClass=400)
        font.setupPost()
        font.save(path)
        paths.append(str(path))
        return path

    return make


def test_a_class_name_is_drawn_with_an_installed_font_that_has_it(install: Install, tmp_path: Path) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"not a font")
    font_manager.findSystemFonts().append(str(tmp_path / "damaged.ttf"))  # type: ignore[no-untyped-call]
    install("Squares", CAT)
    assert plotting.class_labels([CAT, "dog"]) == (CAT, "dog")
    assert text.families(f"the {CAT}") == ["DejaVu Sans", "Squares"]
    picture = plotting.gallery(np.full((1, 8, 8, 3), 255, np.uint8), [Caption(CAT, CAT, True, "1", 1.0)], "")
    (caption,) = [found for found in picture.texts if CAT in found.get_text()]
    assert caption.get_fontfamily() == ["DejaVu Sans", "Squares"]
    path = plotting.write_png(tmp_path / "picture.png", picture)
    assert _has_square(path)


def _has_square(path: Path) -> bool:
    import PIL.Image

    black = np.asarray(PIL.Image.open(path).convert("L")) < 30
    return bool((np.lib.stride_tricks.sliding_window_view(black, (10, 10)).all(axis=(2, 3))).any())


def test_a_class_name_that_no_font_covers_is_drawn_as_its_number_with_one_warning(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fastcifar"):
        for _ in range(2):
            assert plotting.class_labels(["cat", CAT, "dog", DOG]) == ("cat", "class 1", "dog", "class 3")
    (record,) = caplog.records
    assert f"the class names {CAT} (class 1), {DOG} (class 3): figures show the number instead" in record.getMessage()
    install("Squares", CAT + DOG)  # as the warning says, in the same process
    assert plotting.class_labels(["cat", CAT, "dog", DOG]) == ("cat", CAT, "dog", DOG)


def test_a_font_of_placeholders_draws_no_name(install: Install) -> None:
    install("Last Resort Test", CAT)
    assert plotting.class_labels([CAT]) == ("class 0",)


def test_right_to_left_names_do_not_swap_true_and_predicted(install: Install) -> None:
    labels = plotting.class_labels([ARABIC_CAT, ARABIC_DOG])
    assert [label.strip(text.LEFT_TO_RIGHT) for label in labels] == [ARABIC_CAT, ARABIC_DOG]
    caption = captioned(Tile(np.zeros((8, 8, 3)), f"{ARABIC_CAT} → {ARABIC_DOG}", " · 12"), 300)
    mark = text.LEFT_TO_RIGHT  # ends what is written from right to left, before the arrow and the number
    assert caption == f"{mark}{ARABIC_CAT}{mark} → {mark}{ARABIC_DOG}{mark} · 12"
    assert fitting(f"{mark}{ARABIC_CAT * 9}{mark}", 60, 8).endswith(f"…{mark}")


def test_names_that_need_shaping_are_numbers_without_it(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SHAPES_TEXT", False)
    assert plotting.class_labels(["e\u0301", ARABIC_CAT, "q\u0301"]) == ("\xe9", "class 1", "class 2")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines\tand a bell\x07", "two lines and a bell\ufffd"),
        ("\u202egnp.tac", "\ufffdgnp.tac"),
        ("\udcff", "\ufffd"),
        ("\u2764\ufe0f", "\u2764"),
        ("\u0645\u06cc\u200c\u062e", "\u200e\u0645\u06cc\u200c\u062e\u200e"),
        ("$x_1$ \\frac{1}{2} a^b", "$x_1$ \\frac{1}{2} a^b"),
        ("W" * 500, "W" * 119 + "…"),
    ],
)
def test_odd_names_are_one_line_of_what_can_be_drawn(name: str, shown: str, install: Install, tmp_path: Path) -> None:
    (label,) = plotting.class_labels([name])
    assert label == shown
    image, named = np.zeros((1, 4, 4, 3), np.uint8), Caption(label, label, False, "1", 1.0)
    row = SheetRow(f"layer\nfor {label}", [np.zeros((4, 4), np.float32)], [True])
    for figure in (
        plotting.gallery(image, [named], f"run {name}"),
        plotting.cam_sheet(image[0], [row], ["Grad-CAM"], f"image {name}"),
        plotting.confusion_matrix(np.eye(2, dtype=np.int64), [label, "b"], name),
    ):
        plotting.write_png(tmp_path / "picture.png", figure)
