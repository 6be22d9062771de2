"""Images of a source that are left out, or get another label: what an audit found, or a person decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fastcifar.converters.sources import Broken, Sample, Source, Split
from fastcifar.data.origins import to_line
from fastcifar.errors import DataError, join_names
from fastcifar.io.checks import format_choices, shown

Names = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Images are named by their split, 'train' or 'test', and their origin, as `Beton.origins` gives it."""

    drop: Names = field(default_factory=dict)
    """By split and origin, why the image is left out: a kind of issue."""
    relabel: Names = field(default_factory=dict)
    """By split and origin, the name of the new class. Images that are left out are not relabelled."""
    files_sha256: tuple[str, ...] = ()
    """SHA-256 of the files that list them."""

    def dropped(self, split: str) -> dict[str, int]:
        """Number of images of a split that are left out, by kind."""
        return dict(sorted(Counter(self.drop.get(split, {}).values()).items()))

    def relabelled(self, split: str) -> int:
        """Number of images of a split that get another label."""
        return len(self.relabel.get(split, {}).keys() - self.drop.get(split, {}).keys())


def edited(source: Source, edits: Edits) -> Source:
    """The source without the images of `edits.drop`, and with the labels of `edits.relabel`.

    Raises DataError for a label that is no class of the source. Its splits raise DataError at their end for an image
    that is not among them, or is twice; and if a class loses all its images.
    """
    class_of = {name: index for index, name in enumerate(source.class_names)}
    labels: dict[str, dict[str, int]] = {}
    for name, by_origin in edits.relabel.items():
        for origin, label in by_origin.items():
            if label not in class_of:
                expected = format_choices(source.class_names, label)
                raise DataError(f"the new label of {origin} ({name}) is {shown(label)}; expected one of: {expected}")
        labels[name] = {origin: class_of[label] for origin, label in by_origin.items()}
    splits: dict[str, Split] = {
        name: _EditedSplit(source, name, edits.drop.get(name, {}), labels.get(name, {})) for name in source.splits
    }
    return replace(source, splits=splits, edits=edits)


class _EditedSplit:
    def __init__(self, source: Source, name: str, drop: Mapping[str, str], labels: Mapping[str, int]) -> None:
        self._split, self._name, self._drop, self._labels = source.splits[name], name, drop, labels
        self._source, self._class_names = source.name, source.class_names

    def __len__(self) -> int:
        return max(len(self._split) - len(self._drop), 0)

    def __iter__(self) -> Iterator[Sample | Broken]:
        num_seen: Counter[str] = Counter()
        before: Counter[int] = Counter()
        after: Counter[int] = Counter()
        named, num_left = self._drop.keys() | self._labels.keys(), len(self)
        for sample in self._split:
            origin = to_line(sample.origin)[:-1]
            num_seen.update([origin] if origin in named else [])
            if isinstance(sample, Sample):
                before[sample.label] += 1
            if origin in self._drop:
                continue
            if isinstance(sample, Sample):
                sample = sample._replace(label=self._labels.get(origin, sample.label))
                after[sample.label] += 1
            num_left -= 1
            if num_left >= 0:  # else an image to drop is missing: which one is known at the end
                yield sample
        self._require_found(num_seen)
        if emptied := [self._class_names[label] for label in before if not after[label]]:
            raise DataError(
                f"{self._source}: dropping and relabelling leaves {len(emptied)} classes of {self._name} without "
                f"images: {join_names(emptied)}; keep some of them"
            )

    def _require_found(self, num_seen: Counter[str]) -> None:
        for origin in (*self._drop, *self._labels):
            if num_seen[origin] != 1:
                problem = "is not among" if not num_seen[origin] else f"is {num_seen[origin]:,} times among"
                raise DataError(
                    f"{self._source}: the {self._name} image {shown(origin)}, which is to be dropped or relabelled, "
                    f"{problem} its images; expected the issues.csv of an audit of this source, converted as before"
                )
