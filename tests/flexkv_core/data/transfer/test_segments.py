"""Segments against the plainest expansion of a plan: one (page, slot, position) for each page."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flexkv_core.data.transfer.segments import segments_of
from flexkv_core.plan import EnginePages, HostSlots


def slots_of(*slots):
    return HostSlots(np.array(slots, np.int64).tobytes())


def as_triples(segments):
    return [
        (segment.pages.start, segment.pages.stop, segment.slot, segment.in_block.start)
        for segment in segments
    ]


def test_neighbours_in_a_block_are_one_segment():
    segments = segments_of(EnginePages([4, 5, 6, 9]), slots_of(7), 4)
    assert as_triples(segments) == [(4, 7, 7, 0), (9, 10, 7, 3)]


def test_a_block_ends_a_segment():
    segments = segments_of(EnginePages([0, 1, 2, 3]), slots_of(7, 8), 2)
    assert as_triples(segments) == [(0, 2, 7, 0), (2, 4, 8, 0)]


def test_descending_pages_are_no_neighbours():
    segments = segments_of(EnginePages([3, 2]), slots_of(7), 2)
    assert as_triples(segments) == [(3, 4, 7, 0), (2, 3, 7, 1)]


def test_a_run_may_begin_inside_a_block():
    segments = segments_of(EnginePages([5, 6, 7], first_page=3), slots_of(7, 8), 4)
    assert as_triples(segments) == [(5, 6, 7, 3), (6, 8, 8, 0)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 5), st.integers(0, 4))
def test_every_page_goes_to_its_place_exactly_once(page_ids, per_block, skipped):
    first_page = skipped % per_block
    num_blocks = -(-(first_page + len(page_ids)) // per_block)
    slots = list(range(100, 100 + num_blocks))
    expected = [
        (page, slots[position // per_block], position % per_block)
        for position, page in enumerate(page_ids, first_page)
    ]
    segments = segments_of(EnginePages(page_ids, first_page), slots_of(*slots), per_block)
    got = [
        (page, segment.slot, position)
        for segment in segments
        for page, position in zip(
            range(10)[segment.pages], range(per_block)[segment.in_block], strict=True
        )
    ]
    assert expected == got
