"""How far a prompt can be restored from several pools."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_connectors.sglang.sidecar_hits import Part, find_hit

POLICIES = ("all_pages", "trailing_pages")


def part(pages, policy="all_pages", window=1, name="swa"):
    """Describe a pool by a mark for each page: x is there."""
    return Part(name, policy, window, [page == "x" for page in pages])


def test_kv_alone_can_be_restored_up_to_every_page():
    assert find_hit(3, []) == (3, {"kv": 3}, [1, 2, 3])


def test_without_kv_nothing_can_be_restored():
    assert find_hit(0, [part("")]) == (0, {}, [])


@pytest.mark.parametrize(("pages", "longest"), [("xxxx", 4), ("xx.x", 2), (".xxx", 0)])
def test_what_all_pages_need_ends_the_hit_where_it_ends(pages, longest):
    hit = find_hit(4, [part(pages)])
    assert hit.num_pages == longest
    assert hit.ends == [*range(1, longest + 1)]
    assert hit.pages_by_pool == {"kv": 4} | ({"swa": longest} if longest else {})


@pytest.mark.parametrize(
    ("pages", "window", "ends"),
    [
        ("..x..x.", 1, [3, 6]),
        (".xx.xx..", 2, [3, 6]),
        ("x.......", 2, [1]),
        ("xx......", 3, [1, 2]),
        (".xx.....", 3, []),
        ("xxxx", 9, [1, 2, 3, 4]),
        ("........", 1, []),
    ],
)
def test_what_the_last_pages_need_allows_the_ends_of_whole_windows(pages, window, ends):
    hit = find_hit(len(pages), [part(pages, "trailing_pages", window)])
    assert hit.ends == ends
    assert hit.num_pages == hit.pages_by_pool.get("swa", 0) == max(ends, default=0)


def test_a_window_of_no_pages_is_one_of_one_page():
    assert find_hit(3, [part(".x.", "trailing_pages", 0)]).ends == [2]


def test_pools_have_to_agree_and_each_says_its_own():
    hit = find_hit(
        8,
        [
            part("xxxxxx..", name="indexer"),
            part(".x.x...x", "trailing_pages", 1, "mamba"),
            part("xx.xx.xx", "trailing_pages", 2, "swa"),
        ],
    )
    assert hit == (2, {"kv": 8, "indexer": 6, "mamba": 8, "swa": 8}, [2])


def test_what_holds_the_same_pages_once_more_neither_decides_nor_is_told():
    assert find_hit(2, [part("..", "block_groups")]) == (2, {"kv": 2}, [1, 2])


def test_a_policy_that_is_not_known_allows_nothing():
    assert find_hit(2, [part("xx", "every_other_page")]) == (0, {"kv": 2}, [])


@given(
    st.lists(st.booleans(), max_size=8),
    st.lists(st.tuples(st.sampled_from(POLICIES), st.integers(0, 4)), max_size=3),
    st.data(),
)
def test_at_every_end_every_pool_has_what_it_needs_and_at_no_other(kv, wanted, data):
    num_pages = len(kv)
    flags = st.lists(st.booleans(), min_size=num_pages, max_size=num_pages)
    parts = [
        Part(str(index), policy, window, data.draw(flags))
        for index, (policy, window) in enumerate(wanted)
    ]

    def has_all(end, part):
        window = end if part.policy == "all_pages" else max(1, part.window)
        return all(part.has_page[max(0, end - window) : end])

    expected = [end for end in range(1, num_pages + 1) if all(has_all(end, part) for part in parts)]
    hit = find_hit(num_pages, parts)
    assert hit.ends == expected
    assert hit.num_pages == max(expected, default=0)


def test_a_wide_window_over_many_pages_looks_at_each_page_once():
    num_looks = 0

    class Pages(list):
        """Counts how many of its items are looked at."""

        def __getitem__(self, index):
            nonlocal num_looks
            found = super().__getitem__(index)
            num_looks += len(found) if isinstance(index, slice) else 1
            return found

        def __iter__(self):
            return (self[index] for index in range(len(self)))

    pages = Pages([True] * 1000)
    assert find_hit(1000, [Part("swa", "trailing_pages", 256, pages)]).num_pages == 1000
    assert num_looks == 1000


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 14))
def test_an_end_is_one_before_which_all_of_the_window_is(pages, window):
    hit = find_hit(len(pages), [Part("swa", "trailing_pages", window, pages)])
    width = max(1, window)
    starts = {end: max(0, end - width) for end in range(1, len(pages) + 1)}
    assert hit.ends == [end for end, start in starts.items() if all(pages[start:end])]
