"""A claim is ended once."""

import pytest

from flexkv_core.control.lease import ClaimState, Lease
from flexkv_core.errors import LeaseError


def make_lease(state):
    return Lease("request-7", 0, 4, entry=None, state=state)


def test_a_new_claim_is_open():
    Lease("request-7", 0, 4, entry=None).expect_open()


@pytest.mark.parametrize("state", [ClaimState.PLANNED, ClaimState.ENDED])
def test_a_claim_that_is_not_open_says_what_it_is(state):
    with pytest.raises(LeaseError, match=f"Lease of request 'request-7' is {state.value}"):
        make_lease(state).expect_open()
