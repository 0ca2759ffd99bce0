"""A GPU lane is ordered against the engine, against itself, and against its own reports."""

from collections import Counter

import numpy as np
import pytest
from cpu_lane_rig import offload, onboard
from gpu_lane_rig import ORDERS, make_gpu_rig

from flexkv_core.errors import TierError
from flexkv_core.plan import Status
from flexkv_core.testing.geometry import POISON, read_block


@pytest.fixture(params=ORDERS)
def rig(request):
    return make_gpu_rig(ORDERS[request.param])


def test_a_save_takes_what_the_pass_before_it_computed(rig):
    rig.forward(page=3, value=1)
    rig.lane.submit(offload([3], [0]))
    rig.results()
    assert set(rig.slot(0)) == {1}


def test_a_page_that_the_next_pass_reuses_is_saved_as_it_was(rig):
    before = read_block(rig.pages, [3])
    rig.lane.submit(offload([3], [0]))
    rig.forward(page=3, value=2)
    rig.results()
    assert bytes(rig.slot(0)) == before
    assert set(rig.page(3)) == {2}


def test_a_load_waits_for_a_pass_that_still_uses_its_page(rig):
    rig.slot(4).fill(9)
    rig.forward(page=3, value=1)
    rig.lane.submit(onboard([4], [3]))
    rig.results()
    assert set(rig.page(3)) == {9}


def test_a_page_that_is_saved_for_one_request_and_loaded_for_the_next_keeps_both(rig):
    before = read_block(rig.pages, [3])
    rig.slot(4).fill(9)
    rig.lane.submit(offload([3], [0]))
    rig.lane.submit(onboard([4], [3]))
    rig.results()
    assert bytes(rig.slot(0)) == before
    assert set(rig.page(3)) == {9}


def test_a_load_is_reported_when_its_last_byte_is_there(rig):
    rig.slot(4).fill(9)
    rig.slot(5).fill(8)
    rig.lane.submit(onboard([4, 5], [3, 7]))
    while not rig.lane.poll():
        assert rig.device.step()
    assert [set(rig.page(3)), set(rig.page(7))] == [{9}, {8}]


def test_a_save_is_reported_when_its_last_byte_is_there(rig):
    expected = read_block(rig.pages, [3]) + read_block(rig.pages, [5])
    rig.lane.submit(offload([3, 5], [0, 1]))
    while not rig.lane.poll():
        assert rig.device.step()
    assert bytes(rig.slot(0)) + bytes(rig.slot(1)) == expected


def test_a_load_larger_than_its_part_of_staging_goes_through_in_rounds(rig):
    for slot in range(5):
        rig.slot(slot).fill(slot + 1)
    rig.lane.submit(onboard([0, 1, 2, 3, 4], [10, 2, 7, 4, 0]))
    (result,) = rig.results()
    assert result.status is Status.OK
    assert [set(rig.page(page)) for page in (10, 2, 7, 4, 0)] == [{1}, {2}, {3}, {4}, {5}]


def test_loads_that_follow_one_another_do_not_mix(rig):
    rig.slot(0).fill(1)
    rig.slot(1).fill(2)
    rig.lane.submit(onboard([0], [3], job_id=1))
    rig.lane.submit(onboard([1], [4], job_id=2))
    assert [result.job_id for result in rig.results()] == [1, 2]
    assert [set(rig.page(3)), set(rig.page(4))] == [{1}, {2}]


def test_a_pass_that_is_held_back_writes_behind_a_load(rig):
    """Its engine has given the page to somebody else without waiting for the load."""
    rig.slot(0).fill(1)
    rig.lane.submit(onboard([0], [3]))
    rig.lane.hold_compute()
    rig.forward(3, value=9)
    rig.results()
    assert set(rig.page(3)) == {9}


def test_without_loads_no_pass_is_held_back(rig):
    rig.lane.hold_compute()
    rig.forward(3, value=9)
    rig.results()
    assert set(rig.page(3)) == {9}


@pytest.mark.parametrize("order", ORDERS)
def test_a_load_may_begin_and_end_inside_a_block(order):
    rig = make_gpu_rig(ORDERS[order], pages_per_block=4)
    for slot in range(3):
        rig.slot(slot)[:] = np.random.default_rng(slot).integers(0, 256, len(rig.slot(slot)))
    blocks = b"".join(bytes(rig.slot(slot)) for slot in range(3))
    untouched = rig.page(9).copy()
    rig.lane.submit(onboard([0, 1, 2], [8, 1, 6, 3, 0, 11, 5, 2], first_page=3))
    (result,) = rig.results()
    assert (result.status, result.num_blocks) == (Status.OK, 3)
    heads, layers, tokens = rig.pages.num_heads, rig.pages.num_layers, rig.pages.page_tokens
    stored = np.frombuffer(blocks, np.uint8).reshape(3, heads, layers, 4, tokens, -1)
    for position, page in enumerate([8, 1, 6, 3, 0, 11, 5, 2], start=3):
        part = stored[position // 4, :, :, position % 4]
        assert read_block(rig.pages, [page]) == part.tobytes()
    assert np.array_equal(rig.page(9), untouched)


@pytest.fixture
def calls(rig, monkeypatch):
    """Count what the lane asks of its device."""
    counts = Counter()

    def counted(name, method):
        def call(*ids):
            counts[name] += 1
            method(*ids)

        return call

    for name in ("gather", "copy_out", "copy_in", "scatter"):
        monkeypatch.setattr(rig.device, name, counted(name, getattr(rig.device, name)))
    return counts


def test_the_saves_of_a_step_are_one_gather_and_one_copy(rig, calls):
    before = [read_block(rig.pages, [page]) for page in (3, 7, 5)]
    rig.lane.submit_all([offload([3], [0], job_id=1), offload([7, 5], [2, 1], job_id=2)])
    assert calls == {"gather": 1, "copy_out": 1}
    results = rig.results()
    assert [(result.job_id, result.num_blocks) for result in results] == [(1, 1), (2, 2)]
    assert [result.num_bytes for result in results] == [len(rig.slot(0)), 2 * len(rig.slot(0))]
    assert [bytes(rig.slot(slot)) for slot in (0, 2, 1)] == before


def test_the_loads_of_a_step_are_one_copy_and_one_scatter(rig, calls):
    rig.slot(4).fill(9)
    rig.slot(5).fill(8)
    rig.lane.submit_all([onboard([4], [3], job_id=1), onboard([5], [7], job_id=2)])
    assert calls == {"copy_in": 1, "scatter": 1}
    assert sorted(result.job_id for result in rig.results()) == [1, 2]
    assert [set(rig.page(3)), set(rig.page(7))] == [{9}, {8}]


def test_saves_given_one_by_one_are_as_many_gathers(rig, calls):
    """What a step is spared by giving them together."""
    rig.lane.submit(offload([3], [0], job_id=1))
    rig.lane.submit(offload([7], [1], job_id=2))
    assert calls == {"gather": 2, "copy_out": 2}


def test_a_step_saves_the_plans_that_are_possible(rig):
    """Of three places in the ring, the first plan takes two; the third plan names a wrong page."""
    plans = [
        offload([3, 5], [0, 1], job_id=1),
        offload([7, 2], [2, 3], job_id=2),
        offload([99], [4], job_id=3),
        offload([4], [5], job_id=4),
    ]
    before = read_block(rig.pages, [4])
    rig.lane.submit_all(plans)
    assert {result.job_id: result.status for result in rig.results()} == {
        1: Status.OK,
        2: Status.BUSY,
        3: Status.ERROR,
        4: Status.OK,
    }
    assert bytes(rig.slot(5)) == before
    assert set(rig.slot(2)) == {POISON}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_loads_of_a_step_may_begin_and_end_inside_blocks(order):
    rig = make_gpu_rig(order, pages_per_block=2, N=2)
    pages = [list(range(slot * 2, slot * 2 + 2)) for slot in range(3)]
    for slot, block_pages in enumerate(pages):
        rig.lane.submit(offload(block_pages, [slot], job_id=slot))
        rig.results()
    before = [read_block(rig.pages, [page]) for page in range(12)]
    first = onboard([0, 1], [8, 9, 10], job_id=1, first_page=1)
    second = onboard([2], [11], job_id=2)
    rig.lane.submit_all([first, second])
    assert sorted(result.job_id for result in rig.results()) == [1, 2]
    after = [read_block(rig.pages, [page]) for page in range(12)]
    assert after == [*before[:8], before[1], before[2], before[3], before[4]]


def test_a_save_that_finds_no_room_is_refused_and_writes_nothing(rig):
    rig.lane.submit(offload([0, 1], [0, 1], job_id=1))
    rig.lane.submit(offload([2, 3], [2, 3], job_id=2))
    refusal, result = rig.results()
    assert (refusal.job_id, refusal.status, refusal.num_blocks) == (2, Status.BUSY, 0)
    assert result.status is Status.OK
    assert set(rig.slot(2)) == {POISON}


def test_room_in_the_ring_is_there_again_when_its_save_is_reported(rig):
    for job_id in range(1, 6):
        before = read_block(rig.pages, [job_id]) + read_block(rig.pages, [job_id + 1])
        rig.lane.submit(offload([job_id, job_id + 1], [0, 1], job_id=job_id))
        (result,) = rig.results()
        assert result.status is Status.OK
        assert bytes(rig.slot(0)) + bytes(rig.slot(1)) == before


def test_the_ring_is_not_used_again_before_its_save_has_left_it(rig):
    pages = {slot: read_block(rig.pages, [slot]) for slot in range(6)}
    saved = set()
    for slot in range(6):
        rig.lane.submit(offload([slot], [slot], job_id=slot))
        saved |= {result.job_id for result in rig.lane.poll() if result.status is Status.OK}
    saved |= {result.job_id for result in rig.results() if result.status is Status.OK}
    assert {slot for slot in range(6) if bytes(rig.slot(slot)) == pages[slot]} == saved
    assert len(saved) == rig.lane.save_places


def test_a_load_that_its_deadline_has_overtaken_is_reported_after_its_last_write(rig):
    rig.slot(4).fill(9)
    rig.lane.submit(onboard([4], [3], deadline_s=rig.clock() + 1))
    rig.clock.advance(10)
    while not (results := rig.lane.poll()):
        assert rig.device.step()
    after = rig.page(3).copy()
    rig.device.finish()
    assert np.array_equal(rig.page(3), after)
    assert [result.status for result in results] == [Status.OK]


def test_a_lane_whose_device_is_stuck_says_so_and_reports_nothing(rig):
    rig.lane.submit(offload([3], [0]))
    assert not rig.lane.drain(0.0)
    assert rig.lane.poll() == []


def test_a_load_that_cannot_be_queued_whole_is_under_way_until_its_last_write(rig, monkeypatch):
    copy_in = rig.device.copy_in

    def refuse_the_second_round(slots, places):
        if 2 in slots:
            raise TierError("host", "refused")
        copy_in(slots, places)

    monkeypatch.setattr(rig.device, "copy_in", refuse_the_second_round)
    rig.slot(0).fill(9)
    with pytest.raises(TierError):
        rig.lane.submit(onboard([0, 1, 2], [3, 7, 5]))
    while not rig.lane.drain(0.0):
        assert rig.device.step()
    assert set(rig.page(3)) == {9}
    assert rig.lane.poll() == []


def test_a_closed_lane_still_reports_what_was_queued(rig):
    rig.lane.submit(offload([3], [0]))
    rig.lane.close()
    assert rig.lane.drain(1.0)
    assert [result.status for result in rig.lane.poll()] == [Status.OK]


def test_what_was_copied_is_counted(rig):
    rig.lane.submit(offload([3, 5], [0, 1]))
    rig.clock.advance(0.25)
    (result,) = rig.results()
    assert (result.num_bytes, result.seconds) == (2 * len(rig.slot(0)), 0.25)
