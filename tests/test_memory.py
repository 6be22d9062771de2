"""Free memory: of the machine, of every control group of the process, and within its ulimits."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fastcifar.system.memory import free_memory

MIB = 2**20
V1_UNLIMITED = 9223372036854771712
MOUNTS = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 {root1} /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
36 31 0:33 {root2} {v2} rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine with 1,000 MiB free and no control group."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 9999999 kB\nMemAvailable: {1_000 * 1024} kB\n")
    write(tmp_path / "proc/self/status", f"Name:\tpython\nVmSize:\t{100 * 1024} kB\nVmData:\t{50 * 1024} kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def group(folder: Path, limit: object, used: int, cache: int = 0, v1: bool = False, **more: int) -> None:
    """A control group; MiB, or text."""
    in_bytes = limit * MIB if isinstance(limit, int) and limit < 10**9 else limit
    names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if v1 else ("max", "current", "inactive_file")
    write(folder / f"memory.{names[0]}", in_bytes)
    write(folder / f"memory.{names[1]}", used * MIB)
    stat = {names[2]: cache * MIB, **{key: value * MIB for key, value in more.items()}}
    write(folder / "memory.stat", "".join(f"{key} {value}\n" for key, value in stat.items()))


def mounts(root: Path, own: str, root1: str = "/", root2: str = "/", v2: str = "/sys/fs/cgroup/unified") -> None:
    write(root / "proc/self/cgroup", own)
    write(root / "proc/self/mountinfo", MOUNTS.format(root1=root1, root2=root2, v2=v2))


def test_without_control_groups_it_is_the_memory_of_the_machine(machine: Path) -> None:
    assert free_memory(machine) == 1_000 * MIB
    write(machine / "proc/meminfo", f"MemFree: {300 * 1024} kB\nCached: {100 * 1024} kB\n")  # of an old kernel
    assert free_memory(machine) == 400 * MIB
    (machine / "proc/meminfo").unlink()
    assert free_memory(machine) > 0


@pytest.mark.parametrize("limited", ["own", "above", "top"])
def test_every_group_of_version_2_counts(machine: Path, limited: str) -> None:
    mounts(machine, "0::/user.slice/job\n", v2="/sys/fs/cgroup")
    top = machine / "sys/fs/cgroup"
    for name, folder in (("own", top / "user.slice/job"), ("above", top / "user.slice"), ("top", top)):
        group(folder, 500 if name == limited else "max", 300, cache=40)
    assert free_memory(machine) == 240 * MIB


def test_throttled_memory_is_not_free(machine: Path) -> None:
    mounts(machine, "0::/job\n", v2="/sys/fs/cgroup")
    group(machine / "sys/fs/cgroup/job", 900, 300)
    write(machine / "sys/fs/cgroup/job/memory.high", 400 * MIB)
    assert free_memory(machine) == 100 * MIB
    group(machine / "sys/fs/cgroup/job", 900, 600)
    assert free_memory(machine) == 0


@pytest.mark.parametrize("limited", ["own", "above"])
def test_every_group_of_version_1_counts(machine: Path, limited: str) -> None:
    mounts(machine, "4:cpu,cpuacct:/other\n3:memory:/docker/job\n0::/\n")
    top = machine / "sys/fs/cgroup/memory"
    group(top, V1_UNLIMITED, 5_000, v1=True)
    for name, folder in (("own", top / "docker/job"), ("above", top / "docker")):
        group(folder, 500 if name == limited else V1_UNLIMITED, 300, cache=40, v1=True)
    assert free_memory(machine) == 240 * MIB


def test_a_limit_above_what_a_container_sees_counts(machine: Path) -> None:
    """The container's own group is mounted where the whole tree usually is, and its path is that of the machine."""
    mounts(machine, "3:memory:/docker/job/inner\n", root1="/docker/job")
    group(machine / "sys/fs/cgroup/memory/inner", V1_UNLIMITED, 300, v1=True, hierarchical_memory_limit=450)
    assert free_memory(machine) == 150 * MIB
    mounts(machine, "3:memory:/elsewhere\n", root1="/docker/job")
    group(machine / "sys/fs/cgroup/memory", 400, 300, v1=True)
    assert free_memory(machine) == 100 * MIB


def test_groups_are_found_where_they_are_mounted(machine: Path) -> None:
    mounts(machine, "0::/job\n", v2="/my\\040groups")
    group(machine / "my groups/job", 400, 300)
    assert free_memory(machine) == 100 * MIB


def test_groups_are_found_in_the_usual_places(machine: Path) -> None:
    """/proc/self/mountinfo is hidden in some containers."""
    group(machine / "sys/fs/cgroup", 400, 300)
    assert free_memory(machine) == 100 * MIB
    group(machine / "sys/fs/cgroup/memory", 350, 300, v1=True)
    assert free_memory(machine) == 50 * MIB


@pytest.mark.parametrize("text", ["", "max max", "-", "\0"])
def test_unreadable_limits_are_ignored(machine: Path, text: str) -> None:
    for name in ("proc/self/cgroup", "proc/self/mountinfo", "proc/self/status", "sys/fs/cgroup/memory.current"):
        write(machine / name, text)
    write(machine / "sys/fs/cgroup/memory.max", text)
    assert free_memory(machine) == 1_000 * MIB


@pytest.mark.parametrize(("kind", "left"), [(resource.RLIMIT_AS, 200), (resource.RLIMIT_DATA, 250)])
def test_the_limits_of_the_process_count(machine: Path, monkeypatch: pytest.MonkeyPatch, kind: int, left: int) -> None:
    infinite = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (300 * MIB, -1) if asked == kind else infinite)
    assert free_memory(machine) == left * MIB
