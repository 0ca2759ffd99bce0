"""What an announcer is told of requests: which blocks their tokens name."""

from flexkv_connectors.announcer import Announcer
from flexkv_connectors.session.request import RequestState
from flexkv_connectors.session.tiers import Tiers
from flexkv_core.metrics import Recorder

__all__ = ["announce_found", "expect_save"]


def announce_found(announcer: Announcer, state: RequestState, tiers: Tiers) -> None:
    """Announce what is there of a request and never was: now its tokens are known."""
    keys = state.keys()
    for tier, num_blocks in tiers.find(keys):
        announcer.find(tier, keys[:num_blocks], state.describe)


def expect_save(
    announcer: Announcer, state: RequestState, blocks: range, tiers: Tiers, recorder: Recorder
) -> None:
    """Note what `blocks` are called, which are being saved, and have those before them known."""
    pages = state.describe(blocks)
    if not pages:
        recorder.add("events_unsaid_blocks", len(blocks))
        return
    keys, first = state.keys(), blocks.start
    while first and announcer.pages_of(keys[first - 1]) is None:
        first -= 1
    announcer.expect(keys[blocks.start : blocks.stop], pages)
    if first < blocks.start:
        announcer.expect(keys[first : blocks.start], state.describe(range(first, blocks.start)))
        announce_found(announcer, state, tiers)
