"""Our tier below vLLM's own manager: what it keeps, gives back, refuses and survives."""

import errno
import os
import threading

import pytest
from offload_engines import flip_all

HIT, MISS, PENDING = "HIT", "MISS", "HIT_PENDING"


@pytest.fixture
def keys(offload):
    """Return the keys of a few blocks."""
    return [offload.key_of(number) for number in range(8)]


@pytest.fixture
def start(offload, config_of, tmp_path):
    """Return a function that starts a rig on one directory; all end with the test."""
    rigs = []

    def start(**options):
        rigs.append(offload.OffloadRig(config_of(), tmp_path / "ssd", **options).open())
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close()


@pytest.fixture
def stored(start, keys):
    """Return a rig whose blocks are on disk and no longer in host memory."""
    rig = start()
    rig.begin("first")
    rig.save("first", {key: number + 1 for number, key in enumerate(keys)})
    rig.settle()
    rig.forget_rows()
    return rig


def test_what_left_host_memory_comes_back_from_disk(stored, keys):
    stored.begin("second")
    for number, key in enumerate(keys):
        assert stored.find("second", key) is HIT
        assert stored.load("second", key) == {number + 1}


def test_all_that_one_request_asks_for_in_a_step_is_one_job(stored, keys):
    stored.begin("second")
    assert {stored.lookup("second", key) for key in keys} == {PENDING}
    assert len(stored.engine.offered) == len(keys)
    stored.step()
    assert len(stored.tier._jobs) == 1
    stored.settle()
    assert {stored.lookup("second", key) for key in keys} == {HIT}


def test_another_process_finds_what_one_has_stored(stored, start, keys):
    stored.close()
    other = start()
    other.begin("second")
    assert other.find("second", keys[3]) is HIT
    assert other.load("second", keys[3]) == {4}


def test_what_was_never_stored_is_a_miss(stored, offload):
    stored.begin("second")
    assert stored.lookup("second", offload.key_of(99)) is MISS


def test_the_same_hash_in_another_group_is_another_block(stored, offload):
    stored.begin("second")
    assert stored.lookup("second", offload.key_of(0, group=1)) is MISS


def test_a_flipped_byte_is_a_miss_for_the_request_that_asked_and_never_a_row(
    stored, tmp_path, keys
):
    flip_all(tmp_path)
    stored.begin("second")
    assert stored.find("second", keys[0]) is MISS
    assert stored.find("second", keys[1]) is MISS


def test_without_a_flip_the_same_question_is_a_hit(stored, keys):
    stored.begin("second")
    assert stored.find("second", keys[0]) is HIT


def test_what_came_too_late_is_not_offered_to_the_same_request_again(start, keys):
    rig = start(promotion_timeout_s=0.001)
    rig.begin("first")
    rig.save("first", {keys[0]: 1})
    rig.settle()
    rig.forget_rows()
    rig.begin("second")
    rig.tier._store._loads._lane._clock = lambda: float("inf")  # every deadline has passed
    assert rig.find("second", keys[0]) is MISS


def test_an_adapter_of_other_content_finds_nothing(stored, keys, offload):
    stored.begin("second", offload.TierRequest(adapter=b"other"))
    assert stored.lookup("second", keys[0]) is MISS


def test_behind_a_medium_nothing_is_stored(start, keys, offload):
    rig = start()
    context = rig.begin("first", offload.TierRequest(num_durable_tokens=64))
    if not hasattr(context, "set_offload_key_position"):
        pytest.skip("this vLLM does not say where a block ends")
    for number, key in enumerate(keys):
        context.set_offload_key_position(key, 32 * (number + 1))
    rig.save("first", dict.fromkeys(keys, 1))
    rig.settle()
    rig.forget_rows()
    rig.begin("second")
    assert [rig.find("second", key) for key in keys] == [HIT] * 2 + [MISS] * 6


def test_what_may_be_behind_a_medium_is_not_stored(start, keys, offload):
    """Before 0.31 vLLM does not say where a block ends."""
    rig = start()
    rig.begin("first", offload.TierRequest(num_durable_tokens=64))
    rig.save("first", {keys[0]: 1})
    rig.settle()
    rig.forget_rows()
    rig.begin("second")
    assert rig.find("second", keys[0]) is MISS


def test_a_reset_ends_every_job_and_nothing_of_before_is_found_again(stored, start, keys):
    stored.begin("second")
    stored.lookup("second", keys[0])
    stored.step()
    stored.manager.reset_cache()
    assert not stored.manager.has_pending_work()
    stored.begin("third")
    assert stored.lookup("third", keys[0]) is MISS


def test_a_reset_outlives_the_process_where_the_weights_have_a_name(start, keys):
    rig = start(weight_version="one")
    rig.begin("first")
    rig.save("first", {keys[0]: 1})
    rig.settle()
    rig.manager.reset_cache()
    rig.close()
    other = start(weight_version="one")
    other.begin("second")
    assert other.lookup("second", keys[0]) is MISS


@pytest.mark.parametrize("hook", ["lookup", "submit_save", "submit_load", "poll"])
def test_a_store_that_raises_costs_its_hits_alone(stored, hook, monkeypatch, keys, offload):
    def fail(*_args):
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(type(stored.tier._store), hook, fail)
    stored.begin("second")
    stored.find("second", keys[0])
    stored.save("second", {offload.key_of(9): 9})
    stored.settle()
    assert stored.tier._barrier.reason
    assert stored.load("second", offload.key_of(9)) == {9}
    stored.begin("third")
    assert stored.find("third", keys[1]) is MISS


def test_a_prompt_that_is_longer_than_host_memory_gets_an_answer(start, offload):
    rig = start(cpu_cache_gb=8 * 81920 / 2**30)
    keys = [offload.key_of(number) for number in range(12)]
    rig.begin("first")
    for part in (keys[:6], keys[6:]):
        rig.save("first", dict.fromkeys(part, 1))
        rig.settle()
    rig.forget_rows()
    rig.begin("second")
    for _ in range(50):
        answers = {rig.lookup("second", key) for key in keys}
        rig.step()
        rig.settle()
        if PENDING not in answers:
            break
    assert PENDING not in answers


def test_a_reset_counts_even_if_the_tier_is_off(start, keys, monkeypatch):
    rig = start(weight_version="one")
    rig.begin("first")
    rig.save("first", {keys[0]: 1})
    rig.settle()
    rig.tier._barrier.switch_off("a test says so")
    rig.manager.reset_cache()
    rig.close()
    other = start(weight_version="one")
    other.begin("second")
    assert other.lookup("second", keys[0]) is MISS


def test_vllm_can_release_its_region(stored):
    stored.close()
    with pytest.raises(ValueError, match="released"):
        len(stored.manager.primary_tier.get_kv_memoryview())


@pytest.fixture
def hanging(monkeypatch):
    """Return a gate that calls of the disk do not pass while it is closed, and which of them."""
    gates = {"preadv": threading.Event(), "pwritev": threading.Event()}
    for name, gate in gates.items():
        gate.set()
        monkeypatch.setattr(os, name, waiting_for(gate, getattr(os, name)))
    yield gates
    for gate in gates.values():
        gate.set()


def waiting_for(gate, call):
    def wait(*arguments):
        gate.wait()
        return call(*arguments)

    return wait


def test_a_disk_that_hangs_is_not_waited_for_and_its_late_answer_fills_no_row(
    hanging, start, keys, offload
):
    rig = start(promotion_timeout_s=0.05)
    rig.begin("first")
    rig.save("first", {keys[0]: 1})
    rig.settle()
    rig.forget_rows()
    rig.rows[:] = 7
    hanging["preadv"].clear()
    rig.begin("second")
    assert rig.find("second", keys[0]) is MISS
    hanging["preadv"].set()
    rig.tier._store._loads._lane._far.drain(30.0)
    rig.step()
    assert set(rig.rows.ravel().tolist()) == {7}


def test_a_reset_does_not_wait_for_jobs_whose_disk_hangs(hanging, stored, keys):
    hanging["preadv"].clear()
    stored.begin("second")
    stored.lookup("second", keys[0])
    stored.step()
    stored.tier._cancel()
    stored.tier._abandon()
    assert [job.success for job in stored.tier.get_finished_jobs()] == [False]


def test_a_disk_that_does_not_write_gives_vllm_its_rows_back(hanging, start, keys):
    rig = start()
    rig.begin("first")
    hanging["pwritev"].clear()
    rig.save("first", {keys[0]: 1})
    rig.tier._store._saves._lane._clock = lambda: float("inf")  # every deadline has passed
    rig.settle()
    assert rig.lookup("first", keys[0]) is HIT


def test_a_full_disk_costs_what_does_not_fit(monkeypatch, start, keys):
    rig = start()
    rig.begin("first")
    monkeypatch.setattr(os, "pwritev", refusing(errno.ENOSPC))
    rig.save("first", dict.fromkeys(keys, 1))
    rig.settle()
    rig.forget_rows()
    rig.begin("second")
    assert rig.find("second", keys[0]) is MISS


def test_a_read_that_fails_is_a_miss(monkeypatch, stored, keys):
    monkeypatch.setattr(os, "preadv", refusing(errno.EIO))
    stored.begin("second")
    assert stored.find("second", keys[0]) is MISS


def refusing(number):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    return refuse
