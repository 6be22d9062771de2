"""What a source of images is: class names and splits, whose images are read one after another, never all in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import PIL.Image

from fastcifar.data.image_files import AS_IT_IS, Decoded, Image, ImageError, Preprocessing, convert_image
from fastcifar.io.checks import require_choice, require_int, require_number
from fastcifar.system.cpus import available_cpus

if TYPE_CHECKING:
    from fastcifar.converters.edits import Edits

Labels = npt.NDArray[np.int64]
CHUNK_IMAGES = 64
CHUNK_BYTES = 2**22
"""What a thread decodes at a time: at most so many images, or so many bytes and one image."""


class Sample(NamedTuple):
    """An image of a source, and what became of it."""

    image: Image
    """(H, W, 3) uint8."""
    label: int
    origin: str = ""
    """Its path within the source, or its row."""
    size: tuple[int, int] | None = None
    """(height, width) of the original; None: that of `image`."""
    changes: tuple[str, ...] = ()
    """Keys of `fastcifar.data.image_files.CHANGES`."""


class Broken(NamedTuple):
    """An image that cannot be read."""

    origin: str
    reason: str


class Split(Protocol):
    """The training or test images of a source: the same each time it is iterated."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample | Broken]: ...


@dataclass(frozen=True, kw_only=True)
class IndexedSplit:
    """Images that are read by position: fetched one after another, decoded on several threads, given in order."""

    labels: Labels
    """(N,) int64."""
    fetch: Callable[[int], Any]
    """Position -> what `decode` takes, e.g. the content of a file. Raises ImageError, or OSError."""
    decode: Callable[[Any], Decoded]
    """Called on several threads. Raises ImageError."""
    origin: Callable[[int], str]
    """Position -> path within the source, or row."""
    positions: Labels | None = None
    """(M,) int64, those of this split; None: all."""

    def __len__(self) -> int:
        return len(self.labels if self.positions is None else self.positions)

    def __iter__(self) -> Iterator[Sample | Broken]:
        positions = range(len(self.labels)) if self.positions is None else self.positions.tolist()
        fetched = ((position, self._fetch(position)) for position in positions)
        for position, decoded in map_in_order(self._decode, fetched, lambda item: _size(item[1])):
            origin = self.origin(position)
            if isinstance(decoded, str):
                yield Broken(origin, decoded)
            else:
                yield Sample(decoded.pixels, int(self.labels[position]), origin, decoded.size, decoded.changes)

    def select(self, chosen: Labels) -> IndexedSplit:
        """The images at `chosen`, (M,) int64 positions in this split, in their order here."""
        chosen = np.sort(chosen)
        return replace(self, positions=chosen if self.positions is None else self.positions[chosen])

    def selected_labels(self) -> Labels:
        """The labels of this split."""
        return self.labels if self.positions is None else self.labels[self.positions]

    def _fetch(self, position: int) -> Any:
        try:
            return self.fetch(position)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"cannot be read ({error.strerror or error})")

    def _decode(self, item: tuple[int, Any]) -> tuple[int, Decoded | str]:
        position, content = item
        try:
            if isinstance(content, ImageError):
                raise content
            return position, self.decode(content)
        except ImageError as error:
            return position, str(error)


def _size(content: object) -> int:
    return len(content) if isinstance(content, bytes) else int(getattr(content, "nbytes", 0))


def map_in_order(
    function: Callable[[Any], Any], items: Iterable[Any], size: Callable[[Any], int], num_threads: int | None = None
) -> Iterator[Any]:
    """`function` of each item, in their order, on threads; items are taken as results are, a few chunks ahead.

    size: the bytes that an item holds in memory.
    """
    num_threads = num_threads or min(available_cpus(), 8)
    remaining, pending = _chunks(items, size), deque[Future[list[Any]]]()
    pool = ThreadPoolExecutor(num_threads, "decode")
    try:
        while True:
            for chunk in islice(remaining, num_threads + 1 - len(pending)):
                pending.append(pool.submit(lambda chunk: [function(item) for item in chunk], chunk))
            if not pending:
                return
            yield from pending.popleft().result()
    finally:
        # without waiting: an iterator that was left may be collected in any thread, also in one that is being started
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(items: Iterable[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    num_bytes = 0
    for item in items:
        chunk.append(item)
        num_bytes += size(item)
        if len(chunk) == CHUNK_IMAGES or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to convert. Use it in a `with` block: an archive keeps files open."""

    description: str
    path: str = ""
    """Of the source, for messages."""
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    """'train' and 'test'."""
    preprocessing: Preprocessing = AS_IT_IS
    """What was done to the images; the manifest records it."""
    kind: str = "a fixed dataset"
    """Which options it has, see `open_source`."""
    num_ignored: int = 0
    """Files of operating systems and storage devices in the source."""
    edits: Edits | None = None
    """What was left out and relabelled; the manifest records it."""
    resources: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def name(self) -> str:
        """For messages: the path, or what it is."""
        return self.path or self.description

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resources.close()


class ResizedSplit:
    """The images of a split that are arrays already, resized."""

    def __init__(self, split: Split, rule: Preprocessing) -> None:
        self._split, self._rule = split, rule

    def __len__(self) -> int:
        return len(self._split)

    def __iter__(self) -> Iterator[Sample | Broken]:
        for sample in self._split:
            if isinstance(sample, Broken):
                yield sample
                continue
            pixels, size, changes = convert_image(PIL.Image.fromarray(sample.image), self._rule)
            yield Sample(pixels, sample.label, sample.origin, size, (*sample.changes, *changes))


def resized(source: Source, rule: Preprocessing) -> Source:
    """The source with its images resized."""
    splits = {name: ResizedSplit(split, rule) for name, split in source.splits.items()}
    return replace(source, splits=splits, preprocessing=rule)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source is read. Each has a flag of `fastcifar convert`."""

    dataset: str = "cifar10"
    """What 'download' means: 'cifar10' or 'cifar100'."""
    download_dir: str = "data"
    preprocessing: Preprocessing = AS_IT_IS
    test_share: float | None = None
    """Share of the images of each class that become test images, where the source has no test images, e.g. 0.2."""
    seed: int = 0
    """Which they are."""
    skip_empty_classes: bool = False
    """Skip class folders without images, which are an error otherwise: the classes after them get other labels."""
    images_root: str | None = None
    """The folder or archive that the paths in a table are relative to; by default the folder of the table."""
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    labels_file: str | None = None
    """The .npy file of the labels, for a source that is an .npy file of images."""
    channels: str | None = None
    """'first' or 'last', for arrays whose shape fits both."""
    max_value: float | None = None
    """The value of white in arrays; by default 255, 65535 for uint16, 1 for floats."""

    def __post_init__(self) -> None:
        if self.test_share is not None:
            require_number("test_share", self.test_share, 0, 1, above=True, below=True)
        require_int("seed", self.seed, 0, 2**63 - 1)
        if self.channels is not None:
            require_choice("channels", self.channels, ("first", "last"))
        if self.max_value is not None:
            require_number("max_value", self.max_value, 0, above=True)
