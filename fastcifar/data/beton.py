"""FFCV's beton file, and the manifest beside it: the contract between converters and loaders.

A beton of ours has the fields `image` (raw uint8, H x W x 3, one size for all) and `label` (int); in those of others
they may have other names, and numbers next to them (`fastcifar.data.beton_fields`). Its bytes are not trusted: every
size, pointer and table is checked before anything is used, and the SHA-256 against the manifest.
The layout is that of FFCV 1.0.2 (`ffcv/types.py`, `ffcv/writer.py`, https://github.com/libffcv/ffcv).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastcifar.data import jpeg
from fastcifar.data.beton_fields import FIELD, MAX_FIELDS, Fields, read_fields
from fastcifar.errors import DataError
from fastcifar.io.paths import SPLIT_FILES, command_line, user_path, why_missing
from fastcifar.io.reading import open_descriptor, read_bytes, reject_duplicate_keys
from fastcifar.system.memory import free_memory

if sys.byteorder != "little":  # pragma: no branch
    raise ImportError("beton files are little-endian, this machine is not: fastcifar cannot run here")

log = logging.getLogger(__name__)
VERSION = 2
MANIFEST_VERSION = 2
PAGE_SIZE = 8 * 2**20  # FFCV's default
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 2**21, 2**31
RAW, JPEG = 1, 0
MAX_CLASSES = 65_536
MAX_NAME = 255
"""Characters in the name of a class: a folder's name has no more."""
MAX_LISTED = 10
MAX_MANIFEST_BYTES = 16 * 2**20
CHUNK = 8 * 2**20

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
RECORD = np.dtype(
    {
        "names": ["mode", "width", "height", "data_ptr", "label"],
        "formats": ["<u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],  # the image's 13 bytes are packed, the label is aligned
        "itemsize": 24,
    }
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
TABLES_START = HEADER.itemsize + 2 * FIELD.itemsize
"""Of a beton of ours, as RECORD is its record."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NOTHING: Bytes = np.empty(0, np.uint8)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `train.beton.json` says of `train.beton`."""

    num_samples: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    """Per channel (red, green, blue), over all pixels, 0..255."""
    std: tuple[float, float, float]
    """Population standard deviation, likewise."""
    sha256: str
    source: str
    versions: dict[str, str]

    def to_json(self) -> str:
        """The text of the manifest file."""
        facts = {"fastcifar_manifest": MANIFEST_VERSION, **asdict(self)}
        return json.dumps({**facts, "checksum": _checksum(facts)}, indent=1, ensure_ascii=False) + "\n"


def _times(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class OpenFile:
    """A descriptor that is closed when nothing uses it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._seen = _times(descriptor)

    @property
    def path(self) -> str:
        """A path to this very file, for programs that open by name, even where the name is gone or taken."""
        return f"/proc/self/fd/{self.descriptor}" if sys.platform == "linux" else f"/dev/fd/{self.descriptor}"

    @property
    def touched(self) -> bool:
        """True if the file may have been written to since it was opened, or found unchanged.

        The time of writing can be put back (`touch -r`), that of the last change cannot; but that tells of names, too.
        """
        try:
            return _times(self.descriptor) != self._seen
        except OSError:  # closed already: the program ends
            return False

    def written(self, times: tuple[int, int, int]) -> bool:
        """Whether these times tell of a write since it was opened."""
        return times[:2] != self._seen[:2]

    def found_unchanged(self, times: tuple[int, int, int]) -> None:
        """It was looked at when it had these times."""
        self._seen = times


@dataclass(frozen=True, kw_only=True, repr=False)
class Beton:
    """A checked beton, open for reading.

    Image i is `data[offsets[i] : offsets[i] + H*W*3]`: pages have slack between them, there is no (N, H, W, 3) array.
    """

    path: Path
    file: OpenFile
    """What `data` maps: the file, or a private copy of it that nobody else can write to (see `open_beton`)."""
    data: Bytes
    """The whole file, (size,) uint8, read-only."""
    offsets: Ints
    """(N,) int64: where each image begins."""
    sizes: Ints
    """(N,) int64: how many bytes each image has in the file."""
    encoding: str
    """'raw', or 'jpeg': then `data` holds JPEG files, not pixels."""
    labels: Ints
    """(N,) int64, 0 .. number of classes - 1."""
    image_shape: tuple[int, int, int]
    """(H, W, 3)."""
    page_size: int
    class_names: tuple[str, ...]
    mean: Floats
    """(3,) float64, 0..255."""
    std: Floats
    """(3,) float64, 0..255."""
    sha256: str
    private: bool
    """True if `file` is a copy in memory that nobody else can write to."""
    verified: bool
    """True if a manifest lies beside the file and its SHA-256 is that of the file."""
    fields: Fields

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        height, width, _ = self.image_shape
        classes = f"{len(self.class_names)} classes"
        return f"Beton({str(self.path)!r}: {len(self):,} images of {height}x{width}, {classes}, {self.encoding})"

    @property
    def pages(self) -> Ints:
        """(N,) int64: the page of the file that holds each image."""
        return self.offsets // self.page_size

    def check_unchanged(self) -> None:
        """Raise DataError if the file is no longer what was checked. A private copy always is.

        One that was written to may have had other images in between, whatever it has now. If only the time of its last
        change is another it is hashed again: it may have got another name, or lost its own.
        """
        if self.private or not self.file.touched:
            return
        times = _times(self.file.descriptor)
        if self.file.written(times) or _sha256(self.path, self.file, len(self.data)) != self.sha256:
            raise DataError(f"{self.path}: was written to while it was used; start again with the new file")
        self.file.found_unchanged(times)

    def images(self, rows: npt.ArrayLike) -> Bytes:
        """The images of `rows` (any integer array of shape (B,)), copied: (B, H, W, 3) uint8."""
        if self.encoding == "jpeg":
            return np.stack([self._decoded(int(row)) for row in np.asarray(rows)])
        size = int(np.prod(self.image_shape))
        if not self.private:  # read, not mapped: a page that is gone, because the file became shorter, would kill
            starts = self.offsets[np.asarray(rows, dtype=np.int64)].ravel()
            copied = np.empty((len(starts), size), np.uint8)
            for image, start in zip(copied, starts.tolist(), strict=True):
                self.read_into(image, start)
            return copied.reshape(-1, *self.image_shape)
        # every run of `size` bytes of the file as a row, without copying; indexing then copies whole images
        windows = np.lib.stride_tricks.as_strided(self.data, (len(self.data) - size + 1, size), (1, 1), writeable=False)
        return windows[self.offsets[np.asarray(rows, dtype=np.int64)]].reshape(-1, *self.image_shape)

    def images_as_checked(self, rows: npt.ArrayLike) -> Bytes:
        """`images`, for who reads them once: raises DataError if the file is no longer what was checked."""
        found = self.images(rows)
        self.check_unchanged()
        return found

    def read_into(self, out: Bytes, start: int) -> None:
        """Fill `out`, (size,) uint8, from byte `start` of the file on. Raises DataError if it ends before."""
        _read_into(self.path, self.file, out, start)

    def _decoded(self, row: int) -> Bytes:
        try:
            encoded = np.empty(self.sizes[row], np.uint8)
            self.read_into(encoded, int(self.offsets[row]))
            image = jpeg.decode(encoded)
            if image.shape != self.image_shape:
                raise ValueError(f"it has shape {image.shape}")
            return image
        except DataError:
            raise
        except Exception as error:  # what Pillow raises for a damaged image is all kinds of things
            raise DataError(f"{self.path}: image {row} is damaged ({error}); convert again") from error


def require_classes(where: str | os.PathLike[str], class_names: Sequence[str]) -> None:
    """Raise DataError unless there are two classes or more: a classifier has nothing to learn from one."""
    if len(class_names) < 2:
        found = f"the class {class_names[0]!r} alone" if class_names else "no class"
        raise DataError(f"{os.fspath(where)}: has {found}; expected at least two classes")


def empty_classes(beton: Beton) -> str | None:
    """A warning that names the classes without an image; None if each has one."""
    counts = np.bincount(beton.labels, minlength=len(beton.class_names))
    empty = [name for name, count in zip(beton.class_names, counts, strict=True) if not count]
    if not empty:
        return None
    shown = ", ".join(empty[:MAX_LISTED]) + (", …" if len(empty) > MAX_LISTED else "")
    advice = "" if beton.verified else "; labels are expected to be 0, 1, 2 and so on: a network has an output for each"
    return f"{beton.path}: no image of {len(empty):,} of {len(counts):,} classes: {shown}{advice}"


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Where the manifest of the beton at `path` lies: next to it, or next to the file that a link there leads to."""
    beside = Path(f"{os.fspath(path)}.json")
    behind = os.path.islink(path) and not os.path.lexists(beside)
    return Path(f"{os.path.realpath(path)}.json") if behind else beside


def open_beton(path: str | os.PathLike[str], *, in_memory: bool = False) -> Beton:
    """Open and check a beton.

    With `in_memory`, `data` is a private copy (sealed, where the system can), checked after it was made: nothing
    that happens to the file later changes it. Otherwise the file itself is mapped, and `check_unchanged` tells.

    Raises DataError (exit code 4) if the file is missing, damaged, not of this kind, or not the one that its
    manifest describes.
    """
    path = user_path(path, "beton")
    file = _open_private(path) if in_memory else _open_regular(path)
    data = _map(path, file)
    fields, head, tail = _tables(path, file, len(data))
    page_size, records, sizes = _check_tables(path, len(data), fields, head, tail)
    encoding = "raw" if records["mode"][0] == RAW else "jpeg"
    image_shape = (int(records["height"][0]), int(records["width"][0]), 3)
    offsets = records["data_ptr"].astype(np.int64)
    labels = records["label"].astype(np.int64)
    if encoding == "jpeg":

        def bytes_at(start: int, size: int) -> bytes:
            return _read(path, file, start, start + size).tobytes()

        row = jpeg.wrong_header(bytes_at, offsets, sizes, image_shape)
        if row is not None:
            _damaged(path, f"image {row} is no JPEG file of {image_shape[0]}x{image_shape[1]}")
    digest = _sha256(path, file, len(data), head, tail)
    manifest = read_manifest(path)
    if manifest is None:
        class_names = tuple(str(i) for i in range(int(labels.max()) + 1))
        mean = std = np.zeros(3)
    else:
        _check_manifest(path, manifest, digest, len(offsets), image_shape, int(labels.max()))
        class_names = manifest.class_names
        mean, std = np.array(manifest.mean), np.array(manifest.std)
    beton = Beton(
        path=path,
        file=file,
        data=data,
        offsets=offsets,
        sizes=sizes,
        encoding=encoding,
        labels=labels,
        image_shape=image_shape,
        page_size=page_size,
        class_names=class_names,
        mean=mean,
        std=std,
        sha256=digest,
        private=in_memory,
        verified=manifest is not None,
        fields=fields,
    )
    if manifest is not None:
        return beton
    mean, std = channel_statistics(_channel_histogram(beton))
    return replace(beton, mean=mean, std=std)


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """The manifest beside the beton at `path`, or None if there is none. Raises DataError if it is damaged."""
    file = manifest_path(path)
    if not os.path.lexists(file):
        return None
    try:
        text = read_bytes(file, MAX_MANIFEST_BYTES).decode("utf-8")
        return _parse_manifest(json.loads(text, object_pairs_hook=reject_duplicate_keys))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        reason = reason if file.exists() else why_missing(file)
        raise DataError(f"{file}: not a manifest of fastcifar ({reason}); convert again") from error


def _parse_manifest(raw: Any) -> Manifest:
    if not isinstance(raw, dict) or raw.get("fastcifar_manifest") is not MANIFEST_VERSION:
        raise ValueError(f"it does not begin with fastcifar_manifest: {MANIFEST_VERSION}")
    names, shape = raw["class_names"], raw["image_shape"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n and n.isprintable() for n in names):
        raise ValueError("class_names is no list of names")
    if max(map(len, names)) > MAX_NAME:
        raise ValueError(f"class_names has a name of over {MAX_NAME} characters")
    if len(set(names)) != len(names):
        raise ValueError("class_names has a name twice")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int for n in shape):
        raise ValueError("image_shape is no list of three whole numbers")
    statistics = []
    for key in ("mean", "std"):
        values = raw[key]
        if not isinstance(values, list) or len(values) != 3 or not all(type(v) in (int, float) for v in values):
            raise ValueError(f"{key} is no list of three numbers")
        triple = (float(values[0]), float(values[1]), float(values[2]))
        if not all(0.0 <= v <= 255.0 for v in triple):
            raise ValueError(f"{key} is outside 0..255")
        statistics.append(triple)
    if not isinstance(raw["sha256"], str) or type(raw["num_samples"]) is not int:
        raise ValueError("sha256 or num_samples is of the wrong kind")
    if raw.pop("checksum", None) != _checksum(raw):
        raise ValueError("damaged: its checksum is not that of what it says")
    return Manifest(
        num_samples=raw["num_samples"],
        image_shape=(shape[0], shape[1], shape[2]),
        class_names=tuple(names),
        mean=statistics[0],
        std=statistics[1],
        sha256=raw["sha256"],
        source=str(raw.get("source", "")),
        versions={str(k): str(v) for k, v in dict(raw.get("versions", {})).items()},
    )


def _checksum(facts: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says, whatever its layout."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_manifest(
    path: Path,
    manifest: Manifest,
    digest: str,
    num_samples: int,
    image_shape: tuple[int, ...],
    max_label: int,
) -> None:
    told = f"its manifest {manifest_path(path).name}"
    if manifest.sha256 != digest:
        raise DataError(
            f"{path}: damaged or exchanged: SHA-256 {digest[:16]}…, {told} says {manifest.sha256[:16]}…; convert again"
        )
    if manifest.num_samples != num_samples or manifest.image_shape != image_shape:
        raise DataError(
            f"{path}: holds {num_samples} images of shape {image_shape}, {told} says {manifest.num_samples} "
            f"of {manifest.image_shape}; convert again"
        )
    if max_label >= len(manifest.class_names):
        raise DataError(
            f"{path}: has label {max_label}, {told} names {len(manifest.class_names)} classes; convert again"
        )


def _open_regular(path: Path) -> OpenFile:
    try:
        return OpenFile(open_descriptor(path))
    except ValueError:
        held = path / "train.beton"
        expected = f"a beton, e.g. {held}" if held.is_file() else "a beton, made with 'fastcifar convert'"
        raise DataError(f"{path}: not a file; expected {expected}") from None
    except OSError as error:
        if not path.exists():
            folder: list[str | Path] = []
            if path.parent not in (Path("data"), Path()) and path.name in SPLIT_FILES:
                folder = ["--data-dir", path.parent]
            convert = command_line("fastcifar", "convert", *folder)
            raise DataError(f"{path}: {why_missing(path)}; make it with: {convert}") from None
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error


def _open_private(path: Path) -> OpenFile:
    """A copy of the file that nobody else can reach: in memory where the system has memfd, else without a name."""
    original = _open_regular(path)
    try:
        copy, in_memory = _new_unnamed(path.name)
        try:
            left = os.fstat(original.descriptor).st_size  # a file that grows is not followed
            while chunk := os.read(original.descriptor, min(CHUNK, left)):
                left -= len(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(copy, view) :]
            if in_memory:
                _seal(copy)
        except BaseException:
            os.close(copy)
            raise
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be copied into memory ({error}); use --loader ffcv for large files") from error
    return OpenFile(copy)


def _new_unnamed(name: str) -> tuple[int, bool]:
    """A file without a name, and whether it is in memory: old kernels, and some containers, have no memfd."""
    with contextlib.suppress(OSError, AttributeError):
        return os.memfd_create(name[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), True
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno()), False


def _seal(memfd: int) -> None:
    """Nobody writes to the memory any more. The kernel refuses while it moves a page of it itself: ask again."""
    for wait_s in (0.01, 0.1, 0.5, 1.0, None):
        try:
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or wait_s is None:
                log.info("the private copy could not be sealed; only this process can reach it")
                return
            time.sleep(wait_s)


def _map(path: Path, file: OpenFile) -> Bytes:
    size = os.fstat(file.descriptor).st_size
    if size < TABLES_START:
        _require_unknown_kind(path, file, size)
        _damaged(path, f"it has {size} bytes, too few for a header")
    try:
        return np.frombuffer(mmap.mmap(file.descriptor, size, access=mmap.ACCESS_READ), dtype=np.uint8)
    except OSError as error:  # of some network file systems no file can be mapped
        if size > free_memory():
            raise DataError(f"{path}: cannot be mapped ({error.strerror}), nor held in memory") from error
        data = _read(path, file, 0, size)
        data.flags.writeable = False
        return data


def _read_into(path: Path, file: OpenFile, out: Bytes, start: int) -> None:
    done = 0
    while done < len(out):
        count = os.preadv(file.descriptor, [out[done:].data], start + done)
        if not count:
            raise DataError(f"{path}: ends at byte {start + done}, earlier than when it was checked; start again")
        done += count


def _read(path: Path, file: OpenFile, start: int, end: int) -> Bytes:
    found = np.empty(end - start, np.uint8)
    _read_into(path, file, found, start)
    return found


def _sha256(path: Path, file: OpenFile, size: int, head: Bytes = NOTHING, tail: Bytes = NOTHING) -> str:
    """Of the file, read and not mapped: a page that is gone, because the file became shorter, would kill.

    Its first and last bytes are not read again if they are given: they are what was checked.
    """
    digest, buffer = hashlib.sha256(head.data), np.empty(2**20, np.uint8)
    end = size - len(tail)
    for start in range(len(head), end, len(buffer)):
        chunk = buffer[: end - start]
        _read_into(path, file, chunk, start)
        digest.update(chunk.data)
    digest.update(tail.data)
    return digest.hexdigest()


def _require_unknown_kind(path: Path, file: OpenFile, size: int) -> None:
    """Raise DataError if what does not begin as a beton is a file of another kind: a manifest, an archive, a pointer of
    Git LFS. To convert again helps with none of them."""
    from fastcifar.data.image_files import HEAD_BYTES, UNKNOWN, kind_of

    kind = kind_of(_read(path, file, 0, min(size, HEAD_BYTES)).tobytes())
    if not kind.startswith(UNKNOWN):
        raise DataError(f"{path}: not a beton, but {kind}; expected a beton, made with 'fastcifar convert'")


def _damaged(path: Path, why: str) -> NoReturn:
    raise DataError(f"{path}: damaged beton: {why}; convert again")


def _tables(path: Path, file: OpenFile, size: int) -> tuple[Fields, Bytes, Bytes]:
    """The fields; what stands before the pages and after them: header, descriptors and records, and the allocation
    table. Both are bounded by the size of the file before they are read.
    """
    start = _read(path, file, 0, HEADER.itemsize)
    header = start.view(HEADER)[0]
    if header["version"] != VERSION:
        _require_unknown_kind(path, file, size)
        raise DataError(f"{path}: not a beton of version {VERSION} (it begins with {int(header['version'])})")
    num_fields = int(header["num_fields"])
    tables_start = HEADER.itemsize + num_fields * FIELD.itemsize
    if not 1 <= num_fields <= MAX_FIELDS or tables_start > size:
        _damaged(path, f"it has {num_fields} fields and {size} bytes")
    descriptors = _read(path, file, HEADER.itemsize, tables_start)
    fields = read_fields(path, descriptors.view(FIELD))
    record_size = fields.record.itemsize
    page_size, num_samples = int(header["page_size"]), int(header["num_samples"])
    table_start = int(header["alloc_table_ptr"])
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        _damaged(path, f"page size {page_size} is no power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}")
    if num_samples == 0:
        raise DataError(f"{path}: holds no images")
    if size // page_size > num_samples + num_samples * record_size // page_size + 2:
        _damaged(path, f"it has {size} bytes, more than {num_samples} images can fill")
    if num_samples > (size - tables_start) // (record_size + ALLOCATION.itemsize):
        _damaged(path, f"it says {num_samples} images, more than fit into {size} bytes")
    if table_start + num_samples * ALLOCATION.itemsize != size:
        _damaged(path, f"the allocation table at {table_start} does not end with the file of {size} bytes")
    records = _read(path, file, tables_start, tables_start + num_samples * record_size)
    return fields, np.concatenate([start, descriptors, records]), _read(path, file, table_start, size)


def _check_tables(
    path: Path, size: int, fields: Fields, head: Bytes, tail: Bytes
) -> tuple[int, npt.NDArray[np.void], Ints]:
    """Check both tables of a file of so many bytes; return page size, records and sizes of images."""
    header = head[: HEADER.itemsize].view(HEADER)[0]
    page_size = int(header["page_size"])
    tables = head[HEADER.itemsize + int(header["num_fields"]) * FIELD.itemsize :]
    records, allocations = tables.view(fields.record), tail.view(ALLOCATION)
    pages_start = -(-len(head) // page_size) * page_size
    sizes = _sizes(path, allocations, page_size)
    if tables.reshape(-1, fields.record.itemsize)[:, fields.padding].any():
        _damaged(path, "its records are not empty where nothing is stored")
    _check_records(path, records, sizes, pages_start, size - len(tail), page_size)
    if (allocations["ptr"] != records["data_ptr"][allocations["sample_id"].astype(np.int64)]).any():
        _damaged(path, "its allocation table and its records disagree on where an image lies")
    return page_size, records, sizes


def _check_records(
    path: Path, records: npt.NDArray[np.void], sizes: Ints, pages_start: int, pages_end: int, page_size: int
) -> None:
    modes = records["mode"]
    unknown = (modes != RAW) & (modes != JPEG)
    if unknown.any():
        row = int(np.argmax(unknown))
        _damaged(path, f"image {row} has mode {int(modes[row])}; expected {RAW} (raw) or {JPEG} (JPEG) for all")
    if (modes != modes[0]).any():
        row = int(np.argmax(modes != modes[0]))
        raise DataError(
            f"{path}: not supported: image {row} has mode {int(modes[row])}, image 0 mode {int(modes[0])} ({RAW}: raw, "
            f"{JPEG}: JPEG), as FFCV's write_mode 'proportion' mixes them; expected all raw or all JPEG"
        )
    height, width = int(records["height"][0]), int(records["width"][0])
    other = (records["height"] != height) | (records["width"] != width)
    if other.any():
        row = int(np.argmax(other))
        found = f"{int(records['height'][row])}x{int(records['width'][row])}"
        raise DataError(
            f"{path}: not supported: image {row} is {found}, image 0 is {height}x{width}; expected one size for all"
        )
    size = height * width * 3
    if not 0 < size <= page_size:
        _damaged(path, f"images of {height}x{width} do not fit into its pages of {page_size} bytes")
    if modes[0] == RAW and (sizes != size).any():
        _damaged(path, f"its allocation table holds a size that is not {size}")
    pointers = records["data_ptr"]
    outside = (pointers < pages_start) | (pointers > np.maximum(pages_end - sizes, 0).astype(np.uint64))
    if outside.any():
        row = int(np.argmax(outside))
        _damaged(
            path,
            f"image {row} lies at byte {int(pointers[row])}, outside the pages {pages_start}..{pages_end}",
        )
    in_order = np.argsort(pointers, kind="stable")
    starts = pointers[in_order].astype(np.int64)
    ends = starts + sizes[in_order]
    if (starts[1:] < ends[:-1]).any():
        _damaged(path, "two images overlap")
    if (starts // page_size != (ends - 1) // page_size).any():
        _damaged(path, "an image crosses the end of its page")
    labels = records["label"]
    if (labels < 0).any() or (labels >= MAX_CLASSES).any():
        row = int(np.argmax((labels < 0) | (labels >= MAX_CLASSES)))
        raise DataError(
            f"{path}: not supported: image {row} has label {int(labels[row])}; expected the number of its class, "
            f"0..{MAX_CLASSES - 1}"
        )


def _sizes(path: Path, allocations: npt.NDArray[np.void], page_size: int) -> Ints:
    """How many bytes each image has: FFCV looks that up in the allocation table, by its pointer."""
    rows = allocations["sample_id"]
    if (rows >= len(rows)).any() or (np.bincount(rows.astype(np.int64), minlength=len(rows)) != 1).any():
        _damaged(path, "its allocation table does not name each image once")
    if (allocations["size"] == 0).any() or (allocations["size"] > page_size).any():
        _damaged(path, f"its allocation table holds a size that is not 1..{page_size}")
    sizes = np.empty(len(rows), dtype=np.int64)
    sizes[rows.astype(np.int64)] = allocations["size"]
    return sizes


def _channel_histogram(beton: Beton) -> Ints:
    if beton.encoding == "raw" and beton.private:
        return channel_histogram(beton.data, beton.offsets, beton.image_shape)
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(beton), 1_024):
        counts += histogram_of(beton.images(np.arange(start, min(start + 1_024, len(beton)))))
    return counts


def histogram_of(pixels: Bytes) -> Ints:
    """How often each value occurs in each channel: (..., 3) uint8 -> (3, 256) int64."""
    flat = pixels.reshape(-1, 3)
    return np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(3)])


def channel_histogram(data: Bytes, offsets: Ints, image_shape: tuple[int, int, int]) -> Ints:
    """How often each value 0..255 occurs in each channel of the images: (3, 256) int64."""
    counts = np.zeros((3, 256), dtype=np.int64)
    size = int(np.prod(image_shape))
    starts = np.sort(offsets)
    # runs of images that lie side by side are counted in one go
    runs = np.split(starts, np.flatnonzero(np.diff(starts) != size) + 1)
    for run in runs:
        counts += histogram_of(data[run[0] : run[-1] + size])
    return counts


def channel_statistics(histogram: Ints) -> tuple[Floats, Floats]:
    """Mean and population standard deviation, each (3,) float64, from a (3, 256) histogram; exact sums."""
    values = np.arange(256, dtype=np.int64)
    count = histogram.sum(axis=1)
    mean = (histogram @ values) / count
    deviations = (values[None, :] - mean[:, None]) ** 2
    return mean, np.sqrt((histogram * deviations).sum(axis=1) / count)
