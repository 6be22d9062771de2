"""Class names in figures: which installed font draws them, and what replaces those that no font can draw."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from matplotlib import font_manager, ft2font
from matplotlib.font_manager import FontProperties, fontManager

from fastcifar.plotting.context import own_context

log = logging.getLogger(__name__)
BASE = "DejaVu Sans"  # comes with matplotlib
PLACEHOLDER_FONTS = ("lastresort", "adobeblank")  # they draw every character as a box, or as nothing
SHAPES_TEXT = hasattr(ft2font, "__libraqm_version__")  # matplotlib 3.11: joined letters, right to left
LEFT_TO_RIGHT = "\u200e"
INVISIBLE = "\u200c\u200d\u200e\u200f"  # joiners and direction marks, which are part of the spelling
VARIATION_SELECTORS = dict.fromkeys(range(0xFE00, 0xFE10))  # emoji in colour or not
MAX_NAME = 120
_families: dict[str, str | None] = {}
"""An installed font for each character that was looked up; None if there was none."""


def printable(text: str) -> str:
    """The text on one line, composed (NFC), without control characters. Right-to-left text is marked, so that it does
    not change the direction of its neighbours."""
    composed = unicodedata.normalize("NFC", text.translate(VARIATION_SELECTORS))
    shown = "".join(c if c.isprintable() or c in INVISIBLE else " " if c.isspace() else "\ufffd" for c in composed)
    shown = " ".join(shown.split())
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in shown):
        shown = f"{LEFT_TO_RIGHT}{shown.strip(LEFT_TO_RIGHT)}{LEFT_TO_RIGHT}"
    return shown


def families(text: str) -> list[str]:
    """Names of installed fonts that together cover the text, the default one first."""
    _look_up(c for c in text if c not in _families)
    return list(dict.fromkeys([BASE, *filter(None, (_families[c] for c in text))]))


@own_context()
def class_labels(names: Sequence[str]) -> tuple[str, ...]:
    """The names of all classes as figures show them: 'class 3' where no installed font covers the name, with a warning,
    given once."""
    shown = tuple(map(_short, names))
    _look_up(c for c in "".join(shown) if _families.get(c) is None)  # a font may have been installed since
    missing = tuple((i, name) for i, name in enumerate(shown) if not _can_be_drawn(name))
    if missing:
        _warn(missing)
    return tuple(f"class {i}" if (i, name) in missing else name for i, name in enumerate(shown))


def _short(name: str) -> str:
    shown = printable(name[: 2 * MAX_NAME])
    return shown if len(shown) <= MAX_NAME else printable(f"{shown[: MAX_NAME - 1]}…")


@lru_cache(maxsize=64)
def _warn(missing: tuple[tuple[int, str], ...]) -> None:
    named = ", ".join(f"{name} (class {i})" for i, name in missing[:5]) + ", …" * (len(missing) > 5)
    log.warning(
        "no installed font covers the class name%s %s: figures show the number instead; install a font with these "
        "characters, e.g. one of Noto Sans%s",
        "s" * (len(missing) > 1),
        named,
        "" if SHAPES_TEXT else ", and matplotlib 3.11 or newer",
    )


def _can_be_drawn(text: str) -> bool:
    needs_shaping = any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c)[0] == "M" for c in text)
    return all(_families[c] for c in text) and (SHAPES_TEXT or not needs_shaping)


def _look_up(characters: Iterable[str]) -> None:
    """Find a font for each character; each font is opened once."""
    missing = set(characters)
    if missing:
        missing = _search([BASE, *_installed()], missing)
    if missing and _add_new_fonts():
        missing = _search(_installed(), missing)
    _families.update(dict.fromkeys(missing))


def _search(names: Sequence[str], characters: set[str]) -> set[str]:
    """Record which of these fonts have the characters; returns the characters that none has."""
    missing = set(characters)
    for name in names:
        if not missing:
            break
        try:
            path = fontManager.findfont(FontProperties(family=[name]), fallback_to_default=False)
            font = ft2font.FT2Font(path)
            covered = {c for c in missing if font.get_char_index(ord(c))}
        except Exception as error:  # noqa: BLE001 (a damaged or deleted font)
            log.debug("%s: not a font that matplotlib can use (%s)", name, error)
            continue
        _families.update(dict.fromkeys(covered, name))
        missing -= covered
    return missing


def _installed() -> list[str]:
    """Upright fonts: those of normal weight first, and of these Noto Sans, which covers all scripts."""
    weights: dict[str, int] = {}
    for entry in fontManager.ttflist:
        if entry.style == "normal" and not entry.name.replace(" ", "").lower().startswith(PLACEHOLDER_FONTS):
            weight = font_manager.weight_dict.get(entry.weight, 400) if isinstance(entry.weight, str) else entry.weight
            weights[entry.name] = min(abs(weight - 400), weights.get(entry.name, 1000))

    def order(name: str) -> tuple[bool, bool, bool, str]:
        return weights[name] > 100, not name.startswith("Noto Sans"), "Mono" in name or "Serif" in name, name

    return sorted(weights, key=order)


def _add_new_fonts() -> bool:
    """Add the fonts that were installed after matplotlib listed them; whether there are any."""
    before = len(fontManager.ttflist)
    for path in sorted(set(font_manager.findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}):
        try:
            fontManager.addfont(path)
        except Exception as error:  # noqa: BLE001 (a damaged font, or one of bitmaps)
            log.debug("%s: not a font that matplotlib can use (%s)", path, error)
    return len(fontManager.ttflist) > before
