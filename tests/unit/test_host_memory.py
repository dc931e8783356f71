"""What a process may still take, read from folders as Linux shows them: never more than its container may."""

from pathlib import Path

import pytest

from fednano.host_memory import free_memory_bytes

MIB = 1 << 20
# What version 1 says where there is no limit.
NO_LIMIT = 9223372036854771712


def meminfo(folder: Path, available_mib: int = 8000) -> Path:
    file = folder / "meminfo"
    file.write_text(f"MemTotal: {2 * available_mib * 1024} kB\nMemAvailable:   {available_mib * 1024} kB\n")
    return file


def version_1(folder: Path, limit_bytes: int, taken_mib: int, cached_mib: int = 0) -> Path:
    group = folder / "cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit_bytes}\n")
    (group / "memory.usage_in_bytes").write_text(f"{taken_mib * MIB}\n")
    # The group's own figure comes first, and with those below it last.
    (group / "memory.stat").write_text(f"cache 1\ninactive_file 1\ntotal_inactive_file {cached_mib * MIB}\n")
    return folder / "cgroup"


def version_2(folder: Path, limit: str, taken_mib: int, cached_mib: int = 0) -> Path:
    group = folder / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{taken_mib * MIB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {cached_mib * MIB}\n")
    return group


def test_a_container_of_an_older_engine_has_its_limit_in_version_1(tmp_path: Path) -> None:
    cgroups = version_1(tmp_path, 2000 * MIB, taken_mib=500)
    assert free_memory_bytes(meminfo(tmp_path), cgroups) == 1500 * MIB


def test_a_container_of_a_newer_engine_has_its_limit_in_version_2(tmp_path: Path) -> None:
    cgroups = version_2(tmp_path, str(2000 * MIB), taken_mib=500)
    assert free_memory_bytes(meminfo(tmp_path), cgroups) == 1500 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_the_kernel_keeps_are_given_back(tmp_path: Path, version: int) -> None:
    """A model that was read from disk lies there twice, and once only by courtesy."""
    if version == 1:
        cgroups = version_1(tmp_path, 2000 * MIB, taken_mib=1900, cached_mib=900)
    else:
        cgroups = version_2(tmp_path, str(2000 * MIB), taken_mib=1900, cached_mib=900)
    assert free_memory_bytes(meminfo(tmp_path), cgroups) == 1000 * MIB


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    assert free_memory_bytes(meminfo(tmp_path), version_1(tmp_path, NO_LIMIT, taken_mib=500)) == 8000 * MIB
    (tmp_path / "two").mkdir()
    assert free_memory_bytes(meminfo(tmp_path), version_2(tmp_path / "two", "max", taken_mib=500)) == 8000 * MIB
    assert free_memory_bytes(meminfo(tmp_path), tmp_path / "none") == 8000 * MIB


def test_a_machine_with_less_than_the_limit_decides(tmp_path: Path) -> None:
    cgroups = version_1(tmp_path, 2000 * MIB, taken_mib=500)
    assert free_memory_bytes(meminfo(tmp_path, available_mib=700), cgroups) == 700 * MIB


def test_more_than_the_limit_taken_leaves_nothing(tmp_path: Path) -> None:
    cgroups = version_2(tmp_path, str(100 * MIB), taken_mib=500)
    assert free_memory_bytes(meminfo(tmp_path), cgroups) == 0


def test_a_system_that_says_nothing_is_not_guessed(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path / "meminfo", tmp_path / "cgroup") is None
