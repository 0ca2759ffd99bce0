from flexkv_connectors.vllm.report_timeout import ReportTimeout


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nobody_waits_for_nothing():
    assert not ReportTimeout(limit_s=5).allows(waiting=False)


def test_waiting_ends_at_the_limit():
    clock = Clock()
    timeout = ReportTimeout(limit_s=5, clock=clock)
    assert timeout.allows(waiting=True)
    clock.now += 4.9
    assert timeout.allows(waiting=True)
    clock.now += 0.2
    assert not timeout.allows(waiting=True)


def test_a_report_renews_the_wait():
    clock = Clock()
    timeout = ReportTimeout(limit_s=5, clock=clock)
    timeout.allows(waiting=True)
    clock.now += 10
    timeout.restart()
    assert timeout.allows(waiting=True)


def test_a_pause_renews_the_wait():
    clock = Clock()
    timeout = ReportTimeout(limit_s=5, clock=clock)
    timeout.allows(waiting=True)
    timeout.allows(waiting=False)
    clock.now += 10
    assert timeout.allows(waiting=True)
