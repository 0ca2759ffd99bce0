import os

import pytest

from flexkv_core.block.layout import Column
from flexkv_core.cli import ls
from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES
from flexkv_core.data.tiers.ssd.generations import Generations


@pytest.fixture
def damaged(flexkv, tmp_path):
    """Runs ls; returns the reason for each name that is listed as damaged."""

    def run():
        listed = flexkv("ls", tmp_path, "--json").json["damaged"]
        return {row["path"].rpartition("/")[2]: row["reason"] for row in listed}

    return run


def test_the_listing_is_the_golden_one(flexkv, make_slab, mebibyte_slabs, namespace_with, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    slabs = [
        make_slab(one).write_chain(3).resize(5),
        make_slab(two, name="engine-1.slab").write_chain(2),
        make_slab(one, head=4).write_chain(2),
        make_slab(
            two, namespace=namespace_with(weight_version="r1", user="me"), is_temporary=True
        ).write_chain(1),
    ]
    for second, slab in enumerate(slabs):
        os.utime(slab.path, (0, 1_700_000_000 + second))
    (slabs[0].path.parent / "stray").write_bytes(b"")

    with slabs[0].in_use():
        listing = flexkv("ls", one, two, "--json")

    for room in listing.json["directories"]:
        assert room.pop("bytes_free") > 0
    slot = 3 * PAGE_BYTES
    model = "hub:org/model@0123456789abcdef0123456789abcdef01234567"
    assert listing.status == 0
    assert listing.json == {
        "schema_version": 1,
        "command": "ls",
        "directories": [{"path": str(one)}, {"path": str(two)}],
        "namespaces": [
            {
                "namespace": "194c730d33662fe6",
                "model": model,
                "kv_cache_dtype": "bfloat16",
                "block_tokens": 64,
                "weight_version": "",
                "user": "",
                "cache_group": "",
                "temporary": False,
                "outdated": False,
                "blocks": 2,
                "columns": [
                    {
                        "column": "heads-0-3.layers-0-31",
                        "slabs": 2,
                        "slabs_in_use": 1,
                        "cells": 5,
                        "bytes_on_disk": 2**21,
                        "bytes_used": 5 * slot,
                        "newest_write_s": 1_700_000_001,
                    },
                    {
                        "column": "heads-4-7.layers-0-31",
                        "slabs": 1,
                        "slabs_in_use": 0,
                        "cells": 2,
                        "bytes_on_disk": 2**20,
                        "bytes_used": 2 * slot,
                        "newest_write_s": 1_700_000_002,
                    },
                ],
            },
            {
                "namespace": "a07a831a9c2a73f1",
                "model": model,
                "kv_cache_dtype": "bfloat16",
                "block_tokens": 64,
                "weight_version": "r1",
                "user": "me",
                "cache_group": "",
                "temporary": True,
                "outdated": True,
                "blocks": 1,
                "columns": [
                    {
                        "column": "heads-0-3.layers-0-31",
                        "slabs": 1,
                        "slabs_in_use": 0,
                        "cells": 1,
                        "bytes_on_disk": 2**20,
                        "bytes_used": slot,
                        "newest_write_s": 1_700_000_003,
                    }
                ],
            },
        ],
        "damaged": [
            {
                "path": str(slabs[0].path.parent / "stray"),
                "reason": "not a slab",
                "bytes_on_disk": 0,
            }
        ],
    }


def test_the_text_names_what_an_operator_asks_for(
    flexkv, make_slab, mebibyte_slabs, namespace_with, tmp_path
):
    namespace = namespace_with(weight_version="r1", user="team", cache_group="swa")
    slab = make_slab(namespace=namespace, is_temporary=True).write_chain(2)
    os.utime(slab.path, (0, 1_700_000_000))
    make_slab(name="broken.slab").write_at(0, b"x")

    text = flexkv("ls", tmp_path).out

    assert f"namespace {namespace.short}: 2 blocks of 64 tokens, bfloat16\n" in text
    assert "  weight version r1\n  user team\n  state kept beside the KV: swa\n" in text
    assert "swa\n  temporary: deleted once no engine uses it\n" in text
    assert "  heads-0-3.layers-0-31  1      0       2      1.0 MiB  24.0 KiB  2023-11-14 22" in text
    assert "broken.slab (1.0 MiB): the superblock cannot be read\n" in text


def test_the_text_says_what_whole_windows_are(flexkv, make_slab, namespace_with, tmp_path):
    make_slab(namespace=namespace_with(cache_group="windows-kept-whole")).write_chain(2)
    assert "  all tokens, of layers with windows, too\n" in flexkv("ls", tmp_path).out


def test_the_text_says_what_rows_of_vllms_own_offloading_are(
    flexkv, make_slab, namespace_with, tmp_path
):
    make_slab(namespace=namespace_with(cache_group="offload")).write_chain(2)
    text = flexkv("ls", tmp_path).out
    assert "  rows of vLLM's own offloading: all that the model keeps\n" in text
    assert "beside" not in text


@pytest.fixture
def generations(namespace_with, tmp_path):
    """The records of a named version's first column."""
    column = Column(first_head=0, num_heads=4, first_layer=0, num_layers=32)
    directory = Directory(tmp_path, None, 0)
    return Generations([directory], namespace_with(weight_version="v1"), [column])


def test_what_is_of_before_a_reset_is_listed_apart(
    flexkv, make_slab, namespace_with, generations, tmp_path
):
    generations.resume("old")
    generations.begin("new")
    namespace = namespace_with(weight_version="v1")
    for num_blocks, generation in enumerate(("", "old", "new"), 1):
        make_slab(
            namespace=namespace, generation=generation, name=f"{generation}.slab"
        ).write_chain(num_blocks)

    listed = flexkv("ls", tmp_path, "--json").json["namespaces"]

    assert [(row["outdated"], row["blocks"]) for row in listed] == [(False, 3), (True, 2)]
    assert [row["temporary"] for row in listed] == [False, False]
    assert "  from before a reset: no engine will read it" in flexkv("ls", tmp_path).out


def test_temporary_slabs_of_a_namespace_are_listed_apart(flexkv, make_slab, tmp_path):
    make_slab().write_chain(3)
    make_slab(name="t.slab", generation="run", is_temporary=True).write_chain(1)

    listed = flexkv("ls", tmp_path, "--json").json

    kinds = [(row["temporary"], row["outdated"], row["blocks"]) for row in listed["namespaces"]]
    assert kinds == [(False, False, 3), (True, True, 1)]
    assert listed["damaged"] == []


def test_a_listing_writes_no_record(flexkv, make_slab, namespace_with, contents, tmp_path):
    make_slab(namespace=namespace_with(weight_version="v1"), generation="old").write_chain(1)
    before = contents()

    [listed] = flexkv("ls", tmp_path, "--json").json["namespaces"]

    assert listed["outdated"]
    assert contents() == before


def test_a_block_counts_only_if_every_column_has_it(flexkv, make_slab, tmp_path):
    make_slab().write_chain(3)
    make_slab(head=4).write_cell(0, 2)

    [namespace] = flexkv("ls", tmp_path, "--json").json["namespaces"]

    assert namespace["blocks"] == 1


def test_a_key_in_two_directories_is_one_block(flexkv, make_slab, tmp_path):
    make_slab(tmp_path / "one").write_chain(1)
    make_slab(tmp_path / "two").write_chain(1)

    [namespace] = flexkv("ls", tmp_path / "one", tmp_path / "two", "--json").json["namespaces"]

    assert namespace["blocks"] == 1


def test_a_bad_header_is_no_cell_and_is_told(damaged, flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(2)
    slab.flip(slab.offset(1) + 50)

    [namespace] = flexkv("ls", tmp_path, "--json").json["namespaces"]

    assert namespace["columns"][0]["cells"] == 1
    assert damaged() == {"engine-0.slab": "1 bad header: run flexkv fsck"}


def test_a_header_that_is_being_written_is_read_again(damaged, make_slab, monkeypatch):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0) + 50)

    def write_and_say_so(_):
        slab.write_cell(0, 0)
        return True

    answers = iter([lambda _: True, write_and_say_so])
    monkeypatch.setattr(ls, "is_locked", lambda number: next(answers)(number))

    assert damaged() == {}


def test_holes_take_no_room(flexkv, make_slab, tmp_path):
    make_slab().resize(2**20)

    [namespace] = flexkv("ls", tmp_path, "--json").json["namespaces"]

    assert namespace["columns"][0]["bytes_on_disk"] < 2**20


def test_payloads_are_not_read(damaged, make_slab):
    slab = make_slab().write_chain(1)
    slab.flip(slab.offset(0) + PAGE_BYTES)

    assert damaged() == {}


def test_a_slab_in_anothers_folder_is_not_counted(damaged, flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)
    slab.path.rename(make_slab(head=4, name="other.slab").path.parent / "moved.slab")

    [namespace] = flexkv("ls", tmp_path, "--json").json["namespaces"]

    assert namespace["blocks"] == 0
    assert damaged()["moved.slab"].startswith("it belongs to another namespace or column")


def test_nothing_is_written(contents, flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(2)
    slab.flip(slab.offset(1))
    before = contents()

    flexkv("ls", tmp_path)

    assert contents() == before


def test_a_lock_is_not_kept(flexkv, make_slab, tmp_path):
    slab = make_slab().write_chain(1)

    flexkv("ls", tmp_path)

    with slab.in_use():
        pass
