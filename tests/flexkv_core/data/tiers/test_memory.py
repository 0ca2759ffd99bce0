"""Places for blocks, in one piece or many."""

import numpy as np
import pytest

from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.memory import MAX_PIECES, PageMemory, PagePiece, SlotMemory, cut
from flexkv_core.errors import LayoutError

KIB_4 = 4096


@pytest.fixture
def numbers():
    return np.arange(60, dtype=np.uint8)


def test_slots_leave_out_what_is_between_them(numbers):
    memory = SlotMemory(memoryview(numbers), num_slots=3, slot_bytes=3, stride=20)
    assert [list(piece) for slot in range(3) for piece in memory.pieces(slot)] == [
        [0, 1, 2],
        [20, 21, 22],
        [40, 41, 42],
    ]


def test_a_page_is_its_pieces_in_the_order_given(numbers):
    start = numbers.ctypes.data
    memory = PageMemory([PagePiece(start + 30, 10, 2), PagePiece(start, 5, 3)], num_pages=3)
    assert memory.slot_bytes == 5
    assert [list(piece) for piece in memory.pieces(2)] == [[50, 51], [10, 11, 12]]


def test_what_is_written_to_a_piece_is_in_the_page(numbers):
    memory = PageMemory([PagePiece(numbers.ctypes.data, 20, 2)], num_pages=3)
    (piece,) = memory.pieces(1)
    piece[:] = b"\xff\xfe"
    assert [*numbers[19:23]] == [19, 255, 254, 22]


def test_the_last_piece_of_the_last_page_is_within_reach(numbers):
    memory = PageMemory([PagePiece(numbers.ctypes.data, 20, 20)], num_pages=3)
    assert [piece[-1] for piece in memory.pieces(2)] == [59]


def test_pieces_that_one_call_cannot_take_are_refused(numbers):
    pieces = [PagePiece(numbers.ctypes.data, 1, 1)] * (MAX_PIECES + 1)
    with pytest.raises(LayoutError, match="1001 pieces, expected 1000"):
        PageMemory(pieces, num_pages=1)


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 512, 0), (0, 0, 512)])
def test_memory_is_aligned_if_every_piece_is(change):
    aligned = (1 << 20, 2 * KIB_4, KIB_4)
    assert PageMemory([PagePiece(*aligned)], num_pages=1).is_aligned
    other = PagePiece(*(sum(pair) for pair in zip(aligned, change, strict=True)))
    assert not PageMemory([PagePiece(*aligned), other], num_pages=1).is_aligned


@pytest.mark.parametrize(("slot_bytes", "is_aligned"), [(KIB_4, True), (KIB_4 + 8, False)])
def test_slots_of_a_pool_are_aligned_if_they_are_whole_pages(slot_bytes, is_aligned):
    pool = HostPool.create(2, slot_bytes)
    assert pool.memory.is_aligned is is_aligned
    pool.close()


def test_slots_outlive_the_pool_that_they_are_of():
    pool = HostPool.create(2, 8)
    memory = pool.memory
    pool.close()
    (piece,) = memory.pieces(1)
    piece[:] = b"12345678"
    assert bytes(memory.pieces(1)[0]) == b"12345678"


@pytest.mark.parametrize(
    ("first", "num_bytes", "expected"),
    [
        (0, 9, [b"abc", b"defg", b"hi"]),
        (0, 3, [b"abc"]),
        (3, 4, [b"defg"]),
        (2, 3, [b"c", b"de"]),
        (4, 1, [b"e"]),
        (6, 3, [b"g", b"hi"]),
        (9, 0, []),
    ],
)
def test_a_cut_is_the_bytes_that_were_asked_for(first, num_bytes, expected):
    pieces = [memoryview(piece) for piece in (b"abc", b"defg", b"hi")]
    assert [bytes(piece) for piece in cut(pieces, first, num_bytes)] == expected
