"""Archives of unknown origin: zip, and tar (plain, gz, xz or bz2). Every size is bounded before it is read.

Nothing is unpacked to a path that the archive names.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from fastcifar.converters.layout import Listing
from fastcifar.data.file_kind import HEAD_BYTES, UNKNOWN, file_kind
from fastcifar.errors import DataError, FastcifarError, escape
from fastcifar.io.atomic import FULL

MAX_FILE_BYTES = 2**28
"""The largest file of CIFAR-100 has 155 MB."""
MAX_FILES = 300_000
"""Each takes up to a kilobyte of memory. A folder may have more."""
MAX_HEADER_BYTES = 2**20
MAX_XZ_MEMORY = 100 * 2**20
"""xz -9 takes 65 MiB to unpack."""
READ_ERRORS: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)
READ_ERRORS += (OSError, ValueError, RuntimeError, IndexError)
"""What the readers of archives raise for damaged ones."""
GNU_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
ARCHIVE_KINDS = ("a tar archive", "a gzip file", "an xz file", "a bzip2 file")
ZIP_ENTRY = b"PK\1\2"
DATASET = "an archive of CIFAR, or one of train/<class>/* and test/<class>/*"
UTF8_FLAG = 0x800
"""Flag of a zip entry: its name is UTF-8. Without it, the encoding is unknown."""


def read_archive(path: Path, resources: ExitStack, expected: str = DATASET) -> Listing:
    """The files in a tar or zip, readable until `resources` is closed.

    Raises DataError, which says what was `expected`, if it is damaged.
    """
    try:
        return _read_zip(path, resources) if _is_zip(path) else _read_tar(path, resources)
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise FastcifarError(f"{tempfile.gettempdir()}: too full to unpack {path} ({error.strerror})") from error
        raise DataError(
            f"{path}: truncated or corrupt tar or zip archive ({_reason(path, error)}); expected {expected}"
        ) from error


def _is_zip(path: Path) -> bool:
    """Whether it ends as a zip, and is not a tar: a tar whose last file is a zip ends as one, too."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if file_kind(head) in ARCHIVE_KINDS:
        return False
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        return False  # a tar of an old kind, which only its checksum tells
    return zipfile.is_zipfile(path)


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read as an archive: the reader's own reason, or that it is something else."""
    with path.open("rb") as file:
        kind = file_kind(file.read(HEAD_BYTES))
    if kind == "a ZIP archive":
        return "it begins as a ZIP archive and has no end"
    return str(error) if kind in ARCHIVE_KINDS or kind.startswith(UNKNOWN) else f"it is {kind}"


def _read_zip(path: Path, resources: ExitStack) -> Listing:
    require_few_entries(path)
    archive = resources.enter_context(zipfile.ZipFile(path))
    members: dict[str, zipfile.ZipInfo] = {}

    def read(name: str, max_bytes: int) -> bytes:
        with archive.open(members[name]) as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"it has over {max_bytes} bytes")
        return content

    listing = Listing(read)
    for member in archive.infolist():
        name = _decode_zip_name(member)
        if not listing.accepts(name):
            continue
        if member.is_dir():
            listing.folders.append(name)
        else:
            _add(path, listing, members, name, member)
    return listing


def _add(path: Path, listing: Listing, members: dict[str, Any], name: str, member: object) -> None:
    if name in members:
        raise DataError(f"{path}: {escape(name)} is a duplicate; remove one of the two")
    members[name] = member
    listing.files.append(name)


def _decode_zip_name(member: zipfile.ZipInfo) -> str:
    """The name as UTF-8, as in a tar; other bytes become surrogates. Without the flag zipfile assumes MS-DOS's code
    page, where programs on other systems write UTF-8 or an encoding of their own."""
    if member.flag_bits & UTF8_FLAG or member.filename != member.orig_filename:  # or another field names it
        return member.filename
    return member.filename.encode("cp437").decode("utf-8", "surrogateescape")


def require_few_entries(path: Path) -> None:
    """Count the entries of a zip before zipfile reads all of them into memory. Its own count is not reliable."""
    num_entries, tail = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            num_entries += (tail + chunk).count(ZIP_ENTRY)
            tail = chunk[-len(ZIP_ENTRY) + 1 :]
    if num_entries > MAX_FILES:
        raise _too_many(path)


def _too_many(path: Path) -> DataError:
    return DataError(f"{path}: holds over {MAX_FILES:,} files; unpack it and give the folder")


def _read_tar(path: Path, resources: ExitStack) -> Listing:
    # One pass over the stream: a compressed tar has no random access. The content goes to an unnamed temporary file, at
    # most half of the free space.
    spool = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (lives as long as the source)
    free = shutil.disk_usage(tempfile.gettempdir()).free // 2
    positions: dict[str, tuple[int, int]] = {}

    def read(name: str, max_bytes: int) -> bytes:
        start, size = positions[name]
        if size > max_bytes:
            raise ValueError(f"it has {size} bytes; expected at most {max_bytes}")
        return os.pread(spool.fileno(), size, start)

    listing = Listing(read)
    offset = 0
    with decompress(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictTarInfo) as archive:
        for number, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined] # tarfile keeps them all
            if number >= MAX_FILES:
                raise _too_many(path)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise DataError(
                    f"{path}: {escape(member.name)} is a link, a device or a sparse file; expected regular files"
                )
            if member.size > MAX_FILE_BYTES:
                raise DataError(
                    f"{path}: {escape(member.name)} has {member.size} bytes; expected at most {MAX_FILE_BYTES}"
                )
            if not listing.accepts(member.name):
                continue
            if member.isdir():
                listing.folders.append(member.name)
                continue
            free -= member.size
            if free < 0:
                raise DataError(f"{path}: needs more than half of the free space in {tempfile.gettempdir()}")
            content = archive.extractfile(member)
            assert content is not None  # it is a regular file
            shutil.copyfileobj(content, spool)
            _add(path, listing, positions, member.name, (offset, member.size))
            offset += member.size
        if _has_more(archive.fileobj):  # type: ignore[arg-type]
            raise DataError(
                f"{path}: data follows the end of the archive, such as a second archive; unpack all of it "
                "(tar --ignore-zeros), and give the folder"
            )
    spool.flush()
    return listing


class StrictTarInfo(tarfile.TarInfo):
    """A damaged or missing header is an error; tarfile would treat it as the end of the archive. So is a long header,
    e.g. a name of a gigabyte, and a sparse file, whose map has no bound; tarfile would read them into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in (*GNU_LONG_NAMES, *PAX_HEADERS) and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size} bytes; expected at most {MAX_HEADER_BYTES}")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        return super()._proc_member(archive)  # type: ignore[misc]

    def _refuse_sparse(self, *args: object) -> NoReturn:
        raise tarfile.ReadError("it has a sparse file; expected regular files")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse  # in the headers of POSIX archives

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the empty block that ends an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class XzFile(io.RawIOBase):
    """The unpacked content of an .xz file. `lzma.open` has no bound on memory, and a file may require gigabytes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = self._create_decoder()
        self._pending = b""

    @staticmethod
    def _create_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        unpacked = b""
        while not unpacked:
            if not self._pending and (self._decoder.eof or self._decoder.needs_input):
                self._pending = self._file.read(2**16)
                if not self._pending and not self._decoder.eof:
                    raise EOFError("it has no end")
                if not self._pending:
                    return 0
            if self._decoder.eof:  # padding follows, or another stream
                self._pending = self._pending.lstrip(b"\0")
                if not self._pending:
                    continue
                self._decoder = self._create_decoder()
            unpacked = self._decoder.decompress(self._pending, len(out))
            self._pending = self._decoder.unused_data
        out[: len(unpacked)] = unpacked
        return len(unpacked)

    def close(self) -> None:
        self._file.close()
        super().close()


def decompress(path: Path) -> IO[bytes]:
    """The content of a tar, unpacked. Not by tarfile's own streams, which do not verify gzip's checksum."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if magic.startswith(b"BZh"):
        return bz2.open(path)
    if magic == b"\xfd7zXZ\0":
        return cast("IO[bytes]", io.BufferedReader(XzFile(path), 2**20))
    return path.open("rb")


def _has_more(stream: IO[bytes]) -> bool:
    """Whether bytes other than zero are left. Reads all: a compressed file is verified when it is read to its end."""
    has_more = False
    for _ in range(1_024):
        if not (chunk := stream.read(2**20)):
            return has_more
        has_more = has_more or bool(chunk.strip(b"\0"))
    raise tarfile.ReadError("over 1 GiB follow the end of the archive")
