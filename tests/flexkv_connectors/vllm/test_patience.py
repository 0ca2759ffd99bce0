from flexkv_connectors.vllm.patience import Patience


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nobody_waits_for_nothing():
    assert not Patience(limit_s=5).lasts(waiting=False)


def test_waiting_ends_at_the_limit():
    clock = Clock()
    patience = Patience(limit_s=5, clock=clock)
    assert patience.lasts(waiting=True)
    clock.now += 4.9
    assert patience.lasts(waiting=True)
    clock.now += 0.2
    assert not patience.lasts(waiting=True)


def test_a_report_renews_the_wait():
    clock = Clock()
    patience = Patience(limit_s=5, clock=clock)
    patience.lasts(waiting=True)
    clock.now += 10
    patience.reward()
    assert patience.lasts(waiting=True)


def test_a_pause_renews_the_wait():
    clock = Clock()
    patience = Patience(limit_s=5, clock=clock)
    patience.lasts(waiting=True)
    patience.lasts(waiting=False)
    clock.now += 10
    assert patience.lasts(waiting=True)
