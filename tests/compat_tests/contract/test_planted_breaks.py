"""One break of each kind, planted into a recorded vLLM, is found and names our line.

The findings of the record as it is are subtracted: they say what a record does not hold, and
nothing of the break.
"""

import re

import pytest

from compat_tests.contract.check import BROKEN, judge
from compat_tests.contract.engines import ENGINES
from compat_tests.contract.needs import needs_of
from compat_tests.contract.records import load

VLLM = ENGINES["vllm"]
BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
SPECS = "vllm.v1.kv_cache_interface"
LAYOUTS = "vllm.v1.kv_cache_layout"
OFFLOAD = "vllm.v1.kv_offload.base"
TIERING = "vllm.v1.kv_offload.tiering.base"
BELOW = "KVConnectorBase_V1", "OffloadingConnector"
"""What the connector below vLLM's own offloading is derived from, in the place of the base."""


@pytest.fixture(scope="module")
def needs():
    return needs_of(VLLM)


@pytest.fixture(scope="module")
def known(needs):
    """Return the findings of 0.33 with nothing planted."""
    return judge(VLLM, "0.33.0", load(VLLM, "0.33.0"), needs).findings


@pytest.fixture
def engine():
    """Return 0.33, to be broken."""
    return load(VLLM, "0.33.0")


@pytest.fixture
def found(engine, needs, known):
    """Return a function to the broken findings that a plant has added, as (file, text)."""

    def compare():
        verdict = judge(VLLM, "0.33.1", engine, needs)
        new = [one for one in verdict.findings if one.is_broken and one not in known]
        assert not new or verdict.status == BROKEN
        for one in new:
            assert re.fullmatch(r"flexkv_connectors/vllm/[\w/]+\.py(:\d+)?", one.place)
        return {(one.place.partition(":")[0].rpartition("/")[2], one.text) for one in new}

    return compare


def members(engine, module, cls):
    return engine.module(module)["classes"][cls]["members"]


def test_nothing_planted_is_nothing_found(found):
    assert found() == set()


def test_a_renamed_hook(engine, found):
    base = members(engine, BASE, "KVConnectorBase_V1")
    base["wait_for_all_saves"] = base.pop("wait_for_save")
    texts = (
        "KVConnectorBase_V1 has no hook wait_for_save any more",
        "KVConnectorBase_V1.wait_for_all_saves is abstract and not overridden",
    )
    ours = {(file, text) for file in ("connector.py", "idle.py") for text in texts}
    below = ("connector.py", texts[1].replace(*BELOW))
    assert found() == ours | {below}


def test_a_new_abstract_hook(engine, found):
    members(engine, BASE, "KVConnectorBase_V1")["flush"] = "abstract def (self) -> None"
    text = "KVConnectorBase_V1.flush is abstract and not overridden"
    below = ("connector.py", text.replace(*BELOW))
    assert found() == {(file, text) for file in ("connector.py", "idle.py")} | {below}


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("def (self, request, num_blocks) -> None", "parameter 2 is num_blocks, ours is blocks"),
        (
            "def (self, request, blocks, num_external_tokens, group) -> None",
            "parameter 4 is group, ours is nothing",
        ),
        ("def (self, request, blocks) -> None", "passes no num_external_tokens any more"),
        (
            "def (self, request, blocks, num_external_tokens, *, late) -> None",
            "passes late, which we do not take",
        ),
        (
            "def (self, request, blocks, num_external_tokens, **more) -> None",
            "passes **more, which we do not take",
        ),
    ],
)
def test_a_changed_argument_of_a_hook(engine, found, signature, reason):
    members(engine, BASE, "KVConnectorBase_V1")["update_state_after_alloc"] = signature
    assert ("connector.py", f"KVConnectorBase_V1.update_state_after_alloc: {reason}") in found()


def test_a_method_that_became_a_property(engine, found):
    members(engine, BASE, "KVConnectorBase_V1")["take_events"] = "property def (self) -> list"
    [(file, text)] = found()
    assert file == "connector.py"
    assert text.startswith("KVConnectorBase_V1.take_events: is now `property")


def test_a_changed_argument_of_a_method_that_we_call(engine, found):
    pool = members(engine, "vllm.v1.core.block_pool", "BlockPool")
    pool["evict_blocks"] = "def (self, block_ids: set[int], reason: str) -> None"
    assert found() == {("connector.py", "BlockPool.evict_blocks: wants reason as well")}


def test_a_field_of_a_message_that_we_build(engine, found):
    event = members(engine, "vllm.distributed.kv_events", "BlockStored")
    event["blocks"] = event.pop("block_hashes")
    assert found() == {("events.py", "BlockStored(): takes no block_hashes")}


def test_a_renamed_field_of_a_configuration(engine, found):
    specs = members(engine, SPECS, "KVCacheConfig")
    specs["groups"] = specs.pop("kv_cache_groups")
    assert {file for file, _ in found()} == {
        *("deployment.py", "identity.py", "support.py"),
        *("options.py", "rows.py"),
    }
    assert {text for _, text in found()} == {"KVCacheConfig has no kv_cache_groups"}


def test_a_swapped_layout(engine, found):
    layouts = members(engine, LAYOUTS, "KVCacheLayout")
    layouts["LBHNC"], layouts["LBNHC"] = layouts["LBNHC"], layouts["LBHNC"]
    assert found() == {
        ("kv_caches.py", f"KVCacheLayout.{name} was value = {was}, is value = {now}")
        for name, was, now in (
            ("LBHNC", "(0, 1, 2, 3, 4)", "(0, 1, 3, 2, 4)"),
            ("LBNHC", "(0, 1, 3, 2, 4)", "(0, 1, 2, 3, 4)"),
        )
    }


def test_a_moved_module(engine, found):
    engine._modules["vllm.v1.kv_specs"] = engine._modules.pop(SPECS)
    assert ("support.py", f"there is no {SPECS}.FullAttentionSpec") in found()


def test_a_removed_enumerator(engine, found):
    del members(engine, "vllm.v1.metrics.cache_hit_source", "CacheHitSource")["DISK"]
    assert found() == {("connector.py", "CacheHitSource has no DISK")}


def test_a_removed_field_of_a_request(engine, found):
    del members(engine, "vllm.v1.request", "Request")["cache_salt"]
    assert found() == {("requests.py", "Request has no cache_salt")}


def test_a_renamed_field_of_what_a_step_computes(engine, found):
    output = members(engine, "vllm.v1.core.sched.output", "CachedRequestData")
    output["resumed"] = output.pop("resumed_req_ids")
    assert found() == {("requests.py", "CachedRequestData has no resumed_req_ids")}


def test_a_new_abstract_hook_of_a_tier(engine, found):
    members(engine, TIERING, "SecondaryTierManager")["flush"] = "abstract def (self) -> None"
    assert found() == {
        ("tier.py", "SecondaryTierManager.flush is abstract and not overridden"),
    }


def test_a_renamed_hook_of_a_tier(engine, found):
    tier = members(engine, TIERING, "SecondaryTierManager")
    tier["forget"] = tier.pop("drain_jobs")
    assert found() == {
        ("tier.py", "SecondaryTierManager has no hook drain_jobs any more"),
        ("tier.py", "SecondaryTierManager.forget is abstract and not overridden"),
    }


def test_what_makes_a_tier_passes_other_things(engine, found):
    members(engine, TIERING, "SecondaryTierManager")["__init__"] = (
        "def (self, offloading_spec, primary_kv_view, clock, backpressure_detector=None) -> None"
    )
    text = "SecondaryTierManager.__init__: parameter 3 is clock, ours is tier_type"
    assert found() == {("tier.py", text)}


@pytest.mark.parametrize(("field", "file"), [("keys", "drift.py"), ("is_promotion", "tier.py")])
def test_a_renamed_field_of_a_job(engine, found, field, file):
    job = members(engine, TIERING, "TransferJob")
    job["other"] = job.pop(field)
    assert (file, f"TransferJob has no {field}") in found()


def test_a_field_of_a_result_that_we_do_not_fill(engine, found):
    members(engine, TIERING, "JobResult")["tier"] = "field: str"
    assert found() == {("drift.py", "JobResult(): wants tier as well")}


def test_a_renamed_answer_to_a_lookup(engine, found):
    answers = members(engine, OFFLOAD, "LookupResult")
    answers["ABSENT"] = answers.pop("MISS")
    assert found() == {("tier.py", "LookupResult has no MISS")}


def test_a_renamed_limit_on_what_is_stored(engine, found):
    scheduler = "vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler"
    status = members(engine, scheduler, "RequestOffloadState")
    status["limit"] = status.pop("max_offload_tokens")
    assert found() == {("connector.py", "RequestOffloadState has no max_offload_tokens")}


def test_a_reset_that_no_tier_is_told_of(engine, needs):
    """It is how we learn that weights have changed."""
    before = judge(VLLM, "0.33.1", engine, needs).changes
    manager = "vllm.v1.kv_offload.tiering.manager"
    engine.module(manager)["calls"].pop("TieringOffloadingManager.reset_cache")
    [lost] = set(judge(VLLM, "0.33.1", engine, needs).changes) - set(before)
    assert lost.kind == "removed"
    assert lost.path == f"{manager}.TieringOffloadingManager.reset_cache order"
    assert lost.place.startswith("flexkv_connectors/vllm/offloading/tier.py:")


def test_a_name_that_only_a_suite_uses():
    """The suites touch an engine's objects from a folder of their own."""
    sglang, version = ENGINES["sglang"], "0.5.23"
    storage = "sglang.srt.mem_cache.hicache_storage"
    needs = needs_of(sglang)
    known = judge(sglang, version, load(sglang, version), needs).findings
    engine = load(sglang, version)
    del engine.module(storage)["classes"]["PoolHitPolicy"]
    found = judge(sglang, "0.5.24", engine, needs).findings
    places = {one.place.partition(":")[0] for one in found if one.is_broken and one not in known}
    assert "flexkv_connectors/testing/hicache_pools.py" in places
