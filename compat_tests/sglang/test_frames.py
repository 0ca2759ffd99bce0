"""How far it is from SGLang's hook to the copy, in stack frames."""

import sys

import pytest
from controller_rig import ControllerRig
from sglang_process import flexkv

from flexkv_connectors.testing.hicache_storage import chain_of, extra_of

MOST = 10
COPIES = {"_gather", "_scatter"}
"""Of the CPU lane: each is a loop of numpy copies."""


@pytest.fixture
def rig(start_ranks, tmp_path):
    (rig,) = start_ranks(ControllerRig, "page_first_direct", flexkv(tmp_path))
    return rig


def frames_of_copies(hook, *arguments):
    """Return the functions from `hook` to the copy, outermost first, for every copy it makes."""
    found = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_name in COPIES:
            names = []
            while frame.f_code is not frames_of_copies.__code__:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            found.append(names[::-1])

    sys.setprofile(profile)
    try:
        assert all(hook(*arguments))
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("name", ["batch_set_v1", "batch_get_v1"])
def test_from_the_hook_to_the_copy_it_is_not_far(rig, name):
    call = (chain_of(1), rig.indices(range(8)), extra_of([]))
    rig.storage.batch_set_v1(*call) if name == "batch_get_v1" else None
    copies = frames_of_copies(getattr(rig.storage, name), *call)
    assert copies
    for frames in copies:
        assert frames[0] == name
        assert len(frames) <= MOST, " > ".join(frames)
