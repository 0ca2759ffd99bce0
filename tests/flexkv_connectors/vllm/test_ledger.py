from flexkv_connectors.vllm.ledger import LoadLedger


def test_a_complete_load_is_finished_and_nothing_failed():
    ledger = LoadLedger(report_finished=True)
    ledger.promise("a", [4, 5, 6])
    ledger.settle("a", 3)
    assert ledger.take_finished() == {"a"}
    assert ledger.take_failed_pages() == set()


def test_pages_behind_the_last_good_one_are_reported():
    ledger = LoadLedger(report_finished=True)
    ledger.promise("a", [4, 5, 6])
    ledger.settle("a", 1)
    assert ledger.take_failed_pages() == {5, 6}


def test_a_load_is_promised_until_it_ends():
    ledger = LoadLedger(report_finished=True)
    ledger.promise("a", [4])
    assert ledger.has_promises
    ledger.settle("a", 0)
    assert not ledger.has_promises


def test_a_load_is_reported_once():
    ledger = LoadLedger(report_finished=True)
    ledger.promise("a", [4])
    ledger.settle("a", 1)
    ledger.take_finished()
    assert ledger.take_finished() == set()


def test_synchronous_loads_are_only_reported_when_they_fail():
    ledger = LoadLedger(report_finished=False)
    ledger.promise("a", [4])
    ledger.settle("a", 0)
    assert ledger.take_finished() == set()
    assert ledger.take_failed_pages() == {4}


def test_giving_up_fails_every_open_load_and_no_other():
    ledger = LoadLedger(report_finished=True)
    ledger.promise("done", [1])
    ledger.settle("done", 1)
    ledger.promise("open", [2, 3])
    ledger.settle_all_as_failed()
    assert ledger.take_finished() == {"done", "open"}
    assert ledger.take_failed_pages() == {2, 3}
