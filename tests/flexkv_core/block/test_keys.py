import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_core.block import keys
from flexkv_core.block.keys import KeyChain, MediaSpan, chain_seed, salt_seed
from flexkv_core.errors import FlexKVError, TokenError

VECTORS = json.loads((Path(__file__).parent / "golden_keys.json").read_text())

BLOCK_TOKENS = 4
TOKENS = st.integers(0, 2**32 - 1)
NAMES = st.text(max_size=6)


class Request(NamedTuple):
    """All that decides the keys of a request's first three blocks."""

    tokens: tuple[int, ...]
    media: tuple[MediaSpan, ...]
    cache_salt: str | None
    adapter: bytes | None
    request_namespace: str | None


REQUESTS = st.builds(
    Request,
    tokens=st.lists(TOKENS, min_size=12, max_size=12).map(tuple),
    media=st.lists(
        st.builds(MediaSpan, offset=st.integers(0, 11), length=st.integers(1, 8), identifier=NAMES),
        max_size=2,
    ).map(lambda spans: tuple(sorted(spans))),
    cache_salt=st.none() | NAMES,
    adapter=st.none() | st.binary(max_size=6),
    request_namespace=st.none() | NAMES,
)


def keys_of(
    tokens: Sequence[int],
    media: Sequence[MediaSpan] = (),
    block_tokens: int = BLOCK_TOKENS,
    seed: bytes | None = None,
) -> list[bytes]:
    chain = KeyChain(block_tokens, seed)
    chain.advance(tokens, media)
    return chain.keys


def last_key(request: Request) -> bytes:
    seed = chain_seed(
        cache_salt=request.cache_salt,
        adapter=request.adapter,
        request_namespace=request.request_namespace,
    )
    return keys_of(request.tokens, request.media, seed=seed)[-1]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_keys_equal_the_golden_vectors(vector):
    adapter = vector["adapter"]
    seed = chain_seed(
        cache_salt=vector["cache_salt"],
        adapter=None if adapter is None else bytes.fromhex(adapter),
        request_namespace=vector["request_namespace"],
    )
    media = [MediaSpan(*span) for span in vector["media"]]

    chain = keys_of(vector["tokens"], media, vector["block_tokens"], seed)

    assert (None if seed is None else seed.hex()) == vector["seed"]
    assert [key.hex() for key in chain] == vector["keys"]


def test_a_request_that_grows_token_by_token_has_the_keys_of_the_whole():
    tokens = list(range(BLOCK_TOKENS * 3 + 2))
    media = [MediaSpan(2, 5, "image")]
    chain, lengths = KeyChain(BLOCK_TOKENS), []
    for end in range(len(tokens) + 1):
        chain.advance(tokens[:end], media)
        lengths.append(len(chain.keys))

    assert chain.keys == keys_of(tokens, media)
    assert lengths == [end // BLOCK_TOKENS for end in range(len(tokens) + 1)]


def test_a_prompt_of_many_batches_has_the_keys_of_one_that_grew():
    tokens = list(range(20_000))
    chain = KeyChain(48)
    for end in range(0, len(tokens) + 1, 1000):
        chain.advance(tokens[:end])

    assert chain.keys == keys_of(tokens, block_tokens=48)


def test_the_list_of_keys_stays_the_same_object():
    chain = KeyChain(BLOCK_TOKENS)
    held = chain.keys
    chain.advance(range(8))

    assert held is chain.keys
    assert len(held) == 2


def test_the_chain_goes_on_from_keys_that_were_cut_off():
    chain = KeyChain(BLOCK_TOKENS)
    chain.advance([1, 2, 3, 4, 5, 6, 7, 8])
    del chain.keys[1:]
    chain.advance([1, 2, 3, 4, 9, 9, 9, 9])

    assert chain.keys == keys_of([1, 2, 3, 4, 9, 9, 9, 9])


@pytest.mark.parametrize("bad", [-1, 2**32, 2**64, -(2**70)])
def test_a_token_id_that_is_no_u32_is_named_and_no_key_is_made(bad):
    chain = KeyChain(BLOCK_TOKENS)
    with pytest.raises(TokenError, match=f"token id {bad} is not between 0 and 4294967295"):
        chain.advance([1, 2, 3, 4, 5, bad, 7, 8])

    assert chain.keys == []
    assert issubclass(TokenError, FlexKVError)
    assert issubclass(TokenError, ValueError)


def test_tokens_after_the_last_full_block_are_not_read():
    assert keys_of([1, 2, 3, 4, -1]) == keys_of([1, 2, 3, 4])


def test_keys_depend_on_no_process():
    program = (
        "from flexkv_core.block.keys import *\n"
        "chain = KeyChain(4, chain_seed(cache_salt='s', adapter=b'a', request_namespace='n'))\n"
        "chain.advance(range(12), [MediaSpan(1, 9, 'image')])\n"
        "print([key.hex() for key in chain.keys])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[3],
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("0", "1", "12345")
    }

    assert len(printed) == 1


@given(one=REQUESTS, other=REQUESTS)
def test_any_difference_gives_another_key(one, other):
    for field in Request._fields:
        changed = one._replace(**{field: getattr(other, field)})
        assert (last_key(changed) == last_key(one)) == (changed == one)


@pytest.mark.parametrize("change", [{"offset": 5}, {"length": 3}, {"identifier": "other"}])
def test_any_difference_of_a_media_item_gives_another_key(change):
    span = MediaSpan(4, 2, "image")
    tokens = range(8)

    assert keys_of(tokens, [span])[1] != keys_of(tokens, [span._replace(**change)])[1]


def test_an_item_changes_no_block_before_it():
    assert keys_of(range(12), [MediaSpan(4, 1, "image")])[0] == keys_of(range(12))[0]


def test_an_item_that_spans_blocks_is_placed_relative_to_each():
    tokens = [7] * 8
    whole = keys_of(tokens, [MediaSpan(0, 8, "image")])
    twice = keys_of(tokens, [MediaSpan(0, 4, "image"), MediaSpan(4, 4, "image")])

    assert whole[1] != twice[1]


def test_the_order_in_which_items_are_given_does_not_matter():
    spans = [MediaSpan(0, 2, "a"), MediaSpan(2, 1, "b"), MediaSpan(3, 9, "c")]

    assert keys_of(range(12), spans) == keys_of(range(12), spans[::-1])


@given(
    st.lists(
        st.tuples(st.none() | NAMES, st.none() | st.binary(max_size=6), st.none() | NAMES),
        unique=True,
        max_size=20,
    )
)
def test_seeds_of_different_fields_never_collide(fields):
    seeds = [
        chain_seed(cache_salt=salt, adapter=adapter, request_namespace=namespace)
        for salt, adapter, namespace in fields
    ]

    assert len(set(seeds)) == len(seeds)


def test_the_same_text_in_different_fields_gives_different_seeds():
    seeds = {
        chain_seed(cache_salt="x"),
        chain_seed(adapter=b"x"),
        chain_seed(request_namespace="x"),
        chain_seed(cache_salt="x", adapter=b""),
        chain_seed(cache_salt="", adapter=b"x"),
        chain_seed(),
    }

    assert len(seeds) == 6


def test_our_own_messages_have_a_length_that_no_message_of_sglang_has(monkeypatch):
    lengths = []
    real = keys.sha256

    def recording(message):
        lengths.append(len(message))
        return real(message)

    monkeypatch.setattr(keys, "sha256", recording)
    for size in range(9):
        chain_seed(adapter=b"x" * size)
        keys_of(range(4), [MediaSpan(0, 1, "x" * size)])

    assert {length % 4 for length in lengths} == {2}


def test_a_salt_that_is_broken_unicode_has_a_seed_of_its_own():
    assert salt_seed("\ud800") != salt_seed("\udc00")
    assert keys_of(range(4), [MediaSpan(0, 1, "\ud800")])
