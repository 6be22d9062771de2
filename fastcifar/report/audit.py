"""The page of an audit: the worst images of each kind, to be dropped, relabelled or kept by keys; `issues.csv` is
edited in the page, and downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.audit.issues import COLUMNS, KINDS, Image, Line, rows_of
from fastcifar.audit.run import Audit
from fastcifar.data.beton import Beton
from fastcifar.io.atomic import write_text
from fastcifar.report.audit_maps import suggested_maps
from fastcifar.report.figures import Picture, thumbnail
from fastcifar.report.page import render
from fastcifar.report.run_files import clean
from fastcifar.training.progress import Reporter, duration

MAX_CARDS, MAX_SECTION_BYTES = 200, 3 * 2**19
"""Of a kind: so many images, or as many as fit."""
NUM_TYPICAL = 5
MAX_SIDE = 128
TITLES = {
    "exact-leak": "Exact leaks",
    "near-leak": "Near leaks",
    "exact-duplicate": "Exact duplicates",
    "near-duplicate": "Near duplicates",
    "label": "Doubtful labels",
    "blank": "Blank images",
    "constant": "Nearly constant images",
    "dark": "Dark images",
    "bright": "Bright images",
    "aspect": "Unusual proportions",
    "outlier": "Outliers",
}
TEXTS = {
    "exact-leak": "A training image, left, and a test image with the same pixels. Decide about the left one.",
    "near-leak": "A training image, left, and a test image that show the same shot. Decide about the left one.",
    "exact-duplicate": "Two images of one split with the same pixels. Decide about the left one.",
    "near-duplicate": "Two images of one split that show the same shot. Decide about the left one.",
    "label": "Networks that did not see these images doubt the labels. As many as are expected to be wrong come first.",
    "blank": "The pixels are equal, or almost.",
    "constant": "The pixels hardly differ.",
    "dark": "Almost black.",
    "bright": "Almost white.",
    "aspect": "The original has very different proportions: 2.5 times as wide or as high as the images here, or more.",
    "outlier": "Images far from all others of their class.",
}


def write_audit_page(audit: Audit, reporter: Reporter | None = None) -> Path:
    """Write index.html into the folder of an audit; returns its path. Maps are drawn by the networks of the audit, if
    it trained some.

    reporter: shows progress, e.g. a `fastcifar.bars.Bars`. Raises FastcifarError (1) if the page cannot be written."""
    path = audit.out / "index.html"
    numbered = list(enumerate(audit.issues.lines))
    groups = {kind: list(group) for kind, group in groupby(numbered, lambda each: each[1].issue.kind)}
    labels = [line for _, line in groups.get("label", [])[:MAX_CARDS]]
    maps = suggested_maps(audit, [(line.issue.image, line.issue.suggested) for line in labels], reporter)
    pages = _Pictures(audit, dict(zip((line.number for line in labels), maps, strict=False)))
    sections = []
    for kind in KINDS:
        if kind in groups:
            cards = list(_within_budget(pages.card(number, line) for number, line in groups[kind][:MAX_CARDS]))
            sections.append(
                {"kind": kind, "title": TITLES[kind], "text": TEXTS[kind], "num": len(groups[kind]), "cards": cards}
            )
    page = {
        "name": clean(audit.data_dir.resolve().name),
        "scores": _scores(audit),
        "facts": _facts(audit),
        "sections": sections,
        "issues": {
            "columns": COLUMNS,
            "rows": rows_of(audit.issues.lines),
            "classes": audit.splits["train"].class_names,
        },
    }
    write_text(path, render("audit.html", page, "audit.js"))
    return path


def _scores(audit: Audit) -> list[tuple[str, str]]:
    counts = {kind: sum(by_split.values()) for kind, by_split in audit.counts(certain=True).items()}
    scores = []
    if "duplicates" in audit.parts:
        num_duplicates = sum(counts.get(kind, 0) for kind in ("exact-duplicate", "near-duplicate"))
        if "test" in audit.splits:
            scores.append(("test images that leak", f"{audit.leaked['exact'] + audit.leaked['near']:,}"))
        scores.append(("duplicates", f"{num_duplicates:,}"))
    if "labels" in audit.parts:
        scores.append(("labels in doubt", f"{counts.get('label', 0):,}"))
    if "images" in audit.parts:
        scores.append(("odd images", f"{sum(counts.get(kind, 0) for kind in KINDS[KINDS.index('label') + 1 :]):,}"))
    return scores


def _facts(audit: Audit) -> list[tuple[str, str]]:
    train = audit.splits["train"]
    height, width, _ = train.image_shape
    images = " · ".join(f"{len(beton):,} {name}" for name, beton in audit.splits.items())
    facts = [
        ("Images", f"{images} · {height}x{width}"),
        ("Classes", f"{len(train.class_names):,}"),
        ("Data", clean(audit.data_dir)),
        *([("Source", clean(train.manifest.source))] if train.manifest else []),
    ]
    if "duplicates" in audit.parts and "test" in audit.splits:
        facts.append(("Leaks", ", ".join(f"{count:,} {name}" for name, count in audit.leaked.items())))
    if audit.runs:
        facts.append(("Labels judged by", f"{len(audit.runs)} networks, none of which saw the image"))
    elif audit.probabilities:
        facts.append(("Labels judged by", "given predictions"))
    facts.append(("Time", ", ".join(f"{part} {duration(seconds)}" for part, seconds in audit.seconds.items())))
    return facts


def _within_budget(cards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first cards, of pictures of at most MAX_SECTION_BYTES; one at least."""
    num_bytes = 0
    for number, card in enumerate(cards):
        pictures = [each["picture"] for each in card["images"]] + [card["overlay"], card["typical"]]
        num_bytes += sum(len(picture.url) for picture in pictures if picture)
        if number and num_bytes > MAX_SECTION_BYTES:
            return
        yield card


class _Pictures:
    """The cards of lines; the typical images of a class are drawn once."""

    def __init__(self, audit: Audit, maps: dict[int, npt.NDArray[np.uint8] | None]) -> None:
        """maps: by number of the line."""
        self._audit, self._maps = audit, maps
        self._typical: dict[str, Picture | None] = {}
        named = {line.issue.image for line in audit.issues.lines}
        self._not_typical = {image.index for image in named if image.split == "train"}

    def card(self, number: int, line: Line) -> dict[str, Any]:
        """number: of the line, from 0 on."""
        issue, overlay = line.issue, self._maps.get(line.number)
        images = [self._image(issue.image, line.origin)]
        if issue.other is not None:
            images.append(self._image(issue.other, line.other_origin))
        return {
            "line": number,
            "images": images,
            "label": clean(issue.label),
            "suggested": clean(issue.suggested),
            "score": issue.score,
            "action": issue.action,
            "certain": issue.certain,
            "overlay": None if overlay is None else thumbnail([overlay], MAX_SIDE),
            "typical": self._typical_of(issue.label) if issue.kind == "label" else None,
            "is_pair": issue.other is not None,
            "labels_differ": len({image["label"] for image in images}) > 1,
        }

    def _image(self, image: Image, origin: str) -> dict[str, Any]:
        beton = self._audit.splits[image.split]
        return {
            "title": f"{image.split} {image.index}",
            "label": clean(beton.class_names[beton.labels[image.index]]),
            "origin": clean(origin),
            "picture": thumbnail(list(beton.images([image.index])), MAX_SIDE),
        }

    def _typical_of(self, label: str) -> Picture | None:
        """The training images of a class for which the networks are most certain of it; None if nothing is known."""
        if label not in self._typical:
            train = self._audit.splits["train"]
            indices = self._most_certain(train, train.class_names.index(label))
            self._typical[label] = thumbnail(list(train.images(indices)), MAX_SIDE // 2) if len(indices) else None
        return self._typical[label]

    def _most_certain(self, train: Beton, label: int) -> Sequence[int]:
        if "train" not in self._audit.probabilities:
            return []
        candidates = np.flatnonzero(train.labels == label)
        order = np.argsort(-self._audit.probabilities["train"][candidates, label], kind="stable")
        ranked = [index for index in candidates[order].tolist() if index not in self._not_typical]
        return ranked[:NUM_TYPICAL]
