from flexkv_core.events import BlocksRemoved, CacheCleared, EventLog


def removed(number: int) -> BlocksRemoved:
    return BlocksRemoved("host", [number.to_bytes(32, "big")])


def test_events_are_taken_once_in_order():
    log = EventLog()
    log.append(removed(1))
    log.append(removed(2))
    assert log.take() == [removed(1), removed(2)]
    assert log.take() == []


def test_a_full_log_says_that_nothing_is_known_any_more():
    log = EventLog(limit=2)
    for number in range(3):
        log.append(removed(number))
    assert log.take() == [CacheCleared(), removed(2)]
