"""An adapter is what was loaded, or it is not cached."""

import logging
import os
import shutil
import time

import pytest

from flexkv_connectors.vllm import adapters as module
from tests.flexkv_connectors.vllm.conftest import lora, write_adapter, write_to_hub

OTHER = b"WEIGHTS"
HUB_ID = "someone/adapter"


def test_adapters_of_equal_content_are_one(adapters, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert adapters.digest(lora(folder)) == adapters.digest(lora(copy, 2, "copy")) is not None


def test_adapters_of_other_content_are_others(adapters, folder, tmp_path):
    other = write_adapter(tmp_path / "other", OTHER)
    assert adapters.digest(lora(folder)) != adapters.digest(lora(other, 2, "other"))


def test_files_that_vllm_does_not_read_make_no_difference(adapters, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("mine")
    assert adapters.digest(lora(folder)) == adapters.digest(lora(copy, 2, "copy"))


def test_the_engines_options_for_adapters_are_part_of_them(follow, folder):
    assert follow().digest(lora(folder)) != follow(b"\1" * 32).digest(lora(folder))


def test_the_way_in_which_experts_are_read_is_part_of_an_adapter(follow, folder):
    assert follow().digest(lora(folder)) != follow().digest(lora(folder, is_3d_lora_weight=True))


def test_an_adapter_has_no_digest_before_its_files_are_read(adapters, folder, monkeypatch):
    monkeypatch.setattr(adapters._reader, "read", lambda *_: None)
    assert adapters.begin(lora(folder)).digest is None


def test_an_adapter_that_stays_as_it_is_stays_what_it_is(adapters, folder):
    digests = [adapters.digest(lora(folder)) for _ in range(3)]
    assert len(set(digests)) == 1


@pytest.mark.parametrize("change", ["overwritten", "replaced", "folder", "link", "removed"])
def test_an_adapter_whose_files_change_is_not_cached_any_more(adapters, folder, tmp_path, change):
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert adapters.digest(lora(link)) is not None
    weights = folder / "adapter_model.safetensors"
    if change == "overwritten":
        write_adapter(folder, OTHER)
        os.utime(weights, ns=(0, weights.stat().st_mtime_ns))
    elif change == "replaced":
        (tmp_path / "new").write_bytes(OTHER)
        (tmp_path / "new").replace(weights)
    elif change == "folder":
        folder.rename(tmp_path / "old")
        write_adapter(folder, OTHER)
    elif change == "link":
        link.unlink()
        link.symlink_to(write_adapter(tmp_path / "other", OTHER))
    else:
        shutil.rmtree(folder)
    assert adapters.digest(lora(link)) is None


def test_a_link_that_was_elsewhere_for_a_while_is_not_believed(adapters, folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    adapters.digest(lora(link))
    link.rename(tmp_path / "away")
    link.symlink_to(folder)
    assert adapters.digest(lora(link)) is None


def test_files_are_compared_once_in_a_step(adapters, folder):
    adapter = adapters.begin(lora(folder))
    assert adapters.holds(adapter)
    write_adapter(folder, OTHER)
    assert adapters.holds(adapter)
    adapters.look_again()
    assert not adapters.holds(adapter)


def test_what_was_announced_counts_and_not_what_lies_there_at_the_first_request(adapters, folder):
    adapters.load(lora(folder))
    write_adapter(folder, OTHER)
    assert adapters.digest(lora(folder)) is None


def test_a_load_in_place_takes_what_lies_there_then(adapters, folder, tmp_path):
    before = adapters.digest(lora(folder))
    write_adapter(folder, OTHER)
    adapters.load(lora(folder, load_inplace=True))
    other = write_adapter(tmp_path / "other", OTHER)
    after = adapters.digest(lora(folder))
    assert after == adapters.digest(lora(other, 2, "other"))
    assert after != before


def test_a_load_in_place_revives_an_adapter_that_was_given_up(adapters, folder):
    adapters.digest(lora(folder))
    write_adapter(folder, OTHER)
    assert adapters.digest(lora(folder)) is None
    adapters.load(lora(folder, load_inplace=True))
    assert adapters.digest(lora(folder)) is not None


def test_a_load_that_is_not_in_place_revives_nothing(adapters, folder):
    adapters.digest(lora(folder))
    write_adapter(folder, OTHER)
    adapters.load(lora(folder))
    assert adapters.digest(lora(folder)) is None


def test_requests_that_run_across_a_load_in_place_are_not_cached_any_more(adapters, folder):
    running = adapters.begin(lora(folder))
    write_adapter(folder, OTHER)
    adapters.load(lora(folder, load_inplace=True))
    assert not adapters.holds(running)


def test_a_load_in_place_of_the_same_content_interrupts_nothing(adapters, folder):
    running = adapters.begin(lora(folder))
    adapters.load(lora(folder, load_inplace=True))
    assert adapters.holds(running)


def test_an_adapter_whose_load_failed_is_not_cached(adapters, folder):
    adapters.begin_load(lora(folder))
    assert adapters.digest(lora(folder)) is None


def test_an_adapter_that_was_removed_is_what_lies_there_when_it_comes_back(adapters, folder):
    adapters.load(lora(folder))
    adapters.note_removal(1)
    write_adapter(folder, OTHER)
    adapters.load(lora(folder))
    assert adapters.digest(lora(folder)) is not None


def test_an_adapter_that_was_removed_under_a_request_may_have_been_loaded_again(adapters, folder):
    adapters.begin(lora(folder))
    adapters.note_removal(1)
    write_adapter(folder, OTHER)
    adapters.load(lora(folder))
    assert adapters.digest(lora(folder)) is None


def test_a_number_that_stands_for_two_adapters_stands_for_none(adapters, folder, tmp_path):
    other = write_adapter(tmp_path / "other", OTHER)
    adapters.digest(lora(folder))
    assert adapters.digest(lora(other)) is None
    assert adapters.digest(lora(folder)) is None


def test_an_adapter_that_was_loaded_unseen_is_not_cached(adapters, folder):
    adapters.digest(lora(folder))
    adapters.doubt(1)
    assert adapters.digest(lora(folder)) is None


def test_where_loads_are_not_heard_only_files_older_than_the_engine_count(follow, folder):
    assert follow(oldest_s=time.time() + 60).digest(lora(folder)) is not None
    assert follow(oldest_s=time.time() - 60).digest(lora(folder)) is None


def test_an_adapter_by_tensorizer_is_not_cached(adapters, folder):
    assert adapters.digest(lora(folder, tensorizer_config_dict={"uri": "x"})) is None


@pytest.mark.parametrize(
    "path", ["/no/where", "no/where\0", "/no/\ud800", "no/\ud800", "~nobody/here", "a" * 5000, "/"]
)
def test_a_path_that_holds_no_adapter_is_not_cached(adapters, path):
    assert adapters.digest(lora(path)) is None


def test_why_an_adapter_is_not_cached_is_said_once(adapters, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            adapters.digest(lora("/no/where"))
    assert len(caplog.records) == 1


def test_the_home_folder_and_the_working_directory_are_known(
    adapters, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    digests = [
        adapters.digest(lora(path, number, path))
        for number, path in enumerate((folder, "~/adapter", "adapter"))
    ]
    assert len(set(digests)) == 1
    assert digests[0] is not None


@pytest.fixture
def cached(folder, hub):
    """Return the repository of an adapter that was fetched from the hub before."""
    repository = write_to_hub(hub, HUB_ID, folder)
    (repository / "refs" / "main").write_text("1" * 40)
    return repository


def test_an_adapter_in_the_hubs_cache_is_known_once_it_was_computed_with(adapters, folder, cached):
    """Until then, vLLM may fetch a newer one in its place."""
    adapter = adapters.begin(lora(HUB_ID))
    assert not adapters.holds(adapter)
    adapters.end(lora(HUB_ID), adapter, is_computed=True)
    assert adapters.digest(lora(HUB_ID)) == adapters.digest(lora(folder, 2, "local"))


def test_an_adapter_of_which_vllm_fetches_a_newer_one_is_not_the_cached_one(
    adapters, folder, hub, cached
):
    adapter = adapters.begin(lora(HUB_ID))
    write_to_hub(hub, HUB_ID, folder, "2" * 40)
    (cached / "refs" / "main").write_text("2" * 40)
    adapters.end(lora(HUB_ID), adapter, is_computed=True)
    assert adapters.digest(lora(HUB_ID)) is None


def test_a_reference_of_the_hub_that_moves_is_a_change(adapters, cached):
    adapter = adapters.begin(lora(HUB_ID))
    adapters.end(lora(HUB_ID), adapter, is_computed=True)
    assert adapters.digest(lora(HUB_ID)) is not None
    (cached / "refs" / "main").write_text("2" * 40)
    assert adapters.digest(lora(HUB_ID)) is None


def test_an_adapter_that_vllm_fetches_is_known_once_it_has_computed_with_it(adapters, folder, hub):
    adapter = adapters.begin(lora(HUB_ID))
    assert not adapters.holds(adapter)
    write_to_hub(hub, HUB_ID, folder)
    adapters.end(lora(HUB_ID), adapter, is_computed=True)
    assert adapters.digest(lora(HUB_ID)) == adapters.digest(lora(folder, 2, "local"))


def test_an_adapter_that_vllm_fetches_when_it_is_announced_is_known_then(adapters, folder, hub):
    adapters.begin_load(lora(HUB_ID))
    write_to_hub(hub, HUB_ID, folder)
    adapters.end_load(lora(HUB_ID))
    assert adapters.digest(lora(HUB_ID)) is not None


def test_of_several_snapshots_that_were_fetched_nobody_knows_which_was_read(adapters, folder, hub):
    adapters.begin_load(lora(HUB_ID))
    for commit in "12":
        write_to_hub(hub, HUB_ID, folder, commit * 40)
    adapters.end_load(lora(HUB_ID))
    assert adapters.digest(lora(HUB_ID)) is None


def test_a_fetched_file_that_is_not_what_its_name_says_is_not_believed(adapters, folder, hub):
    adapters.begin_load(lora(HUB_ID))
    blob = next((write_to_hub(hub, HUB_ID, folder) / "blobs").iterdir())
    blob.write_bytes(b"something else")
    adapters.end_load(lora(HUB_ID))
    assert adapters.digest(lora(HUB_ID)) is None


def test_a_name_that_has_had_two_contents_is_not_the_only_one(adapters, folder):
    adapter = adapters.begin(lora(folder))
    assert adapters.is_only_one(adapter)
    write_adapter(folder, OTHER)
    adapters.load(lora(folder, load_inplace=True))
    assert not adapters.is_only_one(adapters.begin(lora(folder)))


def test_another_number_of_the_same_name_counts_among_its_contents(adapters, folder):
    adapters.digest(lora(folder))
    write_adapter(folder, OTHER)
    assert adapters.digest(lora(folder, 2)) is not None
    assert not adapters.is_only_one(adapters.begin(lora(folder, 2)))


def test_beyond_so_many_adapters_no_more_are_cached(adapters, folder, monkeypatch):
    monkeypatch.setattr(module, "_MAX_ADAPTERS", 2)
    digests = [adapters.digest(lora(folder, number, f"a{number}")) for number in range(3)]
    assert [digest is None for digest in digests] == [False, False, True]
    adapters.note_removal(0)
    assert adapters.digest(lora(folder, 2, "a2")) is None, "it may have been loaded before"


def test_a_file_that_is_added_to_a_snapshot_counts_if_vllm_reads_it(adapters, folder, hub):
    snapshot = write_to_hub(hub, HUB_ID, folder) / "snapshots" / ("1" * 40)
    digest = adapters.digest(lora(snapshot))
    (snapshot / "README.md").write_text("fetched later")
    assert adapters.digest(lora(snapshot)) == digest
    (snapshot / "new_embeddings.bin").write_bytes(b"fetched later")
    assert adapters.digest(lora(snapshot)) is None
