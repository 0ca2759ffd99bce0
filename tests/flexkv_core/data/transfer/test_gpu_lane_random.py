"""An engine that computes, saves, loads and reuses at random never meets a wrong byte.

It keeps to what a scheduler keeps to: a page or slot that a plan writes is left alone until the
lane has reported, and so is a slot that a load reads. A page that is being saved may be reused.
"""

import random

import msgspec
import pytest
from cpu_lane_rig import offload, onboard
from gpu_lane_rig import ORDERS, make_gpu_rig

from flexkv_core.plan import Status


class RandomEngine:
    """Every page and slot holds one value, or something unknown."""

    def __init__(self, rig, rng):
        self.rig, self.rng = rig, rng
        self.pages = dict.fromkeys(range(rig.pages.num_pages))
        self.slots = dict.fromkeys(range(rig.host.num_slots))
        self.running = {}
        """By job: page and slot that are not free, what is written, and the value to be there."""

        self.together = []
        """Plans to be submitted together, before the next pass."""

        self.num_jobs = 0
        self.num_done = 0

    def step(self):
        """Do one thing that an engine may do now."""
        busy_pages = {page for page, *_ in self.running.values()}
        busy_slots = {slot for _, slot, *_ in self.running.values()}
        page = self.rng.choice([page for page in self.pages if page not in busy_pages])
        slot = self.rng.choice([slot for slot in self.slots if slot not in busy_slots] or [None])
        self.rng.choice([self.compute, self.save, self.load, self.poll])(page, slot)

    def compute(self, page, slot):
        self.flush()
        self.pages[page] = self.rng.randrange(256)
        self.rig.forward(page, self.pages[page])

    def save(self, page, slot):
        value = self.pages[page]
        if value is not None and slot is not None:
            self.submit(offload([page], [slot]), (None, slot, self.slots, slot, value))

    def load(self, page, slot):
        if slot is not None and (value := self.slots[slot]) is not None:
            self.submit(onboard([slot], [page]), (page, slot, self.pages, page, value))

    def submit(self, plan, effect):
        self.num_jobs += 1
        self.running[self.num_jobs] = effect
        self.together.append(msgspec.structs.replace(plan, job_id=self.num_jobs))
        if self.rng.random() < 0.5:
            self.flush()

    def flush(self):
        self.rig.lane.submit_all(self.together)
        self.together = []

    def poll(self, page, slot):
        self.flush()
        for _ in range(self.rng.randrange(60)):
            self.rig.device.step()
        self.collect()

    def collect(self):
        for result in self.rig.lane.poll():
            _, _, places, place, value = self.running.pop(result.job_id)
            if result.status is Status.OK:
                places[place] = value
                self.num_done += 1

    def wrong(self):
        """Name the pages and slots that do not hold what they should, once all has ended."""
        self.flush()
        self.rig.device.finish()
        self.collect()
        assert not self.running
        pages = [p for p, v in self.pages.items() if v is not None and {v} != set(self.rig.page(p))]
        slots = [s for s, v in self.slots.items() if v is not None and {v} != set(self.rig.slot(s))]
        return pages, slots


@pytest.mark.parametrize("order", ORDERS)
def test_random_walks_end_with_the_right_bytes(order):
    num_done = 0
    for seed in range(10):
        rig = make_gpu_rig(ORDERS[order], num_places=3, load_places=1, seed=seed)
        engine = RandomEngine(rig, random.Random(seed))
        for _ in range(150):
            engine.step()
        assert engine.wrong() == ([], [])
        num_done += engine.num_done
    assert num_done > 200
