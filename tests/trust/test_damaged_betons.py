"""A damaged beton with a manifest never reaches a loader; without one, a damaged structure never does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar import make_loader
from fastcifar.data import tables
from fastcifar.data.beton import Beton, open_beton
from fastcifar.data.manifest import manifest_path
from fastcifar.data.tables import TABLES_START
from fastcifar.errors import DataError
from tests.test_beton import HOSTILE, rewrite
from tests.trust.cases import LONGEST_S, contents, count, error_line, is_refused, run_cli, write_matching_manifest

Tally = Callable[[str], None]
WITHIN_S = 2.0
NUM = 30


@pytest.fixture
def path(own_data_dir: Path) -> Path:
    """A beton with pages of 2 MiB, which is soon hashed."""
    return own_data_dir / "train.beton"


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def seconds_until_refused(path: Path, in_memory: bool) -> float:
    began = time.monotonic()
    with pytest.raises(DataError) as refusal:
        open_beton(path, in_memory=in_memory)
    assert is_refused(refusal.value), refusal.value
    return time.monotonic() - began


def opened_or_refused(path: Path) -> Beton | None:
    """The beton, or None if it was refused as it should be."""
    try:
        return open_beton(path)
    except DataError as error:
        if not is_refused(error):
            raise
        return None


def table_ranges(path: Path) -> list[range]:
    """The ranges of header, descriptors, records and allocations."""
    size = path.stat().st_size
    return [range(TABLES_START + NUM * 24), range(size - NUM * 24, size)]


def test_every_flipped_bit_is_refused_with_the_manifest(path: Path, tally: Tally) -> None:
    random, num, longest = np.random.default_rng(1), count(60, 10_000), 0.0
    anywhere = np.arange(path.stat().st_size)
    in_tables = np.concatenate([np.array(part) for part in table_ranges(path)])
    for i in range(num):
        position, bit = int(random.choice((anywhere, in_tables)[i % 2])), int(random.integers(8))
        flip(path, position, bit)
        longest = max(longest, seconds_until_refused(path, in_memory=i % 4 < 2))
        flip(path, position, bit)
    assert open_beton(path).verified
    assert longest < WITHIN_S
    tally(f"{num:,} flipped bits, all refused; the longest took {longest:.3f} s")


def test_every_flipped_bit_of_a_manifest_is_refused_or_says_the_same(path: Path, tally: Tally) -> None:
    random, num, same = np.random.default_rng(2), count(60, 2_000), 0
    expected, file = open_beton(path), manifest_path(path)
    for _ in range(num):
        position, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
        flip(file, position, bit)
        found = opened_or_refused(path)
        if found is not None:  # a blank became another blank
            same += 1
            assert found.class_names == expected.class_names
            assert np.array_equal(found.mean, expected.mean)
            assert np.array_equal(found.std, expected.std)
        flip(file, position, bit)
    assert same < num / 20
    tally(f"{num:,} flipped bits of the manifest: {num - same:,} refused, {same} between its words")


def test_every_truncation_is_refused(path: Path, tally: Tally) -> None:
    num, whole = count(40, 500), path.stat().st_size
    lengths = np.random.default_rng(3).integers(0, whole, num)
    for length in sorted({*lengths.tolist(), whole - 1, 1, 0}, reverse=True):
        os.truncate(path, length)
        seconds_until_refused(path, in_memory=length % 2 == 0)
        manifest_path(path).rename(path.parent / "kept")
        seconds_until_refused(path, in_memory=length % 2 == 1)
        (path.parent / "kept").rename(manifest_path(path))
    tally(f"{num} truncations, each with its manifest and without: all refused")


def test_noise_is_refused(path: Path, tally: Tally) -> None:
    random, num, whole = np.random.default_rng(4), count(10, 100), path.read_bytes()
    for i in range(num):
        kept = int(random.choice((0, 24, TABLES_START, TABLES_START + NUM * 24)))  # an honest beginning, then noise
        path.write_bytes(whole[:kept] + random.bytes(int(random.integers(0, 3 * 2**20))))
        seconds_until_refused(path, in_memory=i % 2 == 0)
    tally(f"{num} files of noise: all refused")


@pytest.mark.slow
def test_flipped_bits_without_a_manifest_are_refused_or_harmless(path: Path, tmp_path: Path, tally: Tally) -> None:
    """What is opened gives N images, and labels that a class can have: in a process of its own, with FFCV too."""
    random, num = np.random.default_rng(5), count(100, 3_000)
    manifest_path(path).unlink()
    expected = open_beton(path)
    in_tables = np.concatenate([np.array(part) for part in table_ranges(path)])
    kept = tmp_path / "opened"
    kept.mkdir()
    refused = opened = 0
    for i in range(num):
        position, bit = int(random.choice(in_tables)), int(random.integers(8))
        flip(path, position, bit)
        found = opened_or_refused(path)
        if found is None:
            refused += 1
        else:
            opened += 1
            assert not found.verified
            assert found.images(np.arange(NUM)).shape == (NUM, 32, 32, 3)
            assert 0 <= found.labels.min() <= found.labels.max() < tables.MAX_CLASSES
            assert (found.offsets == expected.offsets).all() or found.labels.tolist() == expected.labels.tolist()
            if len(list(kept.iterdir())) < count(2, 40):
                shutil.copy(path, kept / f"{i}.beton")
        flip(path, position, bit)
    code = (
        "import sys, pathlib; from fastcifar import make_loader\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        f"    batches = list(make_loader(path, loader='ffcv', batch_size={NUM}).epoch(0))\n"
        f"    assert sum(len(batch.images) for batch in batches) == {NUM}\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(kept)], timeout=LONGEST_S, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    tally(f"{num:,} flipped bits of the tables, no manifest: {refused:,} refused, {opened} opened without harm")


FIELDS = {
    "header": tables.HEADER.names,
    "records": tables.RECORD.names,
    "allocations": tables.ALLOCATION.names,
}
NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 64),
    st.sampled_from([2**n + d for n in (8, 11, 16, 21, 22, 31, 32, 62, 63) for d in (-1, 0, 1)]),
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from([(table, name) for table, names in FIELDS.items() for name in names or ()]),
        st.integers(0, NUM - 1),
        NUMBERS,
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=count(100, 5_000),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=CHANGES)
def test_any_values_in_the_tables_are_refused_or_harmless(path: Path, changes: list[Any]) -> None:
    """Several fields at once, with numbers near what is allowed; without a manifest."""
    whole = path.read_bytes()
    manifest_path(path).unlink(missing_ok=True)

    def damage(header: Any, records: Any, allocations: Any) -> None:
        for (table, name), row, number in changes:
            found = {"header": header, "records": records, "allocations": allocations}[table]
            bits = np.array([number], np.uint64).view(np.uint8)[: found.dtype[name].itemsize]
            found[name][0 if table == "header" else row] = bits.view(found.dtype[name])[0]

    rewrite(path, damage)
    try:
        found = opened_or_refused(path)
        if found is not None:
            size = np.prod(found.image_shape)
            assert (found.offsets >= TABLES_START).all()
            assert (found.offsets + size <= found.num_bytes).all()
            assert found.images(np.arange(len(found))).shape == (len(found), *found.image_shape)
            assert 0 <= found.labels.min() <= found.labels.max() < tables.MAX_CLASSES
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_field_never_reaches_a_loader(path: Path, name: str, with_manifest: bool) -> None:
    damage, _ = HOSTILE[name]
    rewrite(path, damage)
    if with_manifest:
        write_matching_manifest(path)
    else:
        manifest_path(path).unlink()
    for loader in ("resident", "ffcv", "albumentations"):
        with pytest.raises(DataError) as refusal:
            make_loader(path, loader=loader, batch_size=4)
        assert is_refused(refusal.value)


@pytest.mark.slow
def test_commands_refuse_a_hostile_beton_in_one_line(path: Path, tally: Tally) -> None:
    names, whole = list(HOSTILE)[:: count(13, 1)], contents(path.parent)
    num = 0
    for name in names:
        rewrite(path, HOSTILE[name][0])
        write_matching_manifest(path)
        for command in (("inspect", path), ("train", "--data-dir", path.parent, "--model", "small")):
            code, out, errors = run_cli(*command, cwd=path.parent)
            assert (code, out) == (4, ""), (name, errors)
            assert str(path) in error_line(errors)
            num += 1
        for file, content in whole.items():
            (path.parent / file).write_bytes(content)
    tally(f"{num} commands given a hostile beton: exit code 4, one line")
