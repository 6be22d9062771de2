"""File systems and containers without locks, fsync, links, …: training and conversion continue, with one warning."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from fastcifar import make_loader, open_beton
from fastcifar.converters import Source, convert
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data.manifest import manifest_path
from fastcifar.errors import DataError, FastcifarError
from fastcifar.io import atomic
from fastcifar.io.atomic import _pid_namespace, fsync, new_file, replace, write_text
from fastcifar.io.locks import LOCK_FILE, NETWORK, _file_system, lock_folder
from fastcifar.io.paths import link_or_copy, make_folder
from tests.trust.cases import contents


@pytest.fixture(autouse=True)
def no_warnings_yet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(atomic, "_WARNED", set())
    caplog.set_level(logging.WARNING)


@pytest.fixture
def source() -> Source:
    return synthetic_source(30, 20)


def refusing(code: int) -> Callable[..., Any]:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def the_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = (record for record in caplog.records if record.name != "fastcifar.converters.summary")
    return record.getMessage()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EIO])
def test_without_locks_it_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    for _ in range(2):
        with lock_folder(tmp_path, "in use"), lock_folder(tmp_path):
            pass
    assert the_warning(caplog).startswith(f"{tmp_path}: this file system has no locks ({os.strerror(code)})")


def test_a_lock_that_another_holds_is_an_error(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(FastcifarError, match=f"{tmp_path}: in use"),
        lock_folder(tmp_path, "in use"),
    ):
        pass


def test_where_machines_share_a_file_system_a_file_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.io.locks._file_system", lambda folder: "nfs4")
    with lock_folder(tmp_path), (tmp_path / LOCK_FILE).open("r+") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(FastcifarError, match=f"{tmp_path}: in use"), lock_folder(tmp_path, "in use"):
            pass
    (tmp_path / LOCK_FILE).unlink()
    victim = tmp_path / "victim"
    (tmp_path / LOCK_FILE).symlink_to(victim)
    with lock_folder(tmp_path):  # the folder itself
        assert not victim.exists()


def test_the_type_of_a_file_system_is_that_of_the_system(tmp_path: Path) -> None:
    assert _file_system(Path("/proc")) == "proc"
    assert _file_system(tmp_path) not in NETWORK


def test_a_process_that_is_forked_does_not_hold_a_lock(tmp_path: Path) -> None:
    (read, write), (has_begun, begin) = os.pipe(), os.pipe()
    with lock_folder(tmp_path):
        child = os.fork()
        if not child:
            os.write(begin, b"x")
            os.read(read, 1)
            os._exit(0)
        os.read(has_begun, 1)
    try:
        with lock_folder(tmp_path, "in use"):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    calls: list[str] = []
    real = os.replace

    def renamed(before: Path, after: Path) -> None:
        calls.append(after.name)
        real(before, after)

    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("synced"))
    monkeypatch.setattr(os, "replace", renamed)
    write_text(tmp_path / "file", "text")
    assert calls == ["synced", "file"]
    calls.clear()
    convert(source, tmp_path)
    names = ["train.beton", "train.beton.json", "test.beton", "test.beton.json"]
    assert [call for call in calls if call != "synced"] == names
    assert calls[:2] == ["synced"] * 2  # both betons, before either is in place
    for name in names[::2]:
        assert calls[calls.index(name) - 1] == "synced"  # its manifest


@pytest.mark.parametrize("of", ["files", "folders"])
def test_without_fsync_betons_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: Source, of: str
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (of == "folders"):
            raise OSError(errno.EINVAL if of == "files" else errno.EIO, "refused")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    convert(source, tmp_path / "data")
    atomic.write_text(tmp_path / "data" / "more", "text")
    assert open_beton(tmp_path / "data" / "train.beton").verified
    assert str(tmp_path / "data") in the_warning(caplog)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_lost_data_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", refusing(code))
    with (tmp_path / "a").open("wb") as file, pytest.raises(OSError, match=os.strerror(code)):
        fsync(file, tmp_path / "a")


def test_without_renaming_over_a_file_the_existing_one_is_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: Source
) -> None:
    real = os.rename

    def rename(before: Path, after: Path) -> None:
        if os.path.lexists(after):
            raise FileExistsError(errno.EEXIST, "File exists")
        real(before, after)

    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", rename)
    for _ in range(2):
        convert(source, tmp_path)
    for text in ("one", "two", "three"):
        atomic.write_bytes(tmp_path / "last", text.encode(), backup=tmp_path / "previous")
    assert open_beton(tmp_path / "train.beton").verified
    names = {"last", "previous", *(f"{split}.beton{end}" for split in ("train", "test") for end in ("", ".json"))}
    assert set(contents(tmp_path)) == names
    assert (tmp_path / "previous").read_text() == "two"
    assert "cannot rename over a file" in the_warning(caplog)


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    real = os.rename

    def rename(before: Path, after: Path) -> None:
        if Path(before).name == "new":
            raise PermissionError(errno.EPERM, "no")
        real(before, after)

    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError):
        replace(tmp_path / "new", tmp_path / "old")
    assert contents(tmp_path) == {"new": b"new", "old": b"old"}


def test_without_memfd_there_is_another_private_copy(own_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "memfd_create", refusing(errno.ENOSYS))
    found = open_beton(own_data_dir / "train.beton", in_memory=True)
    (own_data_dir / "train.beton").write_bytes(b"")
    assert found.images(range(30)).any()


def test_without_links_there_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", refusing(errno.EPERM))
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("text")
    link_or_copy(tmp_path / "from", tmp_path / "folder")
    link_or_copy(tmp_path / "from" / "file", tmp_path / "file")
    assert contents(tmp_path) == dict.fromkeys(("from/file", "folder/file", "file"), b"text")


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FastcifarError, match="file: a file, not a folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(FastcifarError, match="inside a file"):
        make_folder(tmp_path / "file" / "a")


def test_the_manifest_is_next_to_the_link_or_next_to_the_file(own_data_dir: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for name in ("one", "two"):
        (links / f"{name}.beton").symlink_to(own_data_dir / "train.beton" if name == "one" else "one.beton")
        assert open_beton(links / f"{name}.beton").verified
        assert make_loader(links / f"{name}.beton", batch_size=10).beton.class_names[0] != "0"
    manifest_path(own_data_dir / "train.beton").rename(links / "one.beton.json")
    assert open_beton(links / "one.beton").verified
    assert not open_beton(links / "two.beton").verified
    (links / "two.beton.json").symlink_to("nowhere")
    with pytest.raises(DataError, match="two.beton.json: not a manifest of fastcifar \\(a link to nowhere"):
        open_beton(links / "two.beton")


@pytest.mark.parametrize("kept", ["file", "link", "both", "nothing"])
def test_converting_onto_a_link_replaces_its_target(tmp_path: Path, source: Source, kept: str) -> None:
    """`kept`: where the manifest was before."""
    store, data = tmp_path / "store", tmp_path / "data"
    convert(synthetic_source(40, 20), store)
    data.mkdir()
    (data / "train.beton").symlink_to("../store/train.beton")
    manifest = store / "train.beton.json"
    if kept in ("link", "both"):
        (data / manifest.name).write_bytes(manifest.read_bytes())
    if kept in ("link", "nothing"):
        manifest.unlink()
    convert(source, data)
    assert (data / "train.beton").readlink() == Path("../store/train.beton")
    assert len(open_beton(data / "train.beton")) == len(open_beton(store / "train.beton")) == 30
    assert open_beton(data / "train.beton").verified
    assert open_beton(store / "train.beton").verified or kept == "link"
    assert not [name for folder in (store, data) for name in contents(folder) if name.startswith(".")]


def test_converting_onto_a_link_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    store, data = tmp_path / "store", tmp_path / "data"
    convert(synthetic_source(40, 20), store)
    data.mkdir()
    for file in sorted(store.iterdir()):
        (data / file.name).symlink_to(file)
    before = contents(store)
    monkeypatch.setattr(os, "replace", refusing(errno.ENOSPC))
    with pytest.raises(FastcifarError, match="nothing was replaced"):
        convert(source, data)
    assert (store / "train.beton").read_bytes() == before["train.beton"]
    with lock_folder(store), pytest.raises(FastcifarError, match="another conversion is writing here"):
        convert(source, data)


def test_converting_onto_a_broken_link_is_an_error(tmp_path: Path, source: Source) -> None:
    (tmp_path / "train.beton").symlink_to("gone/train.beton")
    with pytest.raises(FastcifarError, match="a link to gone/train.beton, which does not exist; remove the link"):
        convert(source, tmp_path)
    (tmp_path / "gone").mkdir()
    convert(source, tmp_path)  # the folder is there: the file is made
    assert open_beton(tmp_path / "train.beton").verified
    (tmp_path / "test.beton").unlink()
    (tmp_path / "test.beton").symlink_to("test.beton")
    with pytest.raises(FastcifarError, match="a loop of links"):
        convert(source, tmp_path)


def test_a_new_file_that_fails_its_check_leaves_the_existing_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with new_file(path, b"one") as partial:
        assert partial.read_bytes() == b"one"
        assert not path.exists()
    with pytest.raises(ValueError, match="no"), new_file(path, b"two") as partial:
        raise ValueError("no")
    assert contents(tmp_path) == {"a.bin": b"one"}


def test_two_processes_can_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    with new_file(path, b"one") as first:
        monkeypatch.setattr(os, "getpid", os.getppid)
        with new_file(path, b"two"):
            assert first.read_bytes() == b"one"
        assert path.read_bytes() == b"two"
    assert contents(tmp_path) == {"a.bin": b"one"}


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    for process in (2**22 + 1, os.getppid()):  # above any on Linux; one that may still be writing
        (tmp_path / f".{process}.{_pid_namespace()}.a.bin.partial").touch()
    write_text(tmp_path / "a.bin", "one")
    assert contents(tmp_path) == {"a.bin": b"one", f".{os.getppid()}.{_pid_namespace()}.a.bin.partial": b""}


def test_what_another_machine_may_be_writing_is_left_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    with new_file(path, b"one") as first:
        monkeypatch.setattr("fastcifar.io.atomic._pid_namespace", lambda: "another")
        monkeypatch.setattr(os, "kill", Mock(side_effect=ProcessLookupError))  # it has no process of this number
        with new_file(path, b"two") as second:
            assert first.read_bytes() == b"one"
            assert second != first  # containers number their processes from 1
    assert contents(tmp_path) == {"a.bin": b"one"}
    first.touch()
    os.utime(first, (time.time() - 25 * 3600,) * 2)
    write_text(path, "three")
    assert contents(tmp_path) == {"a.bin": b"three"}
