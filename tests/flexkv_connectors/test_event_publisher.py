"""What is on the wire, in both forms; who comes late, is slow or asks again; and a bad address."""

import sys
import threading
import time
from contextlib import ExitStack

import pytest
import zmq
from event_consumer import ask, opened, read

from flexkv_connectors.announcer import BlockPages, PageKind, PagesRemoved, PagesStored, pack_tokens
from flexkv_connectors.event_publisher import EventPublisher
from flexkv_core.errors import ConfigError
from flexkv_core.event_options import EventOptions
from flexkv_core.metrics import Counters

PLAIN = PageKind(page_tokens=2)
BIG = 2**40


def block(number, kind=PLAIN):
    """Return a block of two pages in a chain of them."""
    tokens = pack_tokens(range(4 * number, 4 * number + 4))
    names = (BIG + 2 * number + 1, BIG + 2 * number + 2)
    return BlockPages(names, BIG + 2 * number if number else None, tokens, kind)


def stored(*numbers):
    return PagesStored("host", [block(number) for number in numbers])


PROBE = PagesRemoved("host", [block(1000)])


@pytest.fixture
def place(tmp_path):
    return f"ipc://{tmp_path}/events"


@pytest.fixture
def replays(tmp_path):
    return f"ipc://{tmp_path}/replays"


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def start(place, replays, counters):
    """Return a function that opens a publisher."""
    publishers = []

    def run(dp_rank=0, **changes):
        options = {"endpoint": place, "replay_endpoint": replays, "topic": "kv@pod@m"}
        publisher = EventPublisher(EventOptions(**(options | changes)), dp_rank, counters)
        publishers.append(publisher)
        return publisher

    yield run
    for publisher in publishers:
        publisher.close()


def events(endpoint, first=0):
    return [event for _, _, (_, events, _) in ask(endpoint, first) for event in events]


def join(publisher, consumer):
    """Publish something of no importance until a consumer hears it."""
    for _ in range(3000):
        publisher.publish([PROBE])
        if consumer.poll(10):
            return
    raise AssertionError("it hears nothing")


def next_event(consumer):
    """Return the next event that is not a probe."""
    while True:
        _, _, (_, events, _) = read(consumer.recv_multipart())
        if events != [["BlockRemoved", list(PROBE.blocks[0].names), "CPU"]]:
            return events[0]


def test_an_array_has_every_field_in_its_place(start, replays):
    publisher = start(format="array")
    publisher.publish([stored(1, 2), PagesRemoved("ssd", [block(0)])])
    assert events(replays) == [
        [
            "BlockStored",
            [BIG + 3, BIG + 4, BIG + 5, BIG + 6],
            BIG + 2,
            [4, 5, 6, 7, 8, 9, 10, 11],
            2,
            None,
            "CPU",
            None,
            None,
        ],
        ["BlockRemoved", [BIG + 1, BIG + 2], "STORAGE"],
    ]


def test_a_map_has_every_field_under_its_name(start, replays):
    publisher = start(format="map")
    publisher.publish([stored(1), PagesRemoved("ssd", [block(0)])])
    assert events(replays) == [
        {
            "type": "BlockStored",
            "block_hashes": [BIG + 3, BIG + 4],
            "parent_block_hash": BIG + 2,
            "token_ids": [4, 5, 6, 7],
            "block_size": 2,
            "lora_id": None,
            "medium": "CPU",
            "lora_name": None,
            "extra_keys": None,
        },
        {"type": "BlockRemoved", "block_hashes": [BIG + 1, BIG + 2], "medium": "STORAGE"},
    ]


def test_a_map_names_the_salt(start, replays):
    publisher = start(format="map")
    publisher.publish([PagesStored("host", [block(0, PageKind(2, cache_salt=""))])])
    [event] = events(replays)
    assert event["cache_salt"] == ""


def test_a_batch_has_a_time_its_events_and_its_rank(start, replays):
    publisher = start(dp_rank=0)
    before = time.time()
    publisher.publish([stored(0)])
    [(topic, _, (at, said, dp_rank))] = ask(replays)
    assert topic == b"kv@pod@m"
    assert before <= at <= time.time()
    assert (len(said), dp_rank) == (1, 0)


def test_a_step_in_which_nothing_happened_is_no_batch(start, replays):
    publisher = start()
    publisher.publish([])
    assert ask(replays) == []


def test_batches_are_counted_from_the_clock_so_that_a_restart_does_not_go_back(start, replays):
    before = time.time_ns() // 1000
    publisher = start()
    after = time.time_ns() // 1000
    publisher.publish([stored(0)])
    publisher.publish([stored(1)])
    first, second = (number for _, number, _ in ask(replays))
    assert before <= first <= after
    assert second == first + 1


def test_who_listens_is_sent_what_is_published(start, place):
    publisher = start()
    with opened(zmq.SUB, place, subscribe=b"kv@pod@m") as consumer:
        join(publisher, consumer)
        publisher.publish([stored(0)])
        assert next_event(consumer)[1] == [BIG + 1, BIG + 2]


def test_who_has_missed_a_batch_is_sent_it_and_all_after_it(start, replays):
    publisher = start()
    for number in range(4):
        publisher.publish([stored(number)])
    numbers = [number for _, number, _ in ask(replays)]
    assert [number for _, number, _ in ask(replays, numbers[2])] == numbers[2:]
    assert ask(replays, numbers[-1] + 1) == []


def test_the_last_batches_are_kept(start, replays):
    publisher = start(buffer_steps=2)
    for number in range(4):
        publisher.publish([stored(number)])
    assert [event[1][0] for event in events(replays)] == [BIG + 5, BIG + 7]


@pytest.mark.parametrize("question", [[b"", b"1"], [b"12345678"], [b"x", b"12345678"], [b""]])
def test_a_question_that_is_none_is_not_answered_and_does_no_harm(start, replays, question):
    publisher = start()
    publisher.publish([stored(0)])
    with opened(zmq.DEALER, replays) as consumer:
        consumer.send_multipart(question)
        consumer.send_multipart([b"", b"\xff" * 8])  # beyond all numbers
        assert consumer.recv_multipart() == [b"", b"", b"\xff" * 8, b""]


def test_a_slow_consumer_costs_itself_and_not_the_others(start, place, counters):
    publisher, counts = start(buffer_steps=50), {}
    with opened(zmq.SUB, place, subscribe=b"") as other, ExitStack() as stack:
        for _ in range(2):
            slow = stack.enter_context(opened(zmq.SUB, place, subscribe=b"", rcvhwm=1))
            join(publisher, slow)
            join(publisher, other)
            for number in range(1000):
                publisher.publish([stored(*range(number, number + 1000))])
                assert next_event(other)[1][0] == BIG + 2 * number + 1
                if counts := counters.drain():
                    break
            assert counts == {"events_slow_consumers": 1}


def test_nobody_listens_and_nothing_is_lost_of_what_can_be_asked_for(start, replays, counters):
    publisher = start(buffer_steps=5)
    for number in range(20):
        publisher.publish([stored(number)])
    assert counters.drain() == {}
    assert len(ask(replays)) == 5


def test_each_engine_of_a_deployment_has_an_address_of_its_own(start, replays):
    start()
    start(dp_rank=2).publish([stored(0)])
    assert ask(replays) == []
    [(_, _, (_, _, dp_rank))] = ask(f"{replays}-2")
    assert dp_rank == 2


def free_ports(context):
    """Return two ports in a row that are free."""
    for port in range(20_000, 60_000, 7):
        with context.socket(zmq.REP) as one, context.socket(zmq.REP) as other:
            try:
                one.bind(f"tcp://*:{port}")
                other.bind(f"tcp://*:{port + 1}")
            except zmq.ZMQError:
                continue
            return port
    raise AssertionError("no ports are free")


def test_ports_are_counted_up_by_engine(start):
    with zmq.Context() as context:
        port = free_ports(context)
    start(endpoint=f"tcp://*:{port}", replay_endpoint=None, dp_rank=1)
    with pytest.raises(ConfigError, match=f"tcp://\\*:{port + 1}"):
        start(endpoint=f"tcp://*:{port + 1}", replay_endpoint=None)


def test_questions_are_taken_at_one_address_of_the_machine_too(start):
    with zmq.Context() as context:
        replays = f"tcp://127.0.0.1:{free_ports(context)}"
    start(replay_endpoint=replays).publish([stored(0)])
    assert len(ask(replays)) == 1


def test_a_central_consumer_is_called_up_at_one_address(start, counters):
    with zmq.Context() as context, context.socket(zmq.SUB) as consumer:
        consumer.rcvtimeo, consumer.linger = 30_000, 0
        consumer.subscribe(b"")
        port = consumer.bind_to_random_port("tcp://127.0.0.1")
        publisher = start(endpoint=f"tcp://127.0.0.1:{port}", replay_endpoint=None, dp_rank=1)
        join(publisher, consumer)
        publisher.publish([stored(0)])
        assert next_event(consumer)[1] == [BIG + 1, BIG + 2]


@pytest.mark.parametrize("name", ["endpoint", "replay_endpoint"])
@pytest.mark.parametrize("address", ["nonsense", "tcp://*", "tcp://*:x", "udp://*:1"])
def test_a_wrong_address_is_one_sentence(start, name, address):
    with pytest.raises(ConfigError, match=f"^{name} of events is .* cannot be opened") as caught:
        start(**{name: address})
    assert "\n" not in str(caught.value)


def test_an_address_in_use_is_one_sentence(start):
    with zmq.Context() as context, context.socket(zmq.REP) as other:
        port = other.bind_to_random_port("tcp://*")
        with pytest.raises(ConfigError, match=r"in use.*that is free"):
            start(endpoint=f"tcp://*:{port}")


def test_without_zeromq_it_is_said_what_to_install(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(ConfigError, match=r"install flexkv-connectors\[events\]"):
        start()


def test_nothing_is_left_when_it_closes(place, replays, counters):
    before = threading.active_count()
    options = EventOptions(endpoint=place, replay_endpoint=replays)
    EventPublisher(options, 0, counters).close()
    assert threading.active_count() == before
