"""Ranks that are done in any order, in different loops: nothing is lost, torn or answered twice."""

import pytest
from engine_double import MANY_LOOPS, PAGE, Engine, Request
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkv_core.plan import EnginePages, TransferPlan

NUM_RANKS = 2


@pytest.fixture(autouse=True)
def options(monkeypatch):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))


class Slow:
    """A worker whose copies end when it is told: loads are made then, saves at once and told then.

    A GPU is like that: what it saves was packed on the stream of the forward pass.
    """

    def __init__(self, worker):
        self._worker = worker
        self._running = []
        self._results = []
        self.shutdown = worker.shutdown

    def submit(self, plans):
        for plan in plans:
            if not isinstance(plan.target, EnginePages):
                self._worker.submit([plan])
                self._running += self._worker.poll()
            else:
                self._running.append(plan)

    def end(self, order):
        """End one copy, if there is any; `order` chooses which."""
        if not self._running:
            return
        step = self._running.pop(order % len(self._running))
        if isinstance(step, TransferPlan):
            self._worker.submit([step])
            self._results += self._worker.poll()
        else:
            self._results.append(step)

    def poll(self):
        results, self._results = self._results, []
        return results


class Rig:
    """An engine of slow ranks, and what can happen to it."""

    def __init__(self, folder):
        self.engine = Engine(folder, ranks=NUM_RANKS, chunk=7).register()
        self.slow = [Slow(worker._half.session.worker) for worker in self.engine.workers]
        for worker, slow in zip(self.engine.workers, self.slow, strict=True):
            worker._half.session.worker = slow
        self.number = 0

    def new(self, num_tokens, first):
        self.number += 1
        self.engine.submit(Request(self.number, list(range(first, first + num_tokens))))

    def abort(self, which):
        if self.engine.active:
            self.engine.end(self.engine.active[which % len(self.engine.active)])

    def loop(self, ends):
        for rank, order in ends:
            self.slow[rank].end(order)
        self.engine.iterate()

    def finish(self):
        """Let everything end, one copy of each rank a loop; the last request hears of the rest."""
        ends = [(rank, 0) for rank in range(NUM_RANKS)]
        for _ in range(MANY_LOOPS):
            self.loop(ends)
            if self.engine.is_idle and not any(slow._running for slow in self.slow):
                break
        self.engine.run(Request(self.number + 1, [900]))
        self.engine.close()


ENDS = st.lists(st.tuples(st.integers(0, NUM_RANKS - 1), st.integers(0, 7)), max_size=4)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.integers(1, 30), st.sampled_from([0, 0, 100])),
        st.tuples(st.just("abort"), st.integers(0, 3)),
        st.tuples(st.just("loop"), ENDS),
    ),
    max_size=24,
)


@settings(max_examples=60)
@given(events=EVENTS)
def test_completions_in_any_order_keep_every_promise(tmp_path_factory, events):
    rig = Rig(tmp_path_factory.mktemp("model"))
    for event, *values in events:
        getattr(rig, event)(*values)
    rig.finish()
    half = rig.engine.scheduler._half
    half.handle_reports()
    half.session.manager.check_integrity()
    assert rig.engine.scheduler._barrier.reason == ""
    assert half.session.manager.num_in_flight == 0
