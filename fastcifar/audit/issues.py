"""What an audit finds, and `issues.csv`: a line for each, which a person may edit."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.errors import DataError, one_line
from fastcifar.io.atomic import write_bytes
from fastcifar.io.checks import format_choices, shown
from fastcifar.io.paths import numbered, why_missing
from fastcifar.io.reading import read_bytes

if TYPE_CHECKING:
    from fastcifar.data.beton import Beton

LEAKS = ("exact-leak", "near-leak")
"""A training image that is also among the test images: the same pixels, or the same shot."""
DUPLICATES = ("exact-duplicate", "near-duplicate")
"""Two images of one split."""
IMAGES = ("blank", "constant", "dark", "bright", "aspect", "outlier")
KINDS_OF = {"duplicates": (*LEAKS, *DUPLICATES), "labels": ("label",), "images": IMAGES}
"""By part of an audit, in the order of issues.csv."""
PARTS = tuple(KINDS_OF)
KINDS = tuple(chain.from_iterable(KINDS_OF.values()))
ACTIONS = ("", "drop", "relabel", "keep")
SPLITS = ("train", "test")
COLUMNS = (
    *("split", "index", "origin", "label", "suggested", "score", "kind"),
    *("other_split", "other_index", "other_origin", "action", "data_sha256", "other_sha256", "certain"),
)
TEXTS = ("origin", "other_origin", "label", "suggested")
"""Columns whose spaces count."""
NUM_DIGITS = 16
"""Of a SHA-256, in issues.csv."""
MAX_BYTES = 256 * 2**20
SEPARATORS = ",;\t"
"""Spreadsheets write one or the other, by language."""
FORMULA, NO_FORMULA = re.compile(r"^(?=[=+@'-])"), re.compile(r"^'(?=[=+@'-])")
"""A spreadsheet runs a cell that begins so, and strangers name classes and files: an apostrophe goes before."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of a beton."""

    split: str
    """'train' or 'test'."""
    index: int
    """In its beton."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images that show the same shot."""

    first: Image
    """Of two splits, the training image; else that of the smaller index."""
    second: Image
    score: float
    """0..1; 1: the same pixels."""
    exact: bool
    certain: bool = False
    """Whether the audit proposes to drop one of them if they are of two splits."""


@dataclass(frozen=True, kw_only=True)
class Issue:
    """A line of `issues.csv`: an image, and what may be wrong with it."""

    kind: str
    """One of KINDS."""
    image: Image
    """Of a pair, the one that would be dropped: the training image of a leak, the later one of a duplicate."""
    label: str
    """Name of its class."""
    score: float
    """0..1; of one kind, the larger the more certain."""
    suggested: str = ""
    """Name of the class that the images of its kind suggest; empty if there is none."""
    other: Image | None = None
    """The other image of a pair."""
    action: str = ""
    """What `convert --drop` and `convert --relabel` do: drop the image, give it the suggested label, or nothing; keep:
    a person found nothing wrong."""
    certain: bool = True
    """Whether it is more than a candidate: a near duplicate of a high score, or one of as many labels as are expected
    to be wrong."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """An issue, and what tells whether its images are those of a source or a beton."""

    issue: Issue
    origin: str
    """Of the image, see `fastcifar.data.origins`; empty if it is unknown."""
    data_sha256: str
    """The first 16 digits of the SHA-256 of the beton of the image."""
    other_origin: str = ""
    other_sha256: str = ""
    number: int = 0
    """In the file, from 2 on: a spreadsheet shows the same."""


@dataclass(frozen=True, kw_only=True)
class IssuesFile:
    """The content of an issues.csv."""

    path: Path
    sha256: str
    lines: tuple[Line, ...]

    def error(self, line: Line, problem: str) -> DataError:
        """The error for a line of the file."""
        return DataError(f"{self.path}: line {line.number}: {problem}")


def lines_of(issues: Sequence[Issue], splits: Mapping[str, Beton]) -> list[Line]:
    """The lines of some issues of the betons `splits`. Raises DataError if the origins of a beton are damaged."""
    origins = {name: beton.origins() for name, beton in splits.items()}
    digits = {name: beton.sha256[:NUM_DIGITS] for name, beton in splits.items()}
    return [
        Line(
            issue=issue,
            origin=origins[issue.image.split][issue.image.index],
            data_sha256=digits[issue.image.split],
            other_origin=origins[issue.other.split][issue.other.index] if issue.other else "",
            other_sha256=digits[issue.other.split] if issue.other else "",
            number=number,
        )
        for number, issue in enumerate(issues, start=2)
    ]


def rows_of(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """The cells of each line, in the order of COLUMNS."""
    rows: list[tuple[str, ...]] = []
    for line in lines:
        issue, other = line.issue, line.issue.other
        pair = (other.split, str(other.index)) if other else ("", "")
        rows.append(
            (
                *(issue.image.split, str(issue.image.index), line.origin, issue.label, issue.suggested),
                *(f"{issue.score:.6f}", issue.kind, *pair, line.other_origin, issue.action),
                *(line.data_sha256, line.other_sha256, "yes" if issue.certain else "no"),
            )
        )
    return rows


def write_issues(path: Path, lines: Sequence[Line]) -> IssuesFile:
    """Write issues.csv; an existing file with other content is kept as issues.previous.csv, issues.previous-2.csv,
    …: it may hold the work of a person. Raises FastcifarError if that fails."""
    text = io.StringIO()
    rows = [[FORMULA.sub("'", cell) for cell in row] for row in rows_of(lines)]
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    content = text.getvalue().encode("utf-8", "backslashreplace")
    is_other = path.is_file() and path.read_bytes() != content
    backups = (path.with_name(f"{name}{path.suffix}") for name in numbered(f"{path.stem}.previous"))
    backup = next(backup for backup in backups if not os.path.lexists(backup))
    write_bytes(path, content, backup=backup if is_other else None)
    return IssuesFile(path=path, sha256=hashlib.sha256(content).hexdigest(), lines=tuple(lines))


def read_issues(path: Path) -> IssuesFile:
    """Read an issues.csv, also after a spreadsheet saved it: with a byte order mark, CRLF, semicolons or tabs, decimal
    commas, other columns and another order. Raises DataError, which names the line, for anything else."""
    try:
        content = read_bytes(path, MAX_BYTES)
        text = content.decode("utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
        head, *rows = [(table.line_num, row) for row in table]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save it as 'CSV UTF-8'") from error
    except (OSError, ValueError, csv.Error) as error:
        reason = one_line(error) if path.exists() and not isinstance(error, OSError) else why_missing(path)
        raise DataError(f"{path}: not the issues.csv of an audit ({reason}); make it with: fastcifar audit") from error
    columns = [name.strip() for name in head[1]]
    if missing := [name for name in COLUMNS if columns.count(name) != 1]:
        raise DataError(f"{path}: its first line has no column {missing[0]}; expected: {','.join(COLUMNS)}")
    lines = []
    for number, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        try:
            if len(row) != len(columns):
                raise ValueError(f"{len(row)} values; expected {len(columns)}, as in the first line")
            cells = dict(zip(columns, row, strict=True))
            texts = {name: NO_FORMULA.sub("", cells[name]) for name in TEXTS}
            lines.append(_parse({name: cell.strip() for name, cell in cells.items()} | texts, number))
        except ValueError as error:
            raise DataError(f"{path}: line {number}: {one_line(error)}") from error
    return IssuesFile(path=path, sha256=hashlib.sha256(content).hexdigest(), lines=tuple(lines))


def _separator(text: str) -> str:
    head = text.partition("\n")[0]
    if not head:
        raise ValueError("it is empty")
    return max(SEPARATORS, key=head.count)


def _parse(cells: dict[str, str], number: int) -> Line:
    """The line of these cells. Raises ValueError."""
    kind, action = cells["kind"], cells["action"].casefold()
    _require("kind", kind, KINDS)
    _require("action", action, ACTIONS)
    certain = cells["certain"].casefold()
    _require("certain", certain, ("yes", "no"))
    image = _image(cells, "")
    other = _image(cells, "other_") if cells["other_split"] or cells["other_index"] else None
    if (other is None) == (kind in (*LEAKS, *DUPLICATES)):
        expected = "the number of the other image of the pair" if other is None else "nothing"
        raise ValueError(f"other_index is {shown(cells['other_index'])}, and kind {kind!r}; expected {expected}")
    if not cells["label"]:
        raise ValueError("label is empty; expected the name of a class")
    if action == "relabel" and not cells["suggested"]:
        raise ValueError("action is 'relabel', and suggested is empty; expected the name of a class")
    for name in ("data_sha256", "other_sha256") if other else ("data_sha256",):
        if len(cells[name]) != NUM_DIGITS or not set(cells[name]) <= set("0123456789abcdef"):
            raise ValueError(f"{name} is {shown(cells[name])}; expected {NUM_DIGITS} hexadecimal digits, unchanged")
    return Line(
        issue=Issue(
            kind=kind,
            image=image,
            label=cells["label"],
            score=_score(cells["score"]),
            suggested=cells["suggested"],
            other=other,
            action=action,
            certain=certain == "yes",
        ),
        origin=cells["origin"],
        data_sha256=cells["data_sha256"],
        other_origin=cells["other_origin"],
        other_sha256=cells["other_sha256"] if other else "",
        number=number,
    )


def _image(cells: dict[str, str], prefix: str) -> Image:
    split, index = cells[f"{prefix}split"], cells[f"{prefix}index"]
    _require(f"{prefix}split", split, SPLITS)
    if not (index.isascii() and index.isdigit() and len(index) < NUM_DIGITS):
        raise ValueError(f"{prefix}index is {shown(index)}; expected the number of an image, 0 or more")
    return Image(split=split, index=int(index))


def _score(text: str) -> float:
    try:
        score = float(text.replace(",", "."))
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise ValueError(f"score is {shown(text)}; expected a number of 0..1")
    return score


def _require(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = format_choices([each for each in allowed if each], value)
        raise ValueError(f"{name} is {shown(value)}; expected {names}{', or nothing' if '' in allowed else ''}")
