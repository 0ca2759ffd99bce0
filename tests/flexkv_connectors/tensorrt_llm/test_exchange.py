"""When ranks meet: all of them, or none."""

import pytest

from flexkv_connectors.session.orders import Load, RankReport
from flexkv_connectors.tensorrt_llm.exchange import Exchange, ExchangeOrders
from flexkv_core.plan import (
    EnginePages,
    HostSlots,
    Status,
    TierOrders,
    TransferPlan,
    TransferResult,
)

PAGES, SLOTS = EnginePages([0]), HostSlots(bytes(8))


def load(job):
    return Load("1", [0], TransferPlan(job_id=job, source=SLOTS, target=PAGES, num_blocks=1))


def save(job):
    return TransferPlan(job_id=job, source=PAGES, target=SLOTS, num_blocks=1)


class Ranks:
    """Four ranks, of which 0 and 2 own pools; what they report next is set by the test."""

    def __init__(self):
        self.reports = []
        self.num_meetings = 0
        self.exchange = Exchange(4, (0, 2), self._gather)

    def _gather(self, own):
        self.num_meetings += 1
        return self.reports

    def meet(self, *done, refusal=""):
        """Let a loop pass, in which ranks report (rank, job)."""
        self.reports = [
            RankReport(
                rank=rank,
                results=[
                    TransferResult(job_id=job, rank=rank, status=Status.OK, num_blocks=1)
                    for owner, job in done
                    if owner == rank
                ],
                refusal=refusal if rank == 3 else "",
            )
            for rank in range(4)
        ]
        before = self.num_meetings
        self.exchange.all_reports(lambda: RankReport(rank=0))
        return self.num_meetings > before


@pytest.fixture
def ranks():
    return Ranks()


def test_nobody_meets_where_nothing_is_under_way(ranks):
    assert not ranks.meet()


def test_a_load_is_waited_for_until_every_rank_has_reported(ranks):
    ranks.exchange.expect(ExchangeOrders(loads=[load(1)]))
    assert ranks.meet((0, 1), (2, 1), (1, 1))
    assert ranks.meet((3, 1))
    assert not ranks.meet()


@pytest.mark.parametrize(
    "orders",
    [ExchangeOrders(saves=[save(1)]), ExchangeOrders(ssd=TierOrders(plans=[save(1)]))],
    ids=["save", "ssd"],
)
def test_what_goes_into_our_tiers_is_waited_for_until_the_owners_have_reported(ranks, orders):
    ranks.exchange.expect(orders)
    assert ranks.meet((0, 1))
    assert ranks.meet((2, 1))
    assert not ranks.meet()


def test_ranks_meet_while_the_scheduler_half_wants_reports(ranks):
    ranks.exchange.expect(ExchangeOrders(wants_reports=True))
    assert ranks.meet()
    assert ranks.meet()
    ranks.exchange.expect(ExchangeOrders())
    assert not ranks.meet()


def test_a_load_with_nothing_to_fill_is_not_waited_for(ranks):
    ranks.exchange.expect(ExchangeOrders(loads=[Load("1", [], None)]))
    assert not ranks.meet()


def test_the_first_refusal_is_the_last_meeting(ranks):
    ranks.exchange.expect(ExchangeOrders(saves=[save(1)], wants_reports=True))
    assert ranks.meet(refusal="an error")
    assert not ranks.meet()
