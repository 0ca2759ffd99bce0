"""Counting from many threads."""

from concurrent.futures import ThreadPoolExecutor

from flexkv_core.data.tiers.ssd.counts import Counts


def test_what_was_taken_is_not_taken_again():
    counts = Counts()
    counts.add("ssd_io_errors")
    counts.add("ssd_read_bytes", 7)
    assert counts.take() == {"ssd_io_errors": 1, "ssd_read_bytes": 7}
    assert counts.take() == {}


def test_no_thread_loses_what_it_adds():
    counts = Counts()
    with ThreadPoolExecutor(4) as threads:
        for _ in range(4000):
            threads.submit(counts.add, "ssd_io_errors")
    assert counts.take() == {"ssd_io_errors": 4000}
