"""From what each rank has found to chains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_core.control.hierarchy.found_chains import FoundChains
from flexkv_core.plan import StoredKey, TierReport


def key(number):
    return bytes([number]) * 32


def found(*pairs):
    """Return what was found, from (block, block before) each; None for no block before."""
    return [StoredKey(key(at), None if parent is None else key(parent)) for at, parent in pairs]


def report(rank, recovered, *, is_recovered=True):
    return TierReport(
        tier="ssd", rank=rank, capacity_blocks=9, recovered=recovered, is_recovered=is_recovered
    )


def runs(recovery):
    """Return the chains to the ends of all runs, as numbers, with where the run begins in each."""
    given_out = []
    while run := recovery.next_run():
        assert recovery.chain[run.start :] == run.keys
        given_out.append(([block[0] for block in recovery.chain], run.start))
    return given_out


def useless(recovery):
    return {block[0] for block in recovery.take_useless(99)}


def test_a_chain_comes_from_its_root_whatever_the_order_it_was_found_in():
    recovery = FoundChains([0])
    recovery.note(report(0, found((3, 2), (1, None), (2, 1))))
    assert runs(recovery) == [([1, 2, 3], 0)]


def test_runs_that_continue_one_come_after_it_one_after_the_other():
    recovery = FoundChains([0])
    recovery.note(report(0, found((1, None), (2, 1), (3, 1), (4, 3), (5, 3), (6, 2))))
    assert runs(recovery) == [
        ([1], 0),
        ([1, 3], 1),
        ([1, 2, 6], 1),
        ([1, 3, 5], 2),
        ([1, 3, 4], 2),
    ]


def test_a_run_names_the_one_that_it_continues():
    recovery = FoundChains([0])
    recovery.note(report(0, found((1, None), (2, 1), (3, 1), (4, None))))
    first, second, *rest = iter(recovery.next_run, None)
    assert (first.before, second.before) == (None, None)
    assert [run.before.keys for run in rest] == [[key(1)], [key(1)]]


def test_long_runs_come_in_parts(monkeypatch):
    monkeypatch.setattr("flexkv_core.control.hierarchy.found_chains._MAX_RUN_BLOCKS", 2)
    recovery = FoundChains([0])
    recovery.note(report(0, found((1, None), (2, 1), (3, 2), (4, 3), (5, 4))))
    assert runs(recovery) == [([1, 2], 0), ([1, 2, 3, 4], 2), ([1, 2, 3, 4, 5], 4)]


def test_nothing_is_given_out_while_an_owner_searches():
    recovery = FoundChains([0, 2])
    recovery.note(report(0, found((1, None))))
    recovery.note(report(2, found((1, None)), is_recovered=False))
    assert recovery.next_run() is None
    assert useless(recovery) == set()
    recovery.note(report(2, []))
    assert runs(recovery) == [([1], 0)]


def test_a_block_that_one_owner_lacks_is_useless_with_all_behind_it():
    recovery = FoundChains([0, 2])
    recovery.note(report(0, found((1, None), (2, 1), (3, 2))))
    recovery.note(report(2, found((1, None), (3, 2))))
    assert runs(recovery) == [([1], 0)]
    assert useless(recovery) == {2, 3}


def test_a_block_without_the_one_before_is_useless():
    recovery = FoundChains([0])
    recovery.note(report(0, found((2, 1))))
    assert runs(recovery) == []
    assert useless(recovery) == {2}


@pytest.mark.parametrize("loop", [[(1, 1)], [(1, 2), (2, 1)]])
def test_blocks_that_claim_each_other_as_parents_are_useless(loop):
    recovery = FoundChains([0])
    recovery.note(report(0, found(*loop)))
    assert runs(recovery) == []
    assert useless(recovery) == {at for at, _ in loop}


def test_what_an_owner_reports_twice_counts_once():
    recovery = FoundChains([0, 2])
    recovery.note(report(0, found((1, None)), is_recovered=False))
    recovery.note(report(0, found((1, None))))
    recovery.note(report(2, found((1, None), (1, None))))
    assert runs(recovery) == [([1], 0)]


def test_reports_of_others_and_after_the_end_change_nothing():
    recovery = FoundChains([0])
    recovery.note(report(7, found((1, None))))
    recovery.note(report(0, []))
    recovery.note(report(0, found((1, None))))
    assert runs(recovery) == []
    assert recovery.is_over


def test_it_is_over_when_everything_was_given_out():
    recovery = FoundChains([0])
    assert not recovery.is_over
    recovery.note(report(0, found((1, None), (3, 2))))
    assert not recovery.is_over
    runs(recovery)
    useless(recovery)
    assert recovery.is_over


def test_without_owners_it_is_over_at_once():
    assert FoundChains([]).is_over


def test_useless_blocks_come_a_few_at_a_time():
    recovery = FoundChains([0])
    recovery.note(report(0, found(*((at, 99) for at in range(5)))))
    runs(recovery)
    taken = []
    while not recovery.is_over:
        some = recovery.take_useless(2)
        assert len(some) <= 2
        taken += some
    assert sorted(taken) == [key(at) for at in range(5)]


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)), max_size=20))
def test_whatever_is_claimed_every_block_is_given_out_once_or_useless(pairs):
    recovery = FoundChains([0])
    recovery.note(report(0, found(*pairs)))
    new = [block for blocks, start in runs(recovery) for block in blocks[start:]]
    rest = useless(recovery)
    assert len(new) == len(set(new))
    assert set(new) | rest == {at for at, _ in pairs}
    assert recovery.is_over


def test_what_lies_behind_a_missing_block_is_given_out_last_where_fragments_are_kept():
    recovery = FoundChains([0], keeps_fragments=True)
    recovery.note(report(0, found((5, 4), (6, 5), (1, None), (3, 2))))
    assert runs(recovery)[0] == ([1], 0)
    recovery = FoundChains([0], keeps_fragments=True)
    recovery.note(report(0, found((5, 4), (6, 5), (1, None), (3, 2))))
    assert sorted(runs(recovery)) == [([1], 0), ([3], 0), ([5, 6], 0)]
    assert useless(recovery) == set()
    assert recovery.is_over


def test_a_fragment_ends_where_an_owner_has_lost_its_share():
    recovery = FoundChains([0, 2], keeps_fragments=True)
    recovery.note(report(0, found((5, 4), (6, 5), (7, 6))))
    recovery.note(report(2, found((5, 4), (7, 6))))
    assert sorted(runs(recovery)) == [([5], 0), ([7], 0)]
    assert useless(recovery) == {6}
