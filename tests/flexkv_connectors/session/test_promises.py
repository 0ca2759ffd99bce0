from flexkv_connectors.session.promises import Promises


def test_a_complete_load_is_finished_and_nothing_failed():
    promises = Promises()
    promises.make("a", [4, 5, 6])
    promises.settle("a", 3)
    assert promises.take_finished() == {"a"}
    assert promises.take_failed_pages() == set()


def test_pages_behind_the_last_good_one_are_reported():
    promises = Promises()
    promises.make("a", [4, 5, 6])
    promises.settle("a", 1)
    assert promises.take_failed_pages() == {5, 6}


def test_a_load_is_promised_until_it_ends():
    promises = Promises()
    promises.make("a", [4])
    assert promises.open
    promises.settle("a", 0)
    assert not promises.open


def test_a_load_is_reported_once():
    promises = Promises()
    promises.make("a", [4])
    promises.settle("a", 1)
    promises.take_finished()
    assert promises.take_finished() == set()


def test_giving_up_fails_every_open_load_and_no_other():
    promises = Promises()
    promises.make("done", [1])
    promises.settle("done", 1)
    promises.make("open", [2, 3])
    promises.settle_all_as_failed()
    assert promises.take_finished() == {"done", "open"}
    assert promises.take_failed_pages() == {2, 3}
