from pathlib import Path

import pytest

from flexkv_core.data.host_memory import check_host_bytes, default_cache_bytes, host_memory
from flexkv_core.errors import ConfigError

GIB = 2**30
NO_LIMIT_V1 = 9223372036854771712


class Machine:
    """A root folder with as much of /proc and /sys as memory limits need."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", meminfo(total_gib=256, available_gib=200))

    def write(self, path: str, text: str | int) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    def v1(self, group: str, limit: int, usage: int = 0, cached: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory{group}"
        self.write(f"{folder}/memory.limit_in_bytes", limit)
        self.write(f"{folder}/memory.usage_in_bytes", usage)
        self.write(f"{folder}/memory.stat", f"rss 1\ntotal_inactive_file {cached}")

    def v2(self, group: str, limit: int | str, usage: int = 0, cached: int = 0) -> None:
        folder = f"sys/fs/cgroup{group}"
        self.write(f"{folder}/memory.max", limit)
        self.write(f"{folder}/memory.high", "max")
        self.write(f"{folder}/memory.current", usage)
        self.write(f"{folder}/memory.stat", f"anon 1\nactive_file {cached}\ninactive_file 0")

    def free_gib(self) -> float:
        return host_memory(self.root).free_bytes / GIB


def meminfo(total_gib: float, available_gib: float) -> str:
    kib = 2**20
    return (
        f"MemTotal:       {int(total_gib * kib)} kB\n"
        f"MemFree:        {kib} kB\n"
        f"MemAvailable:   {int(available_gib * kib)} kB\n"
        "HugePages_Total:       0"
    )


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_cgroups_what_is_available_is_free(machine):
    assert machine.free_gib() == 200


def test_this_machine_has_memory():
    assert host_memory().free_bytes > 0


def test_a_v2_limit_bounds_what_is_free(machine):
    machine.write("proc/self/cgroup", "0::/pod/engine")
    machine.v2("/pod/engine", 32 * GIB, usage=8 * GIB)

    assert machine.free_gib() == 24
    assert host_memory(machine.root).limit == "this container may use 32.0 GiB"


def test_a_limit_further_up_bounds_too(machine):
    machine.write("proc/self/cgroup", "0::/pod/engine/worker")
    machine.v2("/pod/engine/worker", "max")
    machine.v2("/pod/engine", 64 * GIB, usage=1 * GIB)
    machine.v2("/pod", 16 * GIB, usage=12 * GIB)

    assert machine.free_gib() == 4


def test_a_container_whose_cgroup_is_mounted_as_the_root_finds_its_limit(machine):
    machine.write("proc/self/cgroup", "0::/docker/0123/../engine")
    machine.v2("", 32 * GIB, usage=8 * GIB)

    assert machine.free_gib() == 24


def test_a_path_above_the_mount_is_not_followed(machine):
    machine.write("proc/self/cgroup", "0::/../../elsewhere")
    machine.write("sys/elsewhere/memory.max", 1 * GIB)
    machine.v2("", 32 * GIB)

    assert machine.free_gib() == 32


def test_memory_high_bounds_as_memory_max_does(machine):
    machine.write("proc/self/cgroup", "0::/pod")
    machine.v2("/pod", 64 * GIB)
    machine.write("sys/fs/cgroup/pod/memory.high", 10 * GIB)

    assert machine.free_gib() == 10


def test_a_v1_limit_bounds_what_is_free(machine):
    machine.write("proc/self/cgroup", "9:cpu,cpuacct:/\n4:memory:/docker/0123\n0::/")
    machine.v1("", NO_LIMIT_V1, usage=60 * GIB)
    machine.v1("/docker/0123", 32 * GIB, usage=8 * GIB)

    assert machine.free_gib() == 24


def test_a_v1_cgroup_without_a_limit_is_bounded_by_the_machine(machine):
    machine.write("proc/self/cgroup", "4:memory:/")
    machine.v1("", NO_LIMIT_V1, usage=60 * GIB)

    assert machine.free_gib() == 200
    assert host_memory(machine.root).limit == "this machine has 256.0 GiB"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_file_pages_count_as_free(machine, version):
    machine.write("proc/self/cgroup", "4:memory:/pod\n0::/pod")
    getattr(machine, version)("/pod", 32 * GIB, usage=31 * GIB, cached=20 * GIB)

    assert machine.free_gib() == 21


def test_a_limit_below_the_usage_leaves_nothing(machine):
    machine.write("proc/self/cgroup", "0::/pod")
    machine.v2("/pod", 8 * GIB, usage=9 * GIB)

    assert machine.free_gib() == 0


def test_a_limit_whose_usage_cannot_be_read_still_bounds(machine):
    machine.write("proc/self/cgroup", "0::/pod")
    machine.write("sys/fs/cgroup/pod/memory.max", 8 * GIB)

    assert machine.free_gib() == 8


def test_the_default_is_half_of_what_is_free_after_the_reserve(machine):
    assert default_cache_bytes(1, machine.root) == 99 * GIB


def test_the_default_is_shared_by_the_engines_of_a_node(machine):
    assert default_cache_bytes(3, machine.root) == 33 * GIB


def test_the_default_is_bounded(machine):
    machine.write("proc/meminfo", meminfo(total_gib=2048, available_gib=2000))

    assert default_cache_bytes(1, machine.root) == 256 * GIB
    assert default_cache_bytes(8, machine.root) == 32 * GIB


def test_the_default_is_nothing_where_there_is_no_room(machine):
    machine.write("proc/meminfo", meminfo(total_gib=4, available_gib=1))

    assert default_cache_bytes(1, machine.root) == 0


def test_what_fits_beside_the_reserve_is_accepted(machine):
    check_host_bytes(198 * GIB, machine.root)


def test_what_does_not_fit_is_refused_with_what_would(machine):
    machine.write("proc/self/cgroup", "0::/pod")
    machine.v2("/pod", 32 * GIB, usage=int(1.95 * GIB))

    with pytest.raises(ConfigError) as caught:
        check_host_bytes(64 * GIB, machine.root)

    assert str(caught.value) == (
        "cpu_cache_gb asks for 64.0 GiB, but only 30.0 GiB are free here (this container may use "
        "32.0 GiB) and the engine needs 2.0 of them: set cpu_cache_gb to at most 28.0"
    )
    check_host_bytes(28 * GIB, machine.root)


def test_where_nothing_fits_no_size_is_advised(machine):
    machine.write("proc/meminfo", meminfo(total_gib=4, available_gib=2.05))

    with pytest.raises(ConfigError, match="free memory, or give the container more"):
        check_host_bytes(GIB, machine.root)
