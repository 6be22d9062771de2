"""No archive writes outside its place, and none fills the disk or the memory: exit code 4, nothing is written."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.converters import archives, official, open_source
from fastcifar.data.image_files import AS_IT_IS, ImageError, decode_image
from fastcifar.errors import DataError
from tests.trust.cases import LONGEST_S, contents, count, error_line

MAX_MIB = 300
GIB = 2**30


def png(height: int, width: int) -> bytes:
    """A PNG of one colour: a thousandth of its pixels in bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    packer, pixels = zlib.compressobj(9), b""
    for _ in range(height):
        pixels += packer.compress(bytes(1 + 3 * width))
    body = pixels + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """Half a gigabyte of pixels."""
    return png(13_000, 13_000)


def small() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


HONEST = {f"{split}/{name}/0.png": small() for split in ("train", "test") for name in ("cat", "dog")}


def tar(path: Path) -> tarfile.TarFile:
    archive = tarfile.open(path, "w")  # noqa: SIM115 (used in a `with` block)
    for name, content in HONEST.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return archive


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: Callable[[], bytes] = small
) -> Callable[..., None]:
    def make(path: Path) -> None:
        with tar(path) as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            body = content()
            info.size = len(body) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(body))

    return make


def sparse_block(at: int, value: bytes) -> bytes:
    """A header in GNU's old format for sparse files, of one piece of no bytes, with `value` at byte `at`."""
    info = tarfile.TarInfo("train/cat/sparse.png")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = (b"%011o\0" % 0) * 2
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


MAP_GOES_ON = sparse_block(482, b"\1")


def sparse(path: Path) -> None:
    """A member of 10 GiB of which nothing is stored."""
    with tar(path) as archive:
        block = sparse_block(483, (1 << 95 | 10 * GIB).to_bytes(12, "big"))
        archive.fileobj.write(block)  # type: ignore[union-attr]
        archive.offset += len(block)


def blocks_of_a_map(path: Path) -> None:
    """Of 128 MiB: the map goes on from block to block."""
    more = (b"%011o\0" % 1) * 42 + b"\1" + bytes(7)
    with gzip.open(path, "wb", 1) as file:
        file.write(MAP_GOES_ON)
        for _ in range(128):
            file.write(more * 2**11)


def cut_map(path: Path) -> None:
    """A map that goes on after the end of the archive."""
    path.write_bytes(MAP_GOES_ON)


def numbers_of_a_map(path: Path) -> None:
    """Of 128 MiB, in the format of PAX."""
    headers = {"major": "1", "minor": "0", "name": "x", "realsize": "1"}
    info = tarfile.TarInfo("train/cat/sparse.png")
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in headers.items()}
    info.size = 1
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf(tarfile.PAX_FORMAT))
        file.write(b"999999999999\n" + b"1\n" * 249 + b"1")
        file.write(b"\n")
        for _ in range(128):
            file.write(b"1\n" * 2**19)


def nested(path: Path) -> None:
    """A long name of a long name of a long name …"""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
    path.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"abcd".ljust(512, b"\0")) * 2_000 + bytes(1_024))


def large_dictionary(path: Path) -> None:
    """An .xz of 101 KiB that asks for 1.5 GiB to be unpacked, and fills as much of them as follows."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(10):
            info = tarfile.TarInfo(f".hidden{number}")
            info.size = 64 * 2**20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    packed = bytearray(lzma.compress(file.getvalue(), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    end = 12 + (packed[12] + 1) * 4
    head = packed[12 : end - 4]
    head[head.index(b"\x21\x01") + 2] = 37  # the size of the dictionary
    packed[12:end] = head + zlib.crc32(head).to_bytes(4, "little")
    path.write_bytes(packed)


def long_header(kind: bytes) -> Callable[[Path], None]:
    """A name, or a header of PAX, of 700 MiB."""

    def make(path: Path) -> None:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = kind, 704 * 2**20
        one = gzip.compress(bytes(64 * 2**20), 1)
        path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + one * 11)

    return make


def zeros(path: Path) -> None:
    """10 GiB of zeros in a tar of 10 MiB."""
    info = tarfile.TarInfo("train/cat/zeros.png")
    info.size = 10 * GIB
    one = gzip.compress(bytes(64 * 2**20), 1)
    with path.open("wb") as file:
        file.write(gzip.compress(info.tobuf()))
        for _ in range(160):  # gzip's pieces, one after another, are one stream
            file.write(one)


def zipped(name: str, content: Callable[[], bytes] = small) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, pytest.MonkeyPatch.context() as patch:
            import warnings

            patch.setattr(warnings, "warn", lambda *args, **more: None)  # of a name twice
            for honest, body in HONEST.items():
                archive.writestr(honest, body)
            archive.writestr(name, content())

    return make


def many_scans() -> bytes:
    """A progressive JPEG with its last scan 20,000 times: each takes as long as the whole image."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (1_600, 1_600)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scan * 20_000 + whole[-2:]


OUTSIDE, NO_FILE = "points outside the archive", "is a link, a device or a sparse file"
TWICE, TOO_LARGE = "is a duplicate", "is 13000x13000"
ARCHIVES: dict[str, tuple[Callable[[Path], None], str]] = {
    "up.tar": (member("../escaped.png"), OUTSIDE),
    "inside-up.tar": (member("train/cat/../../../escaped.png"), OUTSIDE),
    "absolute.tar": (member("/tmp/escaped-by-fastcifar/train/cat/escaped.png"), OUTSIDE),
    "symlink.tar": (member("train/cat/link.png", tarfile.SYMTYPE, "/etc/passwd"), NO_FILE),
    "hardlink.tar": (member("train/cat/link.png", tarfile.LNKTYPE, "/etc/passwd"), NO_FILE),
    "device.tar": (member("train/cat/device.png", tarfile.CHRTYPE), NO_FILE),
    "block.tar": (member("train/cat/device.png", tarfile.BLKTYPE), NO_FILE),
    "fifo.tar": (member("train/cat/pipe.png", tarfile.FIFOTYPE), NO_FILE),
    "twice.tar": (member("train/cat/0.png"), TWICE),
    "sparse.tar": (sparse, "it has a sparse file"),
    "zeros.tar.gz": (zeros, "has 10737418240 bytes"),
    "name.tar.gz": (long_header(tarfile.GNUTYPE_LONGNAME), "a header has 738197504 bytes"),
    "pax.tar.gz": (long_header(tarfile.XHDTYPE), "a header has 738197504 bytes"),
    "map.tar.gz": (blocks_of_a_map, "it has a sparse file"),
    "pax-map.tar.gz": (numbers_of_a_map, "it has a sparse file"),
    "cut-map.tar": (cut_map, "it has a sparse file"),
    "nested.tar": (nested, "truncated or corrupt tar or zip archive"),
    "dictionary.tar.xz": (large_dictionary, "Memory usage limit exceeded"),
    "bomb.tar": (member("train/cat/bomb.png", content=bomb), TOO_LARGE),
    "first-bomb.tar": (member("train/aaa/bomb.png", content=bomb), TOO_LARGE),
    "up.zip": (zipped("../escaped.png"), OUTSIDE),
    "absolute.zip": (zipped("/tmp/escaped-by-fastcifar/train/cat/escaped.png"), OUTSIDE),
    "backslash.zip": (zipped("train\\cat\\..\\..\\..\\escaped.png"), "has a backslash in its name"),
    "twice.zip": (zipped("train/cat/0.png"), TWICE),
    "bomb.zip": (zipped("train/cat/bomb.png", bomb), TOO_LARGE),
    "scans.zip": (zipped("train/cat/scans.jpg", many_scans), "has over 100 scans"),
    "long.zip": (zipped(f"train/{'c' * 60_000}/0.png"), "has 60,000 characters; expected at most 255"),
    "zeros.zip": (zipped("train/cat/zeros.png", lambda: bytes(GIB // 2)), "it has over 67108864 bytes"),
}
REASONS = (OUTSIDE, NO_FILE, TWICE, "it has a sparse file", "has a backslash in its name")
QUICKLY_MADE = [name for name, (_, reason) in ARCHIVES.items() if reason in REASONS and not name.endswith(".gz")]

MEASURED = """
import atexit, sys
from fastcifar.cli import main

def tell():  # not ru_maxrss: a started program inherits that of the one which started it
    status = open("/proc/self/status").read()
    print("peak", status.split("VmHWM:")[1].split()[0], flush=True)

atexit.register(tell)
main(sys.argv[1:])
"""


def peak_mib(*args: object, cwd: Path) -> tuple[int, str, float]:
    """Exit code, stderr and the largest memory of a `fastcifar` process."""
    command = [sys.executable, "-c", MEASURED, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    return done.returncode, done.stderr, int(done.stdout.split("peak ")[1]) / 1024


@pytest.fixture(scope="module")
def usual_mib(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What an honest archive of four small images takes."""
    folder = tmp_path_factory.mktemp("honest")
    tar(folder / "honest.tar").close()
    code, errors, peak = peak_mib("convert", "--source", "honest.tar", cwd=folder)
    assert code == 0, errors
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ARCHIVES)[:: count(3, 1)])
def test_a_hostile_archive_is_refused(
    name: str, usual_mib: float, tmp_path: Path, tally: Callable[[str], None]
) -> None:
    work = tmp_path / "a" / "b" / "work"
    work.mkdir(parents=True)
    make, reason = ARCHIVES[name]
    make(work / name)
    before, free = contents(tmp_path), os.statvfs(tmp_path).f_bavail
    code, errors, peak = peak_mib("convert", "--source", name, cwd=work)
    line = error_line(errors)
    assert code == 4, line
    assert name in line
    assert reason in line
    found = contents(tmp_path)
    assert found == before
    assert not Path("/tmp/escaped-by-fastcifar").exists()
    assert not list(tmp_path.rglob("escaped*"))
    assert peak - usual_mib < MAX_MIB, f"{peak:.0f} MiB, where an honest archive takes {usual_mib:.0f}"
    assert (free - os.statvfs(tmp_path).f_bavail) * os.statvfs(tmp_path).f_frsize < GIB
    tally(f"{name}: refused, {peak - usual_mib:+.0f} MiB")


@pytest.mark.parametrize("name", QUICKLY_MADE)
def test_an_archive_that_would_write_elsewhere_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "a" / "b" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    make, reason = ARCHIVES[name]
    make(work / name)
    before = contents(tmp_path)
    result = CliRunner().invoke(main, ["convert", "--source", name])
    assert result.exit_code == 4
    assert reason in error_line(result.stderr)
    assert contents(tmp_path) == before
    assert not Path("/tmp/escaped-by-fastcifar").exists()


@pytest.mark.parametrize("name", ["many.tar.gz", "many.zip"])
def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each takes up to a kilobyte of memory, and a few bytes in an archive."""
    monkeypatch.setattr(archives, "MAX_FILES", 50)
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(51):
                archive.writestr(f"train/cat/{i}.png", b"")
        monkeypatch.delattr(zipfile, "ZipFile")  # they are counted before it reads them all
    else:
        with tarfile.open(path, "w:gz") as archive:
            for i in range(51):
                archive.addfile(tarfile.TarInfo(f"train/cat/{i}.png"))
    with pytest.raises(DataError, match="holds over 50 files; unpack it and give the folder"):
        open_source(path)


def test_an_xz_of_several_streams_and_padding_is_read_to_its_end(tmp_path: Path) -> None:
    tar(tmp_path / "plain.tar").close()
    whole, path = (tmp_path / "plain.tar").read_bytes(), tmp_path / "images.tar.xz"
    parts = whole[:700], whole[700:1_500], whole[1_500:]
    path.write_bytes(bytes(8).join(map(lzma.compress, parts)) + bytes(4))
    with archives.decompress(path) as stream:
        assert stream.read() == whole
    with open_source(path) as source:
        assert sum(map(len, source.splits.values())) == len(HONEST)
    path.write_bytes(lzma.compress(whole)[:-20])
    with pytest.raises(DataError, match="it has no end"):
        open_source(path)


def test_any_exception_of_pillow_is_an_error_in_one_line() -> None:
    """For an empty colour profile behind the pixels it is an IndexError."""
    whole = small()
    end = whole.index(b"IEND") - 4
    chunk = bytes(4) + b"iCCP" + zlib.crc32(b"iCCP").to_bytes(4, "big")
    with pytest.raises(ImageError, match="not a readable image"):
        decode_image(whole[:end] + chunk + whole[end:], AS_IT_IS)


def test_gigantic_official_files_are_not_read_for_their_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "_load", None)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").touch()
    (folder / "data_batch_1").touch()
    os.truncate(folder / "data_batch_1", 2**40)
    with pytest.raises(DataError, match="not the official CIFAR-10 files"):
        open_source(folder)
    path = tmp_path / "cifar-10-python.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/batches.meta"))
    os.truncate(path, 2**40)
    with pytest.raises(DataError, match="over 1 GiB follow the end of the archive"):
        open_source(path)


def test_loops_of_links_are_not_followed(tmp_path: Path) -> None:
    """Fifty of them, each within each other: six million paths."""
    for name, content in HONEST.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for i in range(50):
        (tmp_path / f"l{i}").symlink_to(".")
    with open_source(tmp_path) as source:
        assert sum(map(len, source.splits.values())) == len(HONEST)
