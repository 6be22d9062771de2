"""What happened to the images of a source, counted while they are converted, in the manifest and in words."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fastcifar.converters.edits import Edits
from fastcifar.converters.sources import Broken, Labels, Sample
from fastcifar.data.image_files import CHANGES, Preprocessing
from fastcifar.data.manifest import MAX_ELONGATED, MAX_SIZES, MIN_ASPECT, Conversion, Manifest
from fastcifar.data.origins import to_line
from fastcifar.errors import DataError, join_names, one_line

log = logging.getLogger(__name__)
MAX_BROKEN = 0.01
"""Share of the images that may be skipped as broken."""
FEW_IMAGES = 10
IMBALANCE = 100
Hashes = npt.NDArray[np.uint64]


def hash_image(image: npt.NDArray[np.uint8]) -> int:
    """64 bits of BLAKE2b: equal for equal bytes, and for others only by chance."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest(), "little")


class Summary:
    """Counts of one split."""

    def __init__(self, name: str, num_images: int, preprocessing: Preprocessing, num_ignored: int) -> None:
        self._name, self._preprocessing, self._num_ignored = name, preprocessing, num_ignored
        self._max_broken = int(num_images * MAX_BROKEN)
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._elongated: list[tuple[int, int, int]] = []
        self._changes: Counter[str] = Counter()
        self.skipped: list[str] = []
        self.hashes: Hashes = np.empty(num_images, np.uint64)
        """(N,) of the images; complete when all are added."""

    def add(self, index: int, sample: Sample) -> None:
        """Count image `index`."""
        height, width = sample.image.shape[:2]
        before = sample.size or (height, width)
        self._sizes[before] += 1
        changed = before[0] * width / (before[1] * height)  # of the proportions
        if max(changed, 1 / changed) >= MIN_ASPECT and len(self._elongated) < MAX_ELONGATED:
            self._elongated.append((index, *before))
        self._changes.update(sample.changes)
        self.hashes[index] = hash_image(sample.image)

    def skip(self, broken: Broken) -> None:
        """Count a broken image. Raises DataError if there are too many."""
        self.skipped.append(to_line(broken.origin)[:-1])
        if len(self.skipped) > self._max_broken:
            raise DataError(
                f"over {MAX_BROKEN:.0%} of the images in {self._name} are broken, e.g. {one_line(broken.origin, 300)}: "
                f"{broken.reason}; replace or remove them"
            )

    def conversion(self, other: Hashes, edits: Edits | None) -> Conversion:
        """What the manifest records. other: hashes of the images of the other split."""
        edits = edits or Edits()
        sizes = self._sizes.most_common(MAX_SIZES)
        named = {f"{height}x{width}": count for (height, width), count in sizes}
        if others := self._sizes.total() - sum(named.values()):
            named["others"] = others
        return Conversion(
            size=self._preprocessing.size,
            fit=self._preprocessing.fit,
            background=self._preprocessing.background,
            sizes=named,
            elongated=tuple(self._elongated),
            changes={key: self._changes[key] for key in CHANGES if self._changes[key]},
            skipped=tuple(self.skipped),
            num_ignored=self._num_ignored,
            num_duplicates=len(self.hashes) - len(np.unique(self.hashes)),
            num_in_other_split=int(np.isin(self.hashes, other).sum()),
            dropped=edits.dropped(self._name),
            relabelled=edits.relabelled(self._name),
            edits_sha256=edits.files_sha256,
        )


def warn_of_imbalance(class_names: Sequence[str], labels: Labels) -> None:
    """Warn of classes with few images, and if the largest class has far more than the smallest."""
    counts = np.bincount(labels, minlength=len(class_names))
    few = [f"{class_names[i]} ({counts[i]})" for i in np.flatnonzero((counts > 0) & (counts < FEW_IMAGES)).tolist()]
    if few:
        log.warning("classes with under %d images: %s", FEW_IMAGES, join_names(few))
    present = counts[counts > 0]
    if present.max() > IMBALANCE * present.min():
        largest, smallest = int(counts.argmax()), int(np.where(counts, counts, 2**62).argmin())
        ratio = present.max() // present.min()
        log.warning("class %s has %d times as many images as %s", class_names[largest], ratio, class_names[smallest])


def _images(count: int, adjective: str = "") -> str:
    return f"{count:,} {adjective}{'image' if count == 1 else 'images'}"


def describe(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Lines about what was changed, skipped and found twice."""
    for name, manifest in manifests.items():
        facts, num = manifest.conversion, manifest.num_samples
        if len(facts.sizes) > 1 or facts.size is not None:
            sizes = [f"{size} ({count:,})" for size, count in facts.sizes.items() if size != "others"]
            more = ", and others" if "others" in facts.sizes or len(sizes) > 4 else ""
            yield f"{name}: original sizes (height x width), most frequent first: {', '.join(sizes[:4])}{more}"
        for key, count in facts.changes.items():
            yield f"{name}: {_images(count)} {CHANGES.get(key, key)}"
        if facts.skipped:
            origins = join_names((f"{origin:.300}" for origin in facts.skipped), 3)
            yield f"{name}: {_images(len(facts.skipped), 'broken ')} skipped: {origins}"
        if facts.dropped:
            kinds = ", ".join(f"{kind} ({count:,})" for kind, count in facts.dropped.items())
            yield f"{name}: {_images(sum(facts.dropped.values()))} dropped: {kinds}"
        if facts.relabelled:
            yield f"{name}: {_images(facts.relabelled)} relabelled"
        if facts.num_duplicates:
            yield f"{name}: {facts.num_duplicates:,} of {num:,} images are copies of an earlier one"
        if facts.num_in_other_split:
            yield f"{name}: {facts.num_in_other_split:,} of {num:,} images are also in the other split"
    if ignored := max((manifest.conversion.num_ignored for manifest in manifests.values()), default=0):
        yield f"{ignored:,} {'file or folder' if ignored == 1 else 'files or folders'} of operating systems ignored"
