"""What Dynamo's indexer makes of events, and why ours are as they are. All are sent by vLLM."""

import pytest

PAGE = 16
TOKENS = list(range(1000, 1000 + 8 * PAGE))


@pytest.fixture
def publishers():
    """A function that makes vLLM's publisher; all are shut down."""
    from indexer import make_publisher

    made = []

    def make(**options):
        made.append(make_publisher(**options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.shutdown()


@pytest.fixture
def worker(indexer, publishers):
    from indexer import Worker

    return Worker(indexer, PAGE, publishers())


def names(pages, first=2**40):
    return [first + page for page in pages]


def stored(pages, medium, first=2**40, page_tokens=PAGE, tokens=TOKENS, **changes):
    """Say that the pages of a range are in a tier, each named `first` plus its number."""
    from vllm.distributed.kv_events import BlockStored

    values = {
        "block_hashes": names(pages, first),
        "parent_block_hash": first + pages.start - 1 if pages.start else None,
        "token_ids": tokens[pages.start * page_tokens : pages.stop * page_tokens],
        "block_size": page_tokens,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
    }
    return BlockStored(**values | changes)


def removed(pages, medium):
    from vllm.distributed.kv_events import BlockRemoved

    return BlockRemoved(block_hashes=names(pages), medium=medium)


def cleared():
    from vllm.distributed.kv_events import AllBlocksCleared

    return AllBlocksCleared()


def pages_of(worker, tokens=TOKENS, **identity):
    """Return how many pages the indexer counts in each tier."""
    overlap = worker.overlap(tokens, **identity)
    assert not any(num_tokens % PAGE for num_tokens in overlap)
    return tuple(num_tokens // PAGE for num_tokens in overlap)


def test_a_tier_counts_on_from_the_page_at_which_the_one_above_it_ends(worker):
    tiers = {"GPU": range(2), "CPU": range(5), "STORAGE": range(8)}
    worker.publish(*[stored(pages, medium) for medium, pages in tiers.items()])
    assert pages_of(worker) == (2, 5, 8)


def test_the_same_names_are_needed_in_all_tiers(worker):
    worker.publish(stored(range(2), "GPU"), stored(range(5), "CPU", first=2**41))
    assert pages_of(worker) == (2, 2, 2)


def test_other_names_are_good_enough_where_nothing_is_on_the_gpu(worker):
    worker.publish(stored(range(5), "CPU", first=2**41))
    assert pages_of(worker) == (0, 5, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": []},
        {"token_ids": TOKENS[1:PAGE]},
        {"page_tokens": 2 * PAGE},
        {"medium": "SSD"},
        {"medium": "cpu"},
        {"parent_block_hash": 1},
        {"group_idx": 1},
        {"locality": "REMOTE"},
    ],
)
def test_what_the_indexer_cannot_place_does_not_count(worker, change):
    worker.publish(stored(range(1), "GPU"), stored(range(1, 2), **{"medium": "CPU"} | change))
    assert pages_of(worker) == (1, 1, 1)


def test_the_same_page_without_such_a_change_does(worker):
    worker.publish(stored(range(1), "GPU"), stored(range(1, 2), "CPU"))
    assert pages_of(worker) == (1, 2, 2)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_of_no_32_bits_costs_the_whole_batch(worker, token):
    worker.publish(stored(range(2), "GPU"), stored(range(2), "CPU", tokens=[token, *TOKENS]))
    assert pages_of(worker) == (0, 0, 0)


def test_pages_may_come_before_their_parents_in_a_tier_below_the_gpu(worker):
    worker.publish(stored(range(2, 4), "CPU"))
    worker.publish(stored(range(2), "CPU"))
    assert pages_of(worker) == (0, 4, 4)


def test_a_removal_is_of_one_tier(worker):
    worker.publish(*[stored(range(4), medium) for medium in ("GPU", "CPU", "STORAGE")])
    worker.publish(removed(range(1, 4), "GPU"))
    assert pages_of(worker) == (1, 4, 4)
    worker.publish(removed(range(3, 4), "CPU"))
    assert pages_of(worker) == (1, 3, 4)
    worker.publish(removed(range(3, 4), "STORAGE"))
    assert pages_of(worker) == (1, 3, 3)


def test_all_cleared_is_of_all_tiers(worker):
    worker.publish(*[stored(range(4), medium) for medium in ("GPU", "CPU", "STORAGE")])
    worker.publish(cleared())
    assert pages_of(worker) == (0, 0, 0)


def test_an_adapter_has_pages_of_its_own(worker):
    worker.publish(*[stored(range(2), medium, lora_name="tuned") for medium in ("GPU", "CPU")])
    assert pages_of(worker, lora_name="tuned") == (2, 2, 2)
    assert pages_of(worker, lora_name="other") == (0, 0, 0)
    assert pages_of(worker) == (0, 0, 0)


def test_a_salt_among_extra_keys_is_not_read(worker):
    """So pages with a salt count for requests without it, and never for those that have it."""
    worker.publish(stored(range(2), "GPU", extra_keys=[("salt",), None]))
    assert pages_of(worker) == (2, 2, 2)
    assert pages_of(worker, cache_salt="salt") == (0, 0, 0)


@pytest.mark.parametrize(("replays", "num_pages"), [(True, 4), (False, 2)])
def test_a_lost_batch_is_asked_for_again_where_that_is_possible(
    indexer, publishers, replays, num_pages
):
    from indexer import LossySocket, Worker

    publisher = publishers(replays=replays)
    worker, socket = Worker(indexer, PAGE, publisher), LossySocket(publisher)
    worker.publish(stored(range(2), "CPU"))
    socket.lose_next()
    worker.publish(stored(range(2, 4), "CPU"))
    assert pages_of(worker) == (0, num_pages, num_pages)
    assert not socket.num_to_lose


def test_two_workers_are_told_apart(indexer, publishers):
    from indexer import Worker

    first, second = (Worker(indexer, PAGE, publishers(), model="shared") for _ in range(2))
    first.publish(stored(range(4), "CPU"))
    second.publish(stored(range(2), "GPU"))
    assert pages_of(first) == (0, 4, 4)
    assert pages_of(second) == (2, 2, 2)


def test_a_publisher_that_starts_again_is_to_be_registered_again(worker, publishers):
    worker.publish(stored(range(4), "CPU"))
    assert pages_of(worker) == (0, 4, 4)
    worker.leave()
    worker.follow(publishers())
    assert pages_of(worker) == (0, 0, 0)
