import random

import msgspec
import pytest

from flexkv_core.cli import cells
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, checksum

NUM_FLIPS = 100


def test_the_report_is_the_golden_one(flexkv, make_slab, mebibyte_slabs, tmp_path):
    slab = make_slab().write_chain(4).resize(6)
    slab.flip(slab.offset(1) + 50)
    slab.flip(slab.offset(2) + PAGE_BYTES + 5)
    slab.write_cell(4, 0)
    slab.path.chmod(0o644)

    report = flexkv("fsck", tmp_path, "--json")

    assert report.status == 1
    assert report.json == {
        "schema_version": 1,
        "command": "fsck",
        "problems": 3,
        "problems_left": 3,
        "exit_status": 1,
        "slabs": [
            {
                "path": str(slab.path),
                "namespace": "194c730d33662fe6",
                "column": "heads-0-3.layers-0-31",
                "in_use": False,
                "temporary": False,
                "bytes_on_disk": 2**20,
                "slots": 6,
                "valid": 3,
                "empty": 1,
                "changing": 0,
                "duplicates": 1,
                "orphans": 1,
                "problems": [
                    {"kind": "wrong_permissions", "slot": None, "repair": None},
                    {"kind": "corrupt_header", "slot": 1, "repair": None},
                    {"kind": "corrupt_payload", "slot": 2, "repair": None},
                ],
                "left_because": None,
            }
        ],
        "not_read": [],
    }


def test_the_text_says_what_was_done(flexkv, make_slab, mebibyte_slabs, tmp_path):
    slab = make_slab().write_chain(3)
    slab.flip(slab.offset(2) + PAGE_BYTES)

    text = flexkv("fsck", tmp_path, "--repair").out

    assert text == (
        f"{slab.path}: 2 valid, 0 empty\n"
        "  slot 2: corrupt payload -> slot emptied\n"
        "1 slab, 2 valid cells, 1.0 MiB on disk: 1 problem, 1 repaired, 0 left\n"
    )


def test_a_sound_directory_is_clean(flexkv, make_slab, tmp_path):
    make_slab().write_chain(3).resize(5)
    make_slab(head=4).write_chain(2)

    report = flexkv("fsck", tmp_path)

    assert (report.status, report.err) == (0, "")
    assert report.out.endswith(": clean\n")


def test_every_one_of_many_flips_is_reported(make_slab, problems):
    slab = make_slab().write_chain(NUM_FLIPS + 20)
    chance = random.Random(7)
    flipped = sorted(chance.sample(range(NUM_FLIPS + 20), NUM_FLIPS))
    for slot in flipped:
        within = chance.randrange(slab.offset(1) - slab.offset(0))
        slab.flip(slab.offset(slot) + within, bit=chance.randrange(8))

    found = problems()

    assert sorted(slot for _, slot in found) == flipped
    assert {kind for kind, _ in found} == {"corrupt_header", "corrupt_payload"}


def test_every_flip_in_a_superblock_is_reported(make_slab, problems):
    slab = make_slab().write_chain(1)
    length = len(slab.path.read_bytes()[:PAGE_BYTES].rstrip(b"\0"))
    chance = random.Random(7)
    for _ in range(NUM_FLIPS):
        place, bit = chance.randrange(length), chance.randrange(8)
        slab.flip(place, bit)
        [(kind, _)] = problems()
        assert kind in {"unreadable", "other_version"}
        slab.flip(place, bit)
    assert problems() == []


@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        ({"identity": bytes(32)}, "foreign_identity"),
        ({"payload_bytes": PAGE_BYTES}, "corrupt_header"),
        ({"payload_bytes": 2**63}, "corrupt_header"),
        ({"payload_checksum": 0}, "corrupt_payload"),
    ],
)
def test_a_header_that_lies_is_reported(make_slab, problems, lie, kind):
    make_slab().write_cell(0, 0, **lie)

    assert problems() == [(kind, 0)]


def test_a_cell_of_another_column_is_foreign(make_slab, problems):
    one, other = make_slab().write_chain(1), make_slab(head=4).write_chain(1)
    other.write_at(PAGE_BYTES, one.path.read_bytes()[PAGE_BYTES:])

    assert problems() == [("foreign_identity", 0)]


def test_duplicates_and_orphans_are_no_problems(flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(2)
    slab.write_cell(2, 1, parent=0)
    slab.write_cell(3, 9, parent=8)

    report = flexkv("fsck", tmp_path, "--json")

    [found] = report.json["slabs"]
    assert (report.status, found["duplicates"], found["orphans"]) == (0, 1, 1)


def test_a_parent_in_another_slab_of_the_column_is_a_parent(flexkv, make_slab, tmp_path):
    make_slab(tmp_path / "a").write_cell(0, 1, parent=0)
    make_slab(tmp_path / "b", name="engine-1.slab").write_cell(0, 0)

    report = flexkv("fsck", tmp_path / "a", tmp_path / "b", "--json").json

    assert [slab["orphans"] for slab in report["slabs"]] == [0, 0]


def test_a_parent_in_another_column_is_none(flexkv, make_slab, tmp_path):
    make_slab().write_cell(0, 1, parent=0)
    make_slab(head=4).write_cell(0, 0)

    report = flexkv("fsck", tmp_path, "--json").json

    assert [slab["orphans"] for slab in report["slabs"]] == [1, 0]


def test_cells_of_another_generation_are_neither_duplicates_nor_parents(
    flexkv, make_slab, tmp_path
):
    make_slab(generation="old").write_chain(2)
    make_slab(generation="new", name="engine-1.slab").write_cell(0, 1, parent=0)

    report = flexkv("fsck", tmp_path, "--json")

    found = [(slab["duplicates"], slab["orphans"]) for slab in report.json["slabs"]]
    assert (report.status, found) == (0, [(0, 0), (0, 1)])


def test_a_slab_whose_generation_was_changed_is_not_believed(make_slab, problems):
    slab = make_slab(generation="old").write_chain(2)
    lying = msgspec.structs.replace(slab.superblock, generation="new")
    slab.write_at(0, lying.pack())

    assert problems() == [("other_version", None)]


@pytest.mark.parametrize("cut_bytes", [1, PAGE_BYTES, 2 * PAGE_BYTES + 7])
def test_a_cut_cell_is_a_truncated_tail(make_slab, problems, cut_bytes):
    slab = make_slab().write_chain(2)
    size = slab.path.stat().st_size
    with slab.path.open("r+b") as file:
        file.truncate(size - cut_bytes)

    assert problems() == [("truncated_tail", None)]


def test_room_behind_the_last_slot_is_no_truncated_tail(make_slab, problems):
    slab = make_slab().write_chain(2)
    with slab.path.open("r+b") as file:
        file.truncate(slab.offset(2) + PAGE_BYTES)

    assert problems() == []


@pytest.mark.parametrize("folder", ["parent", "parent.parent"])
def test_an_open_folder_is_reported(make_slab, problems, folder):
    path = make_slab().path.parent
    (path if folder == "parent" else path.parent).chmod(0o755)

    assert problems() == [("wrong_permissions", None)]


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(3 * PAGE_BYTES)])
def test_a_file_that_is_no_slab_is_unreadable(make_slab, problems, content):
    make_slab().path.write_bytes(content)

    assert problems() == [("unreadable", None)]


def test_a_superblock_that_contradicts_itself_is_not_believed(make_slab, problems):
    make_slab(identity="00" * 32)

    assert problems() == [("other_version", None)]


@pytest.mark.parametrize("cell_bytes", [0, -1, -PAGE_BYTES])
def test_cells_without_a_size_are_not_believed(make_slab, problems, cell_bytes):
    make_slab(cell_bytes=cell_bytes)

    assert problems() == [("other_version", None)]


def test_a_superblock_that_is_no_text_is_not_believed(make_slab, problems):
    slab = make_slab()
    text = b'{"column":"\xff"}'
    prefix = b"FLEXKVS1" + len(text).to_bytes(4, "little") + checksum(text).to_bytes(8, "little")
    slab.write_at(0, (prefix + text).ljust(PAGE_BYTES, b"\0"))

    assert problems() == [("other_version", None)]


def test_a_temporary_slab_is_abandoned_once_it_is_unlocked(make_slab, problems):
    slab = make_slab(is_temporary=True).write_chain(1)

    with slab.in_use():
        assert problems() == []
    assert problems() == [("abandoned", None)]


def test_a_disk_that_cannot_read_is_reported(make_slab, monkeypatch, problems):
    slab = make_slab().write_chain(3)
    pread = cells.os.pread

    def fail_in_slot_1(number, num_bytes, offset):
        if slab.offset(1) < offset < slab.offset(2):
            raise OSError(5, "Input/output error")
        return pread(number, num_bytes, offset)

    monkeypatch.setattr(cells.os, "pread", fail_in_slot_1)

    assert problems() == [("corrupt_payload", 1)]


def test_slots_behind_a_hole_are_verified(flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)
    slab.write_cell(1000, 1, parent=0)

    [found] = flexkv("fsck", tmp_path, "--json").json["slabs"]

    assert (found["slots"], found["valid"], found["empty"]) == (1001, 2, 999)


def test_holes_are_not_read(flexkv, make_slab, tmp_path):
    make_slab(cell_bytes=1).resize(2**30)  # 8 TiB; a reader of every header would not come back

    [found] = flexkv("fsck", tmp_path, "--json").json["slabs"]

    assert (found["slots"], found["empty"]) == (2**30, 2**30)


def test_a_cell_of_exbibytes_is_not_read(make_slab, problems):
    slab = make_slab(cell_bytes=PAGE_BYTES)
    slab.write_at(0, make_slab(cell_bytes=2**60).superblock.pack())

    assert problems() == []


def test_payloads_of_any_size_are_verified(make_slab, monkeypatch, problems):
    monkeypatch.setattr(cells, "_PIECE_BYTES", 1000)
    slab = make_slab(cell_bytes=5001).write_chain(2)
    slab.flip(slab.offset(1) + PAGE_BYTES + 5000)

    assert problems() == [("corrupt_payload", 1)]


def test_only_the_named_namespace_is_verified(flexkv, make_slab, namespace_with, tmp_path):
    wanted, other = namespace_with(), namespace_with(user="x")
    make_slab().write_chain(1)
    make_slab(namespace=other).path.write_bytes(b"")

    report = flexkv("fsck", tmp_path, "--json", "--namespace", wanted.short[:5])

    assert report.status == 0
    assert [slab["namespace"] for slab in report.json["slabs"]] == [wanted.short]


def test_a_prefix_of_nothing_is_a_mistake(flexkv, make_slab, tmp_path):
    make_slab()

    report = flexkv("fsck", tmp_path, "--namespace", "zz")

    assert (report.status, report.out) == (2, "")
    assert report.err == (
        "flexkv: no namespace begins with 'zz': expected some of the 16 digits that ls shows\n"
    )


def test_without_repair_nothing_is_written(contents, flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(3)
    slab.flip(slab.offset(1))
    make_slab(name="useless.slab").path.write_bytes(b"x")
    before = contents()

    assert flexkv("fsck", tmp_path).status == 1
    assert contents() == before


def test_a_long_list_is_short_for_people(flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(25)
    for slot in range(25):
        slab.flip(slab.offset(slot))

    with slab.in_use():
        lines = flexkv("fsck", tmp_path, "--repair").out.splitlines()

    assert lines[0] == f"{slab.path}: 0 valid, 0 empty, in use"
    assert lines[20] == "  slot 19: corrupt header"
    assert lines[21] == "  and 5 more problems: --json has all of them"
    assert lines[22] == "  25 problems left: in use"
