import pytest

from flexkv_core.cli.machine import find_machine, machine_problems
from flexkv_core.config import parse_config

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """Makes the root of a machine with so many GiB free; returns its problems with options."""

    def make(free_gib, huge_pages=0):
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text(
            f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {free_gib * GIB // 1024} kB\n"
            f"HugePages_Free: {huge_pages}\nHugepagesize: 2048 kB\n"
        )
        found = find_machine(tmp_path)

        def problems(**options):
            return list(machine_problems(found, parse_config(options), tmp_path))

        return found, problems

    return make


def test_a_host_tier_that_fits_is_no_problem(machine):
    found, problems = machine(free_gib=32)
    assert found.default_cache_bytes == 15 * GIB
    assert problems() == problems(cpu_cache_gb=30) == []


def test_a_host_tier_that_does_not_fit_says_what_would(machine):
    _, problems = machine(free_gib=32)
    [problem] = problems(cpu_cache_gb=31)
    assert "set cpu_cache_gb to at most 30.0" in problem


def test_no_room_for_a_host_tier_of_any_size_is_one_problem(machine):
    _, problems = machine(free_gib=1)
    [problem] = problems()
    assert "1.0 GiB are free here (this machine has 64.0 GiB)" in problem


def test_huge_pages_must_have_been_reserved(machine):
    _, problems = machine(free_gib=32, huge_pages=512)
    assert problems(cpu_cache_gb=1, use_hugepage_cpu_buffer=True) == []
    [problem] = problems(cpu_cache_gb=2, use_hugepage_cpu_buffer=True)
    assert "raise vm.nr_hugepages" in problem


def test_gpus_are_named_by_their_driver(machine, tmp_path):
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t Some GPU\nIRQ: 5\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\nMemAvailable: 1 kB\n")
    assert find_machine(tmp_path).gpus == ["Some GPU"]
