"""What is done about the lines of an issues.csv: images to drop or relabel in a conversion, to leave out of a score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain

from fastcifar.audit.issues import KINDS, LEAKS, IssuesFile, Line, read_issues
from fastcifar.converters.edits import Edits
from fastcifar.errors import UsageError
from fastcifar.inference.without import LeftOut
from fastcifar.io.checks import require_choice
from fastcifar.io.paths import user_path

STEPS = {"leaks": LEAKS, "disputed labels": ("label",)}
"""What scores leave out, one after the other. The labels are disputed by a network, which may make the mistakes of the
one that is scored: the last score is too good."""
Path = str | os.PathLike[str]


def read_edits(drop: Path | None = None, drop_kinds: Sequence[str] = (), relabel: Path | None = None) -> Edits:
    """The images that two issues.csv, which may be one file, say to drop or relabel; see `fastcifar.convert`.

    Dropped are those of the lines in `drop` whose action is 'drop'; with `drop_kinds`, all of these kinds but those
    whose action is 'keep', or 'relabel' if `relabel` is given. Relabelled are those of the lines in `relabel` whose
    action is 'relabel'.

    Raises DataError (exit code 4) for a file that cannot be read, a line without an origin, or two new labels of one
    image; UsageError (2) for a kind that does not exist.
    """
    if drop_kinds and drop is None:
        raise UsageError(f"drop_kinds is {','.join(drop_kinds)}, and no file to drop from; expected one, with --drop")
    for kind in drop_kinds:
        require_choice("drop_kinds", kind, KINDS)
    dropped: dict[str, dict[str, str]] = {}
    relabelled: dict[str, dict[str, str]] = {}
    files = {path: read_issues(path) for path in (user_path(each, "issues") for each in (drop, relabel) if each)}
    decided = ("keep",) if relabel is None else ("keep", "relabel")
    if drop is not None:
        file = files[user_path(drop)]
        for line in file.lines:
            issue = line.issue
            if issue.action not in decided and issue.kind in drop_kinds if drop_kinds else issue.action == "drop":
                dropped.setdefault(issue.image.split, {}).setdefault(_origin(file, line), issue.kind)
    if relabel is not None:
        file = files[user_path(relabel)]
        for line in file.lines:
            issue = line.issue
            if issue.action == "relabel":
                labels = relabelled.setdefault(issue.image.split, {})
                first = labels.setdefault(_origin(file, line), issue.suggested)
                if first != issue.suggested:
                    raise file.error(
                        line, f"suggested is {issue.suggested!r}, and {first!r} in another line of this image"
                    )
    return Edits(drop=dropped, relabel=relabelled, files_sha256=tuple(dict.fromkeys(f.sha256 for f in files.values())))


def read_left_out(without: Path) -> LeftOut:
    """The test images of an issues.csv that a score leaves out: those of leaks, and those whose label is disputed; if
    that is certain or a person decided to drop or relabel, and none whose action is 'keep'.

    Raises DataError (exit code 4) for a file that cannot be read, or whose lines are of several test sets.
    """
    file = read_issues(user_path(without, "without"))
    kinds: dict[int, str] = {}
    data_sha256 = ""
    for line in file.lines:
        issue = line.issue
        is_left_out = (issue.certain or issue.action != "") and issue.action != "keep"
        if issue.kind not in chain(*STEPS.values()) or not is_left_out:
            continue
        for image, sha256 in ((issue.image, line.data_sha256), (issue.other, line.other_sha256)):
            if image is None or image.split != "test":
                continue
            data_sha256 = data_sha256 or sha256
            if sha256 != data_sha256:
                raise file.error(line, f"its test image is of data {sha256}…; expected {data_sha256}…, as before")
            kinds[image.index] = min(kinds.get(image.index, issue.kind), issue.kind, key=KINDS.index)
    return LeftOut(path=str(file.path), kinds=kinds, data_sha256=data_sha256, file_sha256=file.sha256, steps=STEPS)


def _origin(file: IssuesFile, line: Line) -> str:
    if not line.origin:
        raise file.error(line, "has no origin, by which the image would be found in its source; leave the line out")
    return line.origin
