"""The SSD tier as its users see it."""

import errno
import threading

import msgspec
import numpy as np
import pytest

from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.errors import TierError
from flexkv_core.plan import Status, StoredKey
from flexkv_core.testing.tier_contract import TierCase, TierContract

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status
FIRST_KEY = 4096 + 8 + 32
"""Where the key of the first cell of a slab lies."""


class SsdCase(TierCase):
    def __init__(self, path, namespace, columns):
        self.path, self.namespace, self.columns = path, namespace, columns

    def open(self, memory):
        options = SsdOptions(directories=(self.path,), quota_bytes=1 << 20)
        cell_bytes = memory.slot_bytes // len(self.columns)
        tier = SsdTier(
            memory, BlockShare(self.namespace, self.columns, cell_bytes, "engine"), options
        )
        tier.wait_recovered()
        return tier

    def corrupt(self, key):
        slab = max(self.path.rglob("*.slab"))
        content = bytearray(slab.read_bytes())
        payload = content.index(key, FIRST_KEY) - 40 + 4096
        content[payload + 100] ^= 1
        slab.write_bytes(content)


class TestOneColumn(TierContract):
    @pytest.fixture
    def case(self, disk):
        return SsdCase(disk.path, disk.namespace, disk.columns[:1])


class TestTwoColumns(TierContract):
    @pytest.fixture
    def case(self, disk):
        return SsdCase(disk.path, disk.namespace, disk.columns)


class TestPagesInPieces(TierContract):
    """An engine's pages: K and V of all layers apart, and on memory pages or not."""

    @pytest.fixture
    def case(self, disk):
        return SsdCase(disk.path, disk.namespace, disk.columns[:1])

    @pytest.fixture(params=[[4096, 4096], [4096, 2048, 2048]], ids=["direct", "buffered"])
    def memory(self, request, region):
        address, num_pages, pieces = np.frombuffer(region, np.uint8).ctypes.data, 12, []
        for num_bytes in request.param:
            pieces.append(PagePiece(address, stride=num_bytes, num_bytes=num_bytes))
            address += num_pages * num_bytes
        return PageMemory(pieces, num_pages)


@pytest.fixture(params=[1, 2], ids=["one column", "two columns"])
def columns(request, disk):
    return disk.columns[: request.param]


def test_a_restart_finds_every_block(disk, columns):
    disk.store(range(20), columns=columns)
    rank = disk.open(columns=columns)
    assert rank.recovered() == list(range(20))
    assert set(rank.read(range(20))) == {OK}


def test_parents_are_reported(disk):
    disk.store(range(3))
    found = disk.open().tier.take_recovered(9)
    assert {
        StoredKey(disk.key(0), None),
        StoredKey(disk.key(1), disk.key(0)),
        StoredKey(disk.key(2), disk.key(1)),
    } == set(found)


def test_recovery_ends_when_everything_was_taken(disk):
    disk.store(range(3))
    tier = disk.open().tier
    assert len(tier.take_recovered(2)) == 2
    assert not tier.is_recovered
    assert len(tier.take_recovered(2)) == 1
    assert tier.is_recovered


def test_a_recovered_block_that_was_deleted_is_not_reported(disk, columns):
    disk.store(range(3), columns=columns)
    rank = disk.open(columns=columns)
    rank.tier.delete([disk.key(0)])
    assert rank.recovered() == [1, 2]


def test_a_block_that_one_column_lacks_is_not_reported_and_gives_its_slot_back(disk):
    quota = 2 * (4096 + 2 * disk.slot_bytes)
    disk.store([0, 1], columns=disk.columns, quota_bytes=quota)
    second = next(slab for slab in disk.slabs() if "heads-1-1" in str(slab))
    content = bytearray(second.read_bytes())
    content[FIRST_KEY] ^= 1
    second.write_bytes(content)
    rank = disk.open(columns=disk.columns, quota_bytes=quota)
    assert rank.recovered() == [1]
    assert rank.read([0]) == [MISS]
    assert rank.write([5]) == [OK]


def test_a_rank_of_another_degree_reads_its_part(disk):
    disk.store(range(4), columns=disk.columns)
    rank = disk.open(columns=disk.columns[1:])
    rank.tier.read(rank.blocks([3]), None)
    assert rank.recovered() == list(range(4))
    whole = disk.open(columns=disk.columns, directories=[disk.path.parent / "other"])
    whole.write([3])
    assert rank.place(0) == whole.place(0)[disk.cell_bytes :]


def test_blocks_are_spread_over_all_directories(disk):
    directories = [disk.path / "a", disk.path / "b"]
    rank = disk.open(directories=directories)
    rank.write(range(32))
    rank.close()
    for directory in directories:
        assert len(disk.open(directories=[directory]).recovered()) == 16


def test_a_restart_finds_blocks_of_all_directories(disk, columns):
    directories = [disk.path / "a", disk.path / "b"]
    disk.store(range(32), directories=directories, columns=columns)
    rank = disk.open(directories=directories, columns=columns)
    assert rank.recovered() == list(range(32))
    assert set(rank.read(range(32))) == {OK}


def test_two_tiers_on_one_directory_do_not_touch_each_other(disk):
    ranks = [disk.open(engine_id=name) for name in ("a", "b")]
    ranks[0].write(range(8))
    ranks[1].write(range(8, 16))
    ranks[0].tier.delete([disk.key(0)])
    ranks[0].write(range(16, 24))
    assert ranks[1].recovered() == []
    assert set(ranks[1].read(range(8, 16))) == {OK}
    assert set(ranks[0].read(range(8, 16))) == {MISS}


def test_two_tiers_of_one_engine_name_choose_different_slabs(disk):
    ranks = [disk.open(), disk.open()]
    assert ranks[0].write([1]) == ranks[1].write([2]) == [OK]
    assert len(disk.slabs()) == 2


def test_the_next_process_adopts_the_slabs_of_two(disk, small_steps):
    ranks = [disk.open(engine_id=name) for name in ("a", "b")]
    ranks[0].write(range(8))
    ranks[1].write(range(4, 12))
    for rank in ranks:
        rank.close()
    assert disk.open(engine_id="c").recovered() == list(range(12))


def test_a_slab_in_use_is_not_adopted(disk):
    disk.open().write(range(4))
    other = disk.open(engine_id="other")
    assert other.recovered() == []
    assert other.read(range(4)) == [MISS] * 4


@pytest.mark.parametrize(
    "changes",
    [{"namespace": {"model": "other"}}, {"cell_bytes": 4096}, {"column": 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_blocks_of_another_kind_are_not_found(disk, changes):
    disk.store(range(4))
    namespace = msgspec.structs.replace(disk.namespace, **changes.get("namespace", {}))
    column = disk.columns[changes.get("column", 0)]
    cell_bytes = changes.get("cell_bytes", disk.cell_bytes)
    rank = disk.open(namespace=namespace, columns=[column], cell_bytes=cell_bytes)
    assert rank.recovered() == []
    assert rank.read(range(4)) == [MISS] * 4


@pytest.mark.parametrize("cell_bytes", [1000, 4096, 12344])
def test_cells_of_any_size_come_back(disk, cell_bytes):
    disk.store(range(9), cell_bytes=cell_bytes, columns=disk.columns)
    rank = disk.open(cell_bytes=cell_bytes, columns=disk.columns)
    assert rank.recovered() == list(range(9))
    assert set(rank.read([*range(9), *reversed(range(9))])) == {OK}


def test_capacity_is_what_fits_the_quota_and_all_of_it_can_be_used(disk, columns):
    quota = len(columns) * (4096 + 10 * disk.slot_bytes)
    rank = disk.open(columns=columns, quota_bytes=quota)
    assert rank.tier.capacity_blocks == 10
    assert rank.write(range(11)) == [OK] * 10 + [ERROR]
    assert disk.size == quota


def test_a_tier_with_less_room_has_less_capacity_also_after_a_reset(disk, columns):
    rank = disk.open(columns=columns, quota_bytes=1 << 20)
    rank.tier.resize(len(columns) * (4096 + 10 * disk.slot_bytes))
    assert rank.tier.capacity_blocks == 10
    rank.tier.begin_generation("later", keeps_name=True)
    assert rank.tier.capacity_blocks == 10


def test_a_write_without_room_leaves_nothing_behind(disk, columns):
    rank = disk.open(columns=columns, quota_bytes=len(columns) * (4096 + 2 * disk.slot_bytes))
    rank.write(range(3))
    assert rank.read([2]) == [MISS]
    rank.tier.delete([disk.key(0)])
    assert rank.write([2]) == [OK]


def test_a_deleted_block_makes_room_for_another(disk):
    rank = disk.open(quota_bytes=4096 + 2 * disk.slot_bytes)
    rank.write([0, 1])
    for number in range(2, 20):
        rank.tier.delete([disk.key(number - 2)])
        assert rank.write([number]) == [OK]
    assert rank.read([17, 18, 19]) == [MISS, OK, OK]


def test_a_corrupt_block_is_forgotten_and_its_slot_is_used_again(disk):
    rank = disk.open(quota_bytes=4096 + disk.slot_bytes)
    rank.write([0])
    _flip(disk.slabs()[0], 8192)
    assert rank.read([0]) == [CORRUPT]
    assert rank.read([0]) == [MISS]
    assert rank.write([1]) == [OK]


def test_a_write_past_the_deadline_leaves_nothing_behind(disk, columns):
    rank = disk.open(columns=columns)
    assert rank.tier.write(rank.blocks([1]), 999.0) == [TIMEOUT]
    assert rank.read([1]) == [MISS]
    assert disk.slabs() == []


def test_what_happens_is_counted(disk):
    rank = disk.open(columns=disk.columns)
    rank.write([0, 1])
    rank.read([0, 1, 7])
    _flip(disk.slabs()[0], 8192)
    rank.read([0])
    counts = rank.tier.take_counts()
    assert counts["ssd_write_bytes"] == 4 * disk.slot_bytes
    assert counts["ssd_read_bytes"] == 6 * disk.slot_bytes
    assert counts["ssd_verified_blocks"] == 2
    assert counts["ssd_corrupt_blocks"] == 1
    assert rank.tier.take_counts() == {}
    rank.close()
    assert disk.open(columns=disk.columns).tier.take_counts() == {"ssd_recovered_blocks": 1}


def test_the_time_that_calls_take_is_counted(disk, monkeypatch):
    rank = disk.open()
    now = iter(range(1000))
    monkeypatch.setattr("flexkv_core.testing.doubles.ManualClock.__call__", lambda _: next(now))
    rank.write([1])
    rank.read([1])
    counts = rank.tier.take_counts()
    assert counts["ssd_write_seconds"] == counts["ssd_read_seconds"] == 1


def test_a_tier_without_a_usable_directory_is_refused(tmp_path, disk):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(TierError, match=r"ssd_cache_dir") as caught:
        disk.open(directories=[blocked])
    assert str(blocked) in str(caught.value)


def test_one_usable_directory_is_enough(tmp_path, disk, caplog):
    blocked = tmp_path / "file"
    blocked.touch()
    rank = disk.open(directories=[blocked, disk.path])
    assert "ssd.directories_unusable" in caplog.text
    assert rank.write(range(4)) == rank.read(range(4)) == [OK] * 4


def test_files_and_folders_are_for_this_user_alone(disk):
    disk.store([1])
    [slab] = disk.slabs()
    assert slab.stat().st_mode & 0o777 == 0o600
    for folder in (slab.parent, slab.parent.parent, disk.path):
        assert folder.stat().st_mode & 0o777 == 0o700


class TestGeneration:
    """After a reset."""

    @pytest.fixture(params=[False, True], ids=["new name", "same name"])
    def keeps_name(self, request):
        return request.param

    def test_nothing_is_found_any_more(self, disk, columns):
        rank = disk.open(columns=columns)
        rank.write([1])
        rank.tier.begin_generation("g", keeps_name=False)
        assert rank.read([1]) == [MISS]

    def test_what_is_stored_then_can_be_read(self, disk, columns):
        rank = disk.open(columns=columns)
        rank.tier.begin_generation("g", keeps_name=False)
        assert rank.write([1]) == rank.read([1]) == [OK]

    def test_the_old_slabs_wait_for_a_process_with_the_old_weights(self, disk):
        rank = disk.open()
        rank.write([1])
        rank.tier.begin_generation("g", keeps_name=False)
        rank.write([2])
        assert disk.open(engine_id="other").recovered() == [1]

    def test_the_new_slabs_go_with_the_tier(self, disk):
        rank = disk.open()
        rank.tier.begin_generation("g", keeps_name=False)
        rank.write([2])
        rank.close()
        assert disk.slabs() == []

    def test_the_new_slabs_of_a_killed_process_are_never_adopted(self, disk, monkeypatch):
        rank = disk.open()
        rank.tier.begin_generation("g", keeps_name=False)
        rank.write([2])
        _abandon(rank)
        namespace = msgspec.structs.replace(disk.namespace, weight_version="g")
        assert disk.open(namespace=namespace).recovered() == []

    def test_a_second_reset_deletes_the_slabs_of_the_first(self, disk):
        rank = disk.open()
        for name in ("g", "h"):
            rank.tier.begin_generation(name, keeps_name=False)
            rank.write([2])
        assert len(disk.slabs()) == 1

    def test_under_a_name_of_the_user_the_old_slabs_are_deleted(self, disk, columns):
        rank = disk.open(columns=columns)
        rank.write([1])
        rank.tier.begin_generation("g", keeps_name=True)
        assert disk.slabs() == []
        assert rank.read([1]) == [MISS]

    def test_old_slabs_that_cannot_be_deleted_are_emptied(self, disk, monkeypatch):
        rank = disk.open()
        rank.write([1])
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.unlink", _refuse)
            rank.tier.begin_generation("g", keeps_name=True)
        rank.close()
        assert disk.open().recovered() == []

    def test_a_disk_that_became_read_only_is_told_and_no_exception(self, disk, monkeypatch, caplog):
        rank = disk.open()
        rank.write([1])
        monkeypatch.setattr("pathlib.Path.unlink", _refuse)
        monkeypatch.setattr("os.ftruncate", _refuse)
        rank.tier.begin_generation("g", keeps_name=True)
        assert rank.read([1]) == [MISS]
        assert str(disk.slabs()[0]) in caplog.text

    def test_under_a_name_of_the_user_a_restart_finds_what_was_stored_since(self, disk, columns):
        rank = disk.open(columns=columns)
        rank.write([1])
        rank.tier.begin_generation("g", keeps_name=True)
        rank.write([2])
        rank.close()
        assert disk.open(columns=columns).recovered() == [2]

    def test_blocks_that_were_found_before_are_not_reported_after(self, disk):
        disk.store([1, 2])
        rank = disk.open()
        rank.tier.begin_generation("g", keeps_name=False)
        assert rank.tier.take_recovered(9) == []
        assert rank.tier.is_recovered

    def test_what_was_planned_before_stays_out_of_what_comes_after(self, disk, keeps_name):
        rank = disk.open()
        planned_before = rank.tier.snapshot()
        rank.tier.begin_generation("g", keeps_name=keeps_name)
        assert planned_before.write(rank.blocks([1]), None) == [ERROR]
        assert rank.read([1]) == [MISS]

    def test_what_was_planned_before_reads_nothing_that_comes_after(self, disk, keeps_name):
        rank = disk.open()
        planned_before = rank.tier.snapshot()
        rank.tier.begin_generation("g", keeps_name=keeps_name)
        rank.write([1])
        assert planned_before.read(rank.blocks([1]), None) == [MISS]


def test_a_closed_tier_has_no_room(disk):
    rank = disk.open()
    rank.tier.close()
    assert rank.tier.capacity_blocks == 0


def test_a_write_under_way_ends_well_although_the_tier_closes(disk, monkeypatch):
    """Its slab stays locked and open until it has returned, and holds the block afterwards."""
    rank = disk.open()
    begun, may_go_on = threading.Event(), threading.Event()
    _hold(monkeypatch, "write", begun, may_go_on)
    results = []
    thread = threading.Thread(target=lambda: results.extend(rank.write([1])))
    thread.start()
    begun.wait()
    rank.tier.close()
    assert disk.open().recovered() == []
    may_go_on.set()
    thread.join()
    assert results == [OK]
    assert disk.open(engine_id="next").recovered() == [1]


def test_a_slot_that_is_being_read_is_given_to_no_write(disk, monkeypatch):
    rank = disk.open(quota_bytes=4096 + disk.slot_bytes)
    rank.write([1])
    begun, may_go_on = threading.Event(), threading.Event()
    _hold(monkeypatch, "read", begun, may_go_on)
    results = []
    thread = threading.Thread(target=lambda: results.extend(rank.read([1])))
    thread.start()
    begun.wait()
    rank.tier.delete([disk.key(1)])
    assert rank.tier.write(rank.blocks([2]), None) == [ERROR]
    may_go_on.set()
    thread.join()
    assert results == [OK]
    assert rank.tier.write(rank.blocks([2]), None) == [OK]


def _refuse(*_):
    raise OSError(errno.EROFS, "Read-only file system")


def _hold(monkeypatch, verb, begun, may_go_on):
    """Stop the first transfer before it begins."""
    from flexkv_core.data.tiers.ssd.slab import Slab

    original = getattr(Slab, verb)

    def held(self, first_slot, cells):
        monkeypatch.setattr(Slab, verb, original)
        begun.set()
        may_go_on.wait()
        return original(self, first_slot, cells)

    monkeypatch.setattr(Slab, verb, held)


def _flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def _abandon(rank):
    """Let go of all locks as a killed process does: nothing else happens."""
    for column in rank.tier._columns:
        for slab in column.space.slabs:
            slab.close()
    rank.tier._columns = ()
