"""A folder, tar or zip of images: `train/<class>/*` and `test/<class>/*`, JPEG or PNG, all of one size.

Which file is of which class is found out by `fastcifar.converters.layout`.

The files are taken in the order of their paths, so that a folder and an archive of it give the same beton.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
import PIL.Image

from fastcifar.converters.layout import LAYOUT, MAX_DEPTH, ImageFile, Listing, arrange, escaped
from fastcifar.converters.sources import Image, Source
from fastcifar.data.image_files import HEAD_BYTES, UNKNOWN, kind_of, upright, why_unreadable
from fastcifar.errors import DataError

log = logging.getLogger(__name__)
MAX_FILE_BYTES = 64 * 2**20
MAX_SIDE = 1_672  # a larger square does not fit into a beton's page
MAX_FILES = 300_000
"""In an archive: each takes under a kilobyte of memory. A folder may have more."""
MAX_SCANS = 100
"""Of a JPEG: a progressive one has about ten, and each takes as long as the whole image."""
UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    IndexError,
)
MAX_HEADER_BYTES = 2**20
EXTENSIONS_OF_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MAX_XZ_MEMORY = 100 * 2**20
"""xz -9 takes 65 MiB to unpack."""
START_OF_SCAN, ZIP_ENTRY = b"\xff\xda", b"PK\1\2"
DECODABLE = ("a JPEG image", "a PNG image")
ARCHIVES = ("a tar archive", "a gzip file", "an xz file", "a bzip2 file")
UTF8_FLAG = 0x800
"""Of an entry of a zip: its name is UTF-8. Without it, it is of an encoding that the zip does not name."""


class ImageSplit:
    """The images of one split, decoded as they are asked for. All must have the size of `first`."""

    def __init__(self, where: Path, files: list[tuple[ImageFile, int]], first: tuple[str, tuple[int, int]]) -> None:
        self._where, self._files, self._first = where, files, first
        self._told = False

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        first_name, first_size = self._first
        num_turned = 0
        for file, label in self._files:
            image, turned = _decoded(self._where, file)
            num_turned += turned
            if image.shape[:2] != first_size:
                raise DataError(
                    f"{self._where}: {escaped(file.name)} is {image.shape[0]}x{image.shape[1]}, {escaped(first_name)} "
                    f"is {first_size[0]}x{first_size[1]} (height x width); expected one size for all: resize or remove "
                    "it"
                )
            yield image, label
        if num_turned and not self._told:  # not again when it is read a second time, to be compared
            self._told = True
            what = f"{self._files[0][0].name.partition('/')[0]}/"
            log.info("%s: %d images of %s turned upright, as their EXIF says", self._where, num_turned, what)


def decode(where: Path, file: ImageFile) -> Image:
    """The image as (H, W, 3) uint8 RGB, upright. Raises DataError if it is no JPEG or PNG that RGB can hold."""
    return _decoded(where, file)[0]


def _decoded(where: Path, file: ImageFile) -> tuple[Image, bool]:
    """The image, see `decode`, and whether its EXIF turned it."""

    def refuse(why: str) -> DataError:
        return DataError(f"{where}: {escaped(file.name)}: {why}")

    try:
        content = file.read()
    except UNREADABLE as error:
        raise refuse(f"cannot be read ({error})") from error
    if content.startswith(b"\xff\xd8") and content.count(START_OF_SCAN) > MAX_SCANS:
        raise refuse(f"has over {MAX_SCANS} scans; save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = PIL.Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
            if max(picture.size) > MAX_SIDE:
                raise refuse(f"is {picture.height}x{picture.width}; expected at most {MAX_SIDE} pixels a side")
            deep = any("16" in str(tile[3]) for tile in picture.tile)  # Pillow would leave out half of the bits
            if deep or picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                raise refuse(f"has mode {picture.mode!r}; expected 8 bits a channel")
            has_alpha = "transparency" in picture.info or "A" in picture.getbands()
            if has_alpha and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise refuse("has transparent pixels; expected an opaque image")
            image, turned = upright(picture)
            return np.asarray(image.convert("RGB")), turned
    except DataError:
        raise
    except Exception as error:  # what Pillow raises for a damaged image is all kinds of things
        why = why_unreadable(content[:HEAD_BYTES], error, DECODABLE)
        raise refuse(
            f"not a whole JPEG or PNG image: {why}; replace it by a JPEG or PNG image, or remove it"
        ) from error


def open_folder(path: Path, *, skip_empty: bool = False) -> Source:
    """A folder of images. skip_empty: leave out the folders of classes that hold none."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    listing = Listing()
    above: dict[Path, list[tuple[int, int]]] = {}
    for base, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        inside, found = Path(base).relative_to(path), os.stat(base)
        above[inside] = [*(above.get(inside.parent, ()) if inside.parts else ()), (found.st_dev, found.st_ino)]
        if above[inside][-1] in above[inside][:-1]:  # a link that leads round in a circle
            folders.clear()
            continue
        if len(inside.parts) > MAX_DEPTH + 3:  # deeper than any dataset
            folders.clear()
        folders[:] = sorted(name for name in folders if listing.wants((inside / name).as_posix()))
        if inside.parts:
            listing.folders.append(inside.as_posix())
        names = [(inside / name).as_posix() for name in sorted(files)]
        listing.files += [ImageFile(name, _file_reader(path / name)) for name in names if listing.wants(name)]
    return _source(path, f"images of {path.resolve().name}", listing, skip_empty, ExitStack())


def _source(where: Path, description: str, listing: Listing, skip_empty: bool, resources: ExitStack) -> Source:
    class_names, files = arrange(where, listing, skip_empty=skip_empty)
    first = files["train"][0][0]
    height, width, _ = decode(where, first).shape
    splits = {name: ImageSplit(where, files[name], (first.name, (height, width))) for name in files}
    return Source(description=description, class_names=class_names, splits=splits, resources=resources.pop_all())


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        if not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            return _bounded(file)

    return read


def _bounded(file: IO[bytes]) -> bytes:
    content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has over {MAX_FILE_BYTES} bytes")
    return content


def open_archive(path: Path, *, skip_empty: bool = False) -> Source:
    """A tar (plain, gz, xz or bz2) or a zip of a folder of images. skip_empty: see `open_folder`."""
    with ExitStack() as resources:
        return _source(path, f"images of {path.name}", read_archive(path, resources), skip_empty, resources)


def read_archive(path: Path, resources: ExitStack) -> Listing:
    """What a tar or zip holds, to be read as long as `resources` is not closed. Raises DataError if it is damaged."""
    try:
        return _zip_files(path, resources) if zipfile.is_zipfile(path) else _tar_files(path, resources)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: not a whole tar or zip archive ({_why(path, error)}); {LAYOUT}") from error


def _why(path: Path, error: Exception) -> str:
    """Why a file cannot be read as an archive: the reader's own reason, or that it is something else."""
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    if kind == "a ZIP archive":
        return "it begins as a ZIP archive and has no end: truncated"
    return str(error) if kind in ARCHIVES or kind.startswith(UNKNOWN) else f"it is {kind}"


def _zip_files(path: Path, resources: ExitStack) -> Listing:
    require_few_entries(path)
    archive, listing = resources.enter_context(zipfile.ZipFile(path)), Listing()

    def reader(member: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with archive.open(member) as file:
                return _bounded(file)

        return read

    for member in archive.infolist():
        name = _name_in_zip(member)
        if not listing.wants(name):
            continue
        if member.is_dir():
            listing.folders.append(name)
        else:
            listing.files.append(ImageFile(name, reader(member)))
    return listing


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """Its name as in a tar or a folder: UTF-8, and a byte that is not as a surrogate. zipfile takes names without the
    flag for those of MS-DOS, where programs of other systems write UTF-8 or an encoding of their own."""
    if member.flag_bits & UTF8_FLAG or member.filename != member.orig_filename:  # or another field of it names it
        return member.filename
    return member.filename.encode("cp437").decode("utf-8", "surrogateescape")


def require_few_entries(path: Path) -> None:
    """Before zipfile reads them all into memory. The entries that the archive tells of may not be all."""
    num, end = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            num += (end + chunk).count(ZIP_ENTRY)
            end = chunk[-len(ZIP_ENTRY) + 1 :]
    if num > MAX_FILES:
        raise _too_many(path)


def _too_many(path: Path) -> DataError:
    return DataError(f"{path}: holds over {MAX_FILES:,} files; unpack it and convert the folder")


def _tar_files(path: Path, resources: ExitStack) -> Listing:
    # One pass over the stream: a compressed tar cannot be read at random. The files' bytes (never to a path that the
    # archive names) go to an unnamed temporary file, at most half of what the disk has free.
    spool = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (lives as long as the source)
    room = shutil.disk_usage(tempfile.gettempdir()).free // 2
    listing = Listing()

    def reader(offset: int, size: int) -> Callable[[], bytes]:
        return lambda: os.pread(spool.fileno(), size, offset)

    offset = 0
    with decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictTarInfo) as archive:
        for number, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined] # tarfile keeps them all
            if number >= MAX_FILES:
                raise _too_many(path)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise DataError(
                    f"{path}: {escaped(member.name)} is a link, a device or a sparse file; expected plain files"
                )
            if member.size > MAX_FILE_BYTES:
                raise DataError(
                    f"{path}: {escaped(member.name)} has {member.size} bytes; expected at most {MAX_FILE_BYTES}"
                )
            if not listing.wants(member.name):
                continue
            if member.isdir():
                listing.folders.append(member.name)
                continue
            room -= member.size
            if room < 0:
                raise DataError(f"{path}: unpacked it would fill over half of what {tempfile.gettempdir()} has free")
            content = archive.extractfile(member)
            assert content is not None  # it is a regular file
            spool.write(content.read())
            listing.files.append(ImageFile(member.name, reader(offset, member.size)))
            offset += member.size
        _read_to_the_end(stream)
    spool.flush()
    return listing


class StrictTarInfo(tarfile.TarInfo):
    """A header that is damaged or missing is an error: tarfile takes it for the end of the archive. So is one that is
    long, such as a name of a gigabyte, or a sparse file, whose map has no end: tarfile reads them into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENSIONS_OF_HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size} bytes; expected at most {MAX_HEADER_BYTES}")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        return super()._proc_member(archive)  # type: ignore[misc]

    def _refuse_sparse(self, *args: object) -> NoReturn:
        raise tarfile.ReadError("it has a sparse file; expected plain files")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse  # in the headers of POSIX archives

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the empty block that ends an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut: {error}") from error


class XzFile(io.RawIOBase):
    """An .xz file, unpacked. `lzma.open` has no bound on memory, and a file may ask for gigabytes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = self._new_decoder()
        self._left = b""

    @staticmethod
    def _new_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        found = b""
        while not found:
            if not self._left and (self._decoder.eof or self._decoder.needs_input):
                self._left = self._file.read(2**16)
                if not self._left and not self._decoder.eof:
                    raise EOFError("it ends before its end")
                if not self._left:
                    return 0
            if self._decoder.eof:  # what follows is padding, or another stream
                self._left = self._left.lstrip(b"\0")
                if not self._left:
                    continue
                self._decoder = self._new_decoder()
            found = self._decoder.decompress(self._left, len(out))
            self._left = self._decoder.unused_data
        out[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def decompressed(path: Path) -> IO[bytes]:
    """The bytes of a tar. Not by tarfile's own streams, which do not look at gzip's checksum."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if magic.startswith(b"BZh"):
        return bz2.open(path)
    if magic == b"\xfd7zXZ\0":
        return cast("IO[bytes]", io.BufferedReader(XzFile(path), 2**20))
    return path.open("rb")


def _read_to_the_end(stream: IO[bytes]) -> None:
    """So that the checksums at the end of a compressed file are looked at."""
    for _ in range(1_024):
        if not stream.read(2**20):
            return
    raise tarfile.ReadError("over 1 GiB follow the end of the archive")
