"""`audit.json` next to the betons: what an audit found, for the reports of runs on these data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastcifar import __version__
from fastcifar.audit.issues import KINDS_OF, LEAKS, IssuesFile
from fastcifar.data.beton import Beton
from fastcifar.io.atomic import write_text
from fastcifar.io.reading import read_mapping

NAME = "audit.json"
VERSION = 1
MAX_BYTES = 2**20
Counts = dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What one part of an audit found."""

    counts: Counts
    """By kind and split, number of lines in issues.csv."""
    leaked: dict[str, int]
    """See `leaked_test_images`; empty if this part does not look for leaks."""
    parameters: dict[str, Any]
    date: str
    """ISO 8601, UTC."""
    fastcifar: str


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """What is known about a data folder."""

    data_sha256: dict[str, str]
    """By split, of the beton."""
    issues_sha256: str
    parts: dict[str, PartRecord]
    """By the name of the part, the latest; those of other betons are forgotten."""


def leaked_test_images(issues: IssuesFile) -> dict[str, int]:
    """The number of test images that are also training images, 'exact', 'near', or, as uncertain near-leaks,
    'possible'; each is counted once."""
    leaks = [line.issue for line in issues.lines if line.issue.kind in LEAKS]
    groups = {
        "exact": [issue for issue in leaks if issue.kind == LEAKS[0]],
        "near": [issue for issue in leaks if issue.certain],
        "possible": leaks,
    }
    seen: set[int] = set()
    counts = {}
    for name, group in groups.items():
        indices = {issue.other.index for issue in group if issue.other}
        counts[name] = len(indices - seen)
        seen |= indices
    return counts


def write_record(
    data_dir: Path, splits: Mapping[str, Beton], issues: IssuesFile, parts: Mapping[str, dict[str, Any]]
) -> AuditRecord:
    """Write audit.json. parts: the parameters of the parts of this audit. Raises FastcifarError if that fails."""
    data_sha256 = {name: beton.sha256 for name, beton in splits.items()}
    earlier = read_record(data_dir)
    kept = earlier.parts if earlier is not None and earlier.data_sha256 == data_sha256 else {}
    latest = {}
    for part, parameters in parts.items():
        counts: Counts = {}
        for line in issues.lines:
            if line.issue.kind in KINDS_OF[part]:
                by_split = counts.setdefault(line.issue.kind, {})
                by_split[line.issue.image.split] = by_split.get(line.issue.image.split, 0) + 1
        latest[part] = PartRecord(
            counts=counts,
            leaked=leaked_test_images(issues) if part == "duplicates" else {},
            parameters=parameters,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            fastcifar=__version__,
        )
    record = AuditRecord(data_sha256=data_sha256, issues_sha256=issues.sha256, parts={**kept, **latest})
    write_text(data_dir / NAME, json.dumps({"fastcifar_audit": VERSION, **asdict(record)}, indent=1) + "\n")
    return record


def read_record(data_dir: Path) -> AuditRecord | None:
    """The record of a data folder; None if there is none, or it is damaged: an audit is repeated in minutes."""
    try:
        raw = read_mapping(data_dir / NAME, MAX_BYTES)
        if raw.pop("fastcifar_audit") != VERSION:
            return None
        parts = {str(name): PartRecord(**part) for name, part in raw.pop("parts").items()}
        record = AuditRecord(parts=parts, **raw)
        numbers = [*record.data_sha256.values(), *(part.date for part in parts.values())]
        counts = [count for part in parts.values() for count in part.leaked.values()]
        is_valid = all(isinstance(text, str) for text in numbers) and all(type(count) is int for count in counts)
        return record if is_valid else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
