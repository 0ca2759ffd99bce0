"""Superblocks and headers: what is packed comes back, what is not is never believed."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flexkv_core.checked_text import _PREFIX
from flexkv_core.data.tiers.ssd.format import (
    _SLAB_MAGIC,
    PAGE_BYTES,
    CellHeader,
    Superblock,
    checksum,
    column_identity,
    slot_bytes,
)

HASHES = st.binary(min_size=32, max_size=32)
LENGTHS = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    CellHeader,
    identity=HASHES,
    key=HASHES,
    parent=st.none() | HASHES.filter(any),
    payload_bytes=LENGTHS,
    payload_checksum=LENGTHS,
)
EARLIER = {"is_temporary": False}
USED_HEADER_BYTES = 8 + 3 * 32 + 3 * 8
MUTATIONS = st.lists(
    st.tuples(st.integers(0, PAGE_BYTES - 1), st.integers(1, 255)), min_size=1, max_size=8
)


def mutated(page, mutations):
    page = bytearray(page)
    for offset, bits in mutations:
        page[offset] ^= bits
    return bytes(page)


@given(HEADERS)
def test_a_header_comes_back(header):
    assert CellHeader.unpack(header.pack()) == header
    assert len(header.pack()) == PAGE_BYTES


@given(HEADERS, MUTATIONS)
def test_a_changed_header_is_refused_or_says_the_same(header, mutations):
    assert CellHeader.unpack(mutated(header.pack(), mutations)) in (None, header)


@given(HEADERS, st.integers(0, USED_HEADER_BYTES - 1), st.integers(1, 255))
def test_a_header_with_any_byte_of_its_fields_changed_is_refused(header, offset, bits):
    assert CellHeader.unpack(mutated(header.pack(), [(offset, bits)])) is None


@given(st.binary(max_size=2 * PAGE_BYTES))
def test_bytes_that_are_no_header_are_refused(page):
    assert CellHeader.unpack(page) is None


@given(HEADERS, st.integers(0, USED_HEADER_BYTES - 1))
def test_a_header_that_was_cut_off_is_refused(header, num_bytes):
    assert CellHeader.unpack(header.pack()[:num_bytes]) is None


@given(st.binary(max_size=2 * PAGE_BYTES))
def test_bytes_that_are_no_superblock_are_refused(page):
    assert Superblock.unpack(page) is None


@given(MUTATIONS)
def test_a_changed_superblock_is_refused_or_says_the_same(superblock, mutations):
    page = mutated(superblock.pack(), mutations)
    assert Superblock.unpack(page) in (None, superblock)


@given(st.binary(max_size=200) | st.text().map(lambda text: f'{{"column":"{text}"}}'.encode()))
@example(b'{"column":"\xff"}')
@example(b"[" * 4000)
def test_a_superblock_of_other_fields_with_a_right_checksum_is_refused(content):
    prefix = _PREFIX.pack(_SLAB_MAGIC, len(content), checksum(content))
    assert Superblock.unpack((prefix + content).ljust(PAGE_BYTES, b"\0")[:PAGE_BYTES]) is None


def test_a_superblock_comes_back(superblock):
    page = superblock.pack()
    assert len(page) == PAGE_BYTES
    assert Superblock.unpack(page) == superblock


def test_columns_and_namespaces_have_identities_of_their_own(disk):
    other = msgspec.structs.replace(disk.namespace, model="other")
    first, second = disk.columns
    assert (
        len({column_identity(n, c) for n in (disk.namespace, other) for c in (first, second)}) == 4
    )


def test_the_identity_of_a_column_is_the_golden_one(disk):
    """Or blocks that were stored before would not be found again."""
    assert column_identity(disk.namespace, disk.columns[0]).hex() == (
        "dfc4eca65d017b2e63b58aca91167588e3e7b914fc7adfe2e94b1e603bb4a6f6"
    )


def test_generations_have_identities_of_their_own(disk):
    tokens = ["", "a", "b"]
    assert len({column_identity(disk.namespace, disk.columns[0], token) for token in tokens}) == 3


def test_where_generations_mean_nothing_earlier_releases_read_a_superblock(disk):
    superblock = Superblock.of(disk.namespace, disk.columns[0], 8192)
    assert b"generation" not in superblock.pack()
    assert (
        b"generation" in Superblock.of(disk.namespace, disk.columns[0], 8192, generation="a").pack()
    )


def test_a_superblock_of_an_earlier_release_is_read(disk):
    """It states a default."""
    superblock = Superblock.of(disk.namespace, disk.columns[0], 8192)
    text = msgspec.json.encode(msgspec.json.decode(msgspec.json.encode(superblock)) | EARLIER)
    page = _PREFIX.pack(_SLAB_MAGIC, len(text), checksum(text)) + text
    assert Superblock.unpack(page.ljust(PAGE_BYTES, b"\0")) == superblock


@pytest.mark.parametrize(("cell_bytes", "expected"), [(1, 8192), (4096, 8192), (4097, 12288)])
def test_slots_are_whole_pages(cell_bytes, expected):
    assert slot_bytes(cell_bytes) == expected
